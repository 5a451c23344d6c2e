"""Attention against torch and SciPy, in every order of computation: by image, by chunks of queries, by a fused kernel."""

from __future__ import annotations

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import torch
from jax.sharding import Mesh

from jaxvit import attention
from jaxvit.attention import attend, attention_with_divergence, attention_with_groups, few_images_at_a_time, jensen_shannon, probabilities
from tests.draws import normal
from tests.jaxvit import tiny

GROUPS = jax.nn.one_hot(np.array([0, 1, 1, 2, 2, 2, 2]), 3)


@functools.cache
def projected(*batch: int) -> jax.Array:
    """Queries, keys and values [3, *batch, 7, 2, 8]."""
    return 2 * normal(0, 3, *batch, 7, 2, 8)


def two_masks() -> jax.Array:
    """Masks of two streams [2, 3, 7, 7]: nothing attends to the last key, nor, in the first stream from query 2 on, to the first key."""
    return jnp.ones((2, 3, 7, 7), bool).at[..., 6].set(False).at[0, :, 2:, 0].set(False)


def torch_attention(q, k, v, **arguments):
    heads_first = [torch.from_numpy(np.array(x, np.float64).swapaxes(-2, -3)) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, **arguments).numpy().swapaxes(-2, -3)


def scipy_divergence(q, k, mask=None):
    """Jensen-Shannon divergence of the attention of two streams, mean over queries."""
    first, second = np.asarray(probabilities(q, k, mask), np.float64)
    return (scipy.spatial.distance.jensenshannon(first, second, base=2, axis=-1) ** 2).mean(axis=-1)


def test_attention_is_torchs_and_so_is_its_gradient():
    q, k, v = projected(2, 3)
    leaves = [torch.from_numpy(np.array(x.swapaxes(-2, -3), np.float64)).requires_grad_() for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*leaves)
    (want**2).sum().backward()

    def loss(qkv):
        output = attend(*qkv)
        return (output**2).sum(), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))((q, k, v))
    np.testing.assert_allclose(output, want.detach().numpy().swapaxes(-2, -3), atol=5e-6)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad.numpy().swapaxes(-2, -3), atol=5e-5)
    np.testing.assert_allclose(jax.jit(attend)(q[0, 0], k[0, 0], v[0, 0]), output[0, 0], atol=5e-6)  # one image without leading axes


def test_attention_of_large_logits_under_vmap_is_torchs():
    q, k, v = projected(2, 3)
    np.testing.assert_allclose(jax.jit(jax.vmap(attend))(30 * q, k, v), torch_attention(30 * q, k, v), atol=1e-5)


def test_masked_attention_is_torchs_and_gives_masked_keys_no_weight() -> None:
    q, k, v = normal(0, 3, 2, 7, 3, 8)
    mask = ~jax.random.bernoulli(jax.random.key(1), 0.4, (98,)).reshape(2, 7, 7).at[..., 0].set(False)
    output = attend(q, k, v, mask)
    per_head = [torch.from_numpy(np.array(x).swapaxes(1, 2)) for x in (q, k, v)]
    torch_mask = torch.from_numpy(np.array(mask)[:, None])
    want = torch.nn.functional.scaled_dot_product_attention(*per_head, attn_mask=torch_mask).numpy().swapaxes(1, 2)
    np.testing.assert_allclose(output, want, atol=1e-6)
    weights = probabilities(q, k, mask)
    assert not np.asarray(weights)[np.broadcast_to(~mask[:, None], weights.shape)].any()


def test_a_mask_that_allows_everything_changes_nothing_in_a_block() -> None:
    block = jax.tree.map(lambda leaf: leaf[0], tiny.model().blocks)
    x = normal(0, 2, 5, tiny.CONFIG.width)
    allowed = jnp.ones((2, 5, 5), bool)
    np.testing.assert_array_equal(block(x, None).block_output, block(x, None, attention_mask=allowed).block_output)


def test_group_attention_is_the_map_summed_over_keys_whatever_the_dtype_of_values():
    q, k, v = projected(3)
    mask = jnp.ones((3, 7, 7), bool).at[:, :, 6].set(False)
    function = jax.jit(attention_with_groups)
    output, sums = function(q, k, v, GROUPS, mask)
    torch_mask = torch.from_numpy(np.array(mask)[:, None])
    want = torch_attention(q, k, np.broadcast_to(np.asarray(GROUPS)[:, None], (3, 7, 2, 3)), attn_mask=torch_mask)
    np.testing.assert_allclose(output, torch_attention(q, k, v, attn_mask=torch_mask), atol=3e-6)
    np.testing.assert_allclose(sums, want, atol=1e-6)
    half_output, half_sums = function(q, k, v.astype(jnp.bfloat16), GROUPS, mask)
    assert half_output.dtype == jnp.bfloat16
    assert half_sums.dtype == jnp.float32
    np.testing.assert_allclose(half_sums, want, rtol=2**-8, atol=1e-6)  # the weights are rounded


def test_divergence_computed_with_attention_is_scipys_of_the_maps_also_under_a_mask():
    q, k, v = projected(2, 3)
    mask = two_masks()
    output, divergence = jax.jit(attention_with_divergence)(3 * q, k, v, mask)
    np.testing.assert_allclose(output, attend(3 * q, k, v, mask), atol=1e-6)
    want = scipy_divergence(3 * q, k, mask)
    np.testing.assert_allclose(divergence, [want, want], rtol=2e-5)
    for peak in np.linspace(20, 60, 9):  # weights that underflow, by way of numbers below the smallest normal one
        _, divergence = jax.jit(attention_with_divergence)(peak * q, k, v)
        np.testing.assert_allclose(divergence[0], scipy_divergence(peak * q, k), atol=1e-6)
    _, same = jax.jit(attention_with_divergence)(q[:1].repeat(2, axis=0), k[:1].repeat(2, axis=0), v)
    np.testing.assert_array_equal(same, np.zeros((2, 3, 2)))


