"""What is computed in a cheaper order is what the plain order gives: attention by image, shares of groups, sweeps over layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import torch

import jaxvit
from jaxvit import attention
from jaxvit.attention import attend, attend_and_diverge, attend_and_share, image_by_image
from jaxvit.capture import group_columns
from jaxvit.forward import sweep_layers
from tests.jaxvit import tiny


@functools.cache
def projected(*batch: int) -> jax.Array:
    """Queries, keys and values [3, *batch, 7, 2, 8]."""
    return 2 * jax.random.normal(jax.random.key(0), (3, *batch, 7, 2, 8))


def torch_attention(q, k, v, **arguments):
    heads_first = [torch.from_numpy(np.array(x, np.float64).swapaxes(-2, -3)) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, **arguments).numpy().swapaxes(-2, -3)


def test_attention_is_torchs_and_so_is_its_gradient():
    q, k, v = projected(2, 3)
    leaves = [torch.from_numpy(np.array(x.swapaxes(-2, -3), np.float64)).requires_grad_() for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*leaves)
    (want**2).sum().backward()

    def loss(qkv):
        mixed = attend(*qkv)
        return (mixed**2).sum(), mixed

    ours, mixed = jax.jit(jax.grad(loss, has_aux=True))((q, k, v))
    np.testing.assert_allclose(mixed, want.detach().numpy().swapaxes(-2, -3), atol=5e-6)
    for found, leaf in zip(ours, leaves, strict=True):
        np.testing.assert_allclose(found, leaf.grad.numpy().swapaxes(-2, -3), atol=5e-5)
    np.testing.assert_allclose(jax.jit(attend)(q[0, 0], k[0, 0], v[0, 0]), mixed[0, 0], atol=5e-6)  # one image without leading axes


def test_attention_of_large_logits_under_vmap_is_torchs():
    q, k, v = projected(2, 3)
    np.testing.assert_allclose(jax.jit(jax.vmap(attend))(30 * q, k, v), torch_attention(30 * q, k, v), atol=1e-5)


def test_shares_of_groups_are_the_columns_of_the_map_summed_whatever_the_dtype_of_values():
    q, k, v = projected(3)
    groups = jax.nn.one_hot(np.array([0, 1, 1, 2, 2, 2, 2]), 3)
    hidden = jnp.zeros((3, 7, 7), bool).at[:, :, 6].set(True)
    share = jax.jit(attend_and_share)
    mixed, shares = share(q, k, v, groups, hidden)
    mask = torch.from_numpy(~np.array(hidden)[:, None])
    want = torch_attention(q, k, np.broadcast_to(np.asarray(groups)[:, None], (3, 7, 2, 3)), attn_mask=mask)
    np.testing.assert_allclose(mixed, torch_attention(q, k, v, attn_mask=mask), atol=3e-6)
    np.testing.assert_allclose(shares, want, atol=1e-6)
    half = share(q, k, v.astype(jnp.bfloat16), groups, hidden)
    assert half[0].dtype == jnp.bfloat16
    assert half[1].dtype == jnp.float32
    np.testing.assert_allclose(half[1], want, rtol=2**-8, atol=1e-6)  # the weights are rounded


def test_divergence_on_the_way_is_scipys_of_the_maps_also_with_hidden_keys():
    q, k, v = projected(2, 3)
    hidden = jnp.zeros((2, 3, 7, 7), bool).at[..., 6].set(True).at[0, :, 2:, 0].set(True)
    mixed, divergence = jax.jit(attend_and_diverge)(3 * q, k, v, hidden)
    np.testing.assert_allclose(mixed, attend(3 * q, k, v, hidden), atol=1e-6)
    maps = np.asarray(attention.probabilities(3 * q, k, hidden), np.float64)
    want = (scipy.spatial.distance.jensenshannon(maps[0], maps[1], base=2, axis=-1) ** 2).mean(axis=-1)
    np.testing.assert_allclose(divergence, [want, want], rtol=2e-5)
    for peak in np.linspace(20, 60, 9):  # weights that underflow, by way of numbers below the smallest normal one
        divergence = jax.jit(attend_and_diverge)(peak * q, k, v)[1]
        maps = np.asarray(attention.probabilities(peak * q, k), np.float64)
        want = (scipy.spatial.distance.jensenshannon(maps[0], maps[1], base=2, axis=-1) ** 2).mean(axis=-1)
        np.testing.assert_allclose(divergence[0], want, atol=1e-6)
    same = jax.jit(attend_and_diverge)(q[:1].repeat(2, axis=0), k[:1].repeat(2, axis=0), v)[1]
    np.testing.assert_array_equal(same, np.zeros((2, 3, 2)))


def test_some_queries_at_a_time_give_what_all_together_give(monkeypatch):
    """Seven queries in parts of at most three: also with hidden keys, shares and divergence, under vmap and without a batch."""
    q, k, v = projected(2, 3)
    hidden = jnp.zeros((2, 3, 7, 7), bool).at[..., 6].set(True).at[0, :, 2:, 0].set(True)
    groups = jax.nn.one_hot(np.array([0, 1, 1, 2, 2, 2, 2]), 3)

    def everything():
        one = attend(q[0, 0], k[0, 0], v[0, 0])
        return attend_and_share(q, k, v, groups, hidden), attend_and_diverge(q, k, v, hidden), jax.vmap(attend)(q, k, v), one

    together = everything()
    monkeypatch.setattr(attention, "_QUERIES", 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), everything(), together)
    np.testing.assert_allclose(attend(q, k, v), torch_attention(q, k, v), atol=5e-6)


def test_a_cpu_goes_image_by_image_and_a_tpu_does_not():
    """As many steps as images share out over the devices; other platforms get the function itself."""
    q, k, v = (jax.ShapeDtypeStruct((3 * jax.device_count(), 7, 2, 8), jnp.float32) for _ in range(3))
    traced = jax.jit(attend).trace(q, k, v)
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_a_fused_kernel_gets_what_gives_the_same_mixtures_and_shares(monkeypatch):
    """cuDNN needs a GPU; in its place stands JAX's own statement of what the kernel computes."""
    kernel = jax.nn.dot_product_attention

    def in_its_place(q, k, v, scale, implementation):
        assert implementation == "cudnn"
        assert q.ndim == 4
        assert q.shape == k.shape == v.shape
        assert q.shape[-1] % 8 == 0
        return kernel(q, k, v, scale=scale, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_its_place)
    q, k, v = projected(2, 3)
    groups = jax.nn.one_hot(np.array([0, 1, 1, 2, 2, 2, 2]), 3)
    mixed, shares = attention._fused_and_shared(groups, q, k, v)
    for found, want in zip((mixed, shares), attend_and_share(q, k, v, groups), strict=True):
        np.testing.assert_allclose(found, want, atol=5e-6)
    np.testing.assert_allclose(attention._fused(q, k, v), torch_attention(q, k, v), atol=5e-6)


def test_a_fused_kernel_is_used_for_bfloat16_where_it_is_there_and_takes_the_heads(monkeypatch):
    q = jax.ShapeDtypeStruct((2, 7, 2, 64), jnp.bfloat16)
    assert not attention._fits_kernel(q, 64)  # there is no GPU
    monkeypatch.setattr(attention, "_has_kernel", lambda: True)
    assert attention._fits_kernel(q, 70)
    assert not attention._fits_kernel(q, 129)
    for shape, dtype in (((2, 7, 2, 64), jnp.float32), ((7, 2, 64), jnp.bfloat16), ((2, 7, 2, 12), jnp.bfloat16)):
        assert not attention._fits_kernel(jax.ShapeDtypeStruct(shape, dtype), shape[-1])


def test_image_by_image_keeps_trees_and_axes():
    q = projected(2, 3)[0]
    out = image_by_image(lambda x, y: {"sum": (x + y).sum((-1, -2)), "same": y}, q, q)
    np.testing.assert_allclose(out["sum"], 2 * q.sum((-1, -2)), atol=1e-5)
    np.testing.assert_array_equal(out["same"], q)


def shares_of_ones_own(state):
    return state.shares


def test_a_capture_of_ones_own_can_read_shares():
    captured = jaxvit.forward(tiny.model(), tiny.images(2), capture={"attention": "attention", "mine": shares_of_ones_own}).captured
    want = np.asarray(captured["attention"], np.float64) @ np.asarray(group_columns(tiny.LAYOUT), np.float64)
    np.testing.assert_allclose(captured["mine"], np.swapaxes(want, -2, -3), atol=1e-6)


SWEPT = {
    "zero registers behind a block": lambda **at: jaxvit.zero("registers", **at),
    "zero drawn patches before a block and what attention adds to CLS": lambda **at: (
        jaxvit.zero(jaxvit.random_patches(3, seed=3), at="block_input", **at) & jaxvit.zero("cls", at="attention_output", **at)
    ),
}


@pytest.mark.parametrize("what", SWEPT)
def test_a_sweep_over_layers_is_a_run_for_every_layer(what):
    ablation = SWEPT[what]
    model, images, ids = tiny.model(), tiny.images(2), tiny.ids(2)
    swept = sweep_layers(model, images, ablation(), ids)
    assert swept.patches.shape == (tiny.CONFIG.depth, 2, tiny.LAYOUT.patches, tiny.CONFIG.width)
    runs = jaxvit.stack([ablation(layers=[layer]) for layer in range(tiny.CONFIG.depth)], model, tiny.SIZE)
    single = jax.vmap(lambda edit: jaxvit.forward(model, images, edit, example_ids=ids))(runs)
    np.testing.assert_allclose(swept.tokens, single.tokens, atol=5e-6)
    np.testing.assert_allclose(swept.prenorm, single.prenorm, atol=5e-6)
    clean = jaxvit.forward(model, images).tokens
    assert np.abs(np.asarray(swept.tokens) - clean).max(axis=(1, 2, 3)).min() > 1e-2


def test_a_sweep_refuses_what_forward_refuses():
    with pytest.raises(ValueError, match="example_ids"):
        sweep_layers(tiny.model(), tiny.images(2), jaxvit.shuffle("registers"))