def test_jensen_shannon_is_scipys_also_where_distributions_are_nearly_disjoint():
    """From equal rows over probabilities of 1e-30 to disjoint ones: SciPy's in double precision, never infinite."""
    generator = np.random.default_rng(0)
    p = np.exp(generator.normal(size=(40, 9)) * np.geomspace(0.1, 30, 40)[:, None])
    q = np.exp(generator.normal(size=(40, 9)) * np.geomspace(0.1, 30, 40)[:, None])
    p, q = (np.maximum(x / x.sum(axis=1, keepdims=True), 1e-30).astype(np.float32) for x in (p, q))
    p[0], q[0] = np.eye(9)[0], np.eye(9)[1]
    q[1] = p[1]
    divergence = np.asarray(jensen_shannon(jnp.asarray(p), jnp.asarray(q)))
    want = scipy.spatial.distance.jensenshannon(p.astype(np.float64), q.astype(np.float64), base=2, axis=1) ** 2
    np.testing.assert_allclose(divergence, np.nan_to_num(want), atol=1e-6)
    assert divergence[0] == 1
    assert divergence[1] == 0


def test_chunks_of_queries_give_what_all_queries_together_give(monkeypatch):
    """Seven queries in chunks of at most three: also under a mask, with groups and divergence, under vmap and without a batch."""
    q, k, v = projected(2, 3)
    mask = two_masks()

    def everything():
        one = attend(q[0, 0], k[0, 0], v[0, 0])
        return attention_with_groups(q, k, v, GROUPS, mask), attention_with_divergence(q, k, v, mask), jax.vmap(attend)(q, k, v), one

    together = everything()
    monkeypatch.setattr(attention, "QUERY_CHUNK", 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), everything(), together)
    np.testing.assert_allclose(attend(q, k, v), torch_attention(q, k, v), atol=5e-6)


def test_a_cpu_takes_few_images_at_a_time_and_a_tpu_does_not():
    """As many steps as images share out over the devices; other platforms get the function itself."""
    q, k, v = (jax.ShapeDtypeStruct((3 * jax.device_count(), 7, 2, 8), jnp.float32) for _ in range(3))
    traced = jax.jit(attend).trace(q, k, v)
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_few_images_at_a_time_keep_trees_and_axes():
    q = projected(2, 3)[0]
    output = few_images_at_a_time(lambda x, y: {"sum": (x + y).sum((-1, -2)), "same": y}, q, q)
    np.testing.assert_allclose(output["sum"], 2 * q.sum((-1, -2)), atol=1e-5)
    np.testing.assert_array_equal(output["same"], q)


def test_what_the_fused_kernel_is_called_with_gives_the_same_values_and_group_attention(monkeypatch):
    """cuDNN needs a GPU; it is replaced by JAX's own implementation of what the kernel computes."""
    kernel = jax.nn.dot_product_attention

    def in_its_place(q, k, v, scale, implementation):
        assert implementation == "cudnn"
        assert q.ndim == 4
        assert q.shape == k.shape == v.shape
        assert q.shape[-1] % 8 == 0
        return kernel(q, k, v, scale=scale, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_its_place)
    q, k, v = projected(2, 3)
    fused = attention._cudnn_attention_with_groups(GROUPS, q, k, v)
    for array, want in zip(fused, attention_with_groups(q, k, v, GROUPS), strict=True):
        np.testing.assert_allclose(array, want, atol=5e-6)
    np.testing.assert_allclose(attention._cudnn_attention(q, k, v), torch_attention(q, k, v), atol=5e-6)


def test_the_fused_kernel_is_used_for_bfloat16_where_there_is_one_that_takes_the_heads(monkeypatch):
    q = jax.ShapeDtypeStruct((2, 7, 2, 64), jnp.bfloat16)
    if jax.default_backend() != "gpu":
        assert not attention._fits_kernel(q, 64)
    monkeypatch.setattr(attention, "_has_kernel", lambda: True)
    assert attention._fits_kernel(q, 70)
    assert not attention._fits_kernel(q, 129)
    for shape, dtype in (((2, 7, 2, 64), jnp.float32), ((7, 2, 64), jnp.bfloat16), ((2, 7, 2, 12), jnp.bfloat16)):
        assert not attention._fits_kernel(jax.ShapeDtypeStruct(shape, dtype), shape[-1])


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_probabilities_are_a_softmax_over_keys(batch):
    q, k, _ = projected(*batch)
    logits = np.einsum("...qhd,...khd->...hqk", *(np.asarray(x, np.float64) for x in (q, k))) / np.sqrt(8)
    want = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(probabilities(q, k), want, atol=1e-6)


def test_the_devices_of_a_cpu_are_those_of_the_mesh_that_is_set():
    """An array of one device is otherwise taken apart by all devices of the process, whose number then decides about last bits."""
    seen = []

    def shape_of(q):
        seen.append(q.shape)
        return q

    q = jnp.zeros((4, 1, 3, 8))
    for mesh in (None, Mesh(np.asarray(jax.local_devices()[:1]), "batch")):
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            jax.jit(lambda q: few_images_at_a_time(shape_of, q))(q)
    shares = {shape[0] for shape in seen if len(shape) == 5}
    assert shares == {math.gcd(4, jax.local_device_count()), 1}
