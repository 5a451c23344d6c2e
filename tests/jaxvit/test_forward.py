"""Claims about running a model: scan = loop, captures, contrast, calibration, transformations of JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit import attention
from jaxvit.vit import abstract, cast, truncated
from tests.jaxvit import tiny

CONFIGS = {"table": tiny.CONFIG, "rope": tiny.ROPE, "plain": tiny.PLAIN}


@pytest.mark.parametrize("name", CONFIGS)
def test_scan_equals_a_python_loop_over_blocks(name):
    model, images = tiny.model(CONFIGS[name]), tiny.images()
    x = model.add_prefix(model.embed_patches(images), (4, 3))
    outputs = []
    for number in range(model.config.depth):
        x = jax.tree.map(lambda leaf, number=number: leaf[number], model.blocks)(x, model.rope((4, 3))).block_output
        outputs.append(x)
    out = jaxvit.forward(model, images, capture=("block_output", "cls", "registers", "patch_mean"))
    np.testing.assert_allclose(out.captured["block_output"], jnp.stack(outputs), atol=5e-6)
    np.testing.assert_allclose(out.tokens, model.final_norm(x), atol=5e-6)
    prefix = 1 + model.config.registers
    np.testing.assert_array_equal(out.captured["cls"], out.captured["block_output"][:, :, 0])
    np.testing.assert_array_equal(out.captured["registers"], out.captured["block_output"][:, :, 1:prefix])
    np.testing.assert_allclose(out.captured["patch_mean"], out.captured["block_output"][:, :, prefix:].mean(axis=2), atol=1e-6)


def test_captures_do_not_change_the_run():
    model, images = tiny.model(), tiny.images()
    plain = jaxvit.forward(model, images)
    captured = jaxvit.forward(model, images, capture=("attention", "attention_flow", "block_output"))
    np.testing.assert_allclose(plain.tokens, captured.tokens, atol=2e-6)


def test_attention_flow_is_the_full_map_reduced_and_its_rows_sum_to_one():
    out = jaxvit.forward(tiny.model(), tiny.images(), capture=("attention", "attention_flow"))
    full, flow = (np.asarray(out.captured[k], np.float64) for k in ("attention", "attention_flow"))
    groups = [[0], [1], [2], list(range(3, tiny.LAYOUT.tokens))]
    want = np.stack([np.stack([full[..., s, :][..., t].sum(-1).mean(-1) for t in groups], -1) for s in groups], -2)
    assert flow.shape == (3, 4, 3, 4, 4)
    np.testing.assert_allclose(flow, want, atol=1e-6)
    np.testing.assert_allclose(flow.sum(axis=-1), 1, atol=1e-6)


def norm_of_queries(state):
    return jnp.linalg.norm(state.q, axis=-1)


def test_a_function_of_ones_own_mixes_with_names():
    out = jaxvit.forward(tiny.model(), tiny.images(), capture={"mine": norm_of_queries, "top": "cls"})
    assert out.captured["mine"].shape == (3, 4, tiny.LAYOUT.tokens, 3)
    assert out.captured["top"].shape == (3, 4, 24)


def divergence_in_numpy(p, q):
    m = (p + q) / 2
    return ((p * np.log2(p / m)).sum(-1) + (q * np.log2(q / m)).sum(-1)).mean(-1) / 2


def test_contrast_equals_two_runs_and_divergence_is_zero_at_layer_0():
    model, images, ablation = tiny.model(), tiny.images(), jaxvit.zero("registers")
    pair = jaxvit.contrast(model, images, ablation, capture="attention_divergence")
    clean = jaxvit.forward(model, images, capture="attention")
    ablated = jaxvit.forward(model, images, ablation=ablation, capture="attention")
    np.testing.assert_allclose(pair.clean.tokens, clean.tokens, atol=2e-6)
    np.testing.assert_allclose(pair.ablated.tokens, ablated.tokens, atol=2e-6)
    divergence = pair.captured["attention_divergence"]
    want = divergence_in_numpy(*(np.asarray(o.captured["attention"], np.float64) for o in (clean, ablated)))
    np.testing.assert_allclose(divergence, want, atol=1e-6)
    np.testing.assert_array_equal(divergence[0], 0)
    assert np.all(divergence[1:] > 1e-5)


def test_attention_divergence_agrees_with_scipy():
    from scipy.spatial.distance import jensenshannon

    pair = jaxvit.contrast(
        tiny.model(),
        tiny.images(2),
        jaxvit.zero("cls"),
        capture={"js": "attention_divergence", "p": lambda c, a: (c.attention, a.attention)},
    )
    p, q = (np.asarray(x, np.float64) for x in pair.captured["p"])
    np.testing.assert_allclose(pair.captured["js"], (jensenshannon(p, q, base=2, axis=-1) ** 2).mean(axis=-1), atol=1e-6)


@pytest.mark.parametrize("site", ["block_input", "attention_output", "mlp_output", "block_output"])
def test_calibration_equals_numpy_over_all_valid_examples(site):
    model, images = tiny.model(), tiny.images(7) * 3 + 1
    batches = [(images[:4], None), (images[4:8], np.array([True, False, True])), (tiny.images(2, seed=1), np.zeros(2, bool))]
    statistics = jaxvit.calibrate(model, batches, sites=(site,))
    kept = images[np.array([0, 1, 2, 3, 4, 6])]
    streams = jaxvit.forward(model, kept, capture={"x": _SITE[site]}).captured["x"]
    streams = np.asarray(streams, np.float64)
    patches = streams[:, :, 3:].reshape(3, -1, 24)
    mean = np.concatenate([streams[:, :, :3].mean(axis=1), patches.mean(axis=1)[:, None]], axis=1)
    variance = np.concatenate([streams[:, :, :3].var(axis=1), patches.var(axis=1)[:, None]], axis=1)
    assert statistics.examples == 6
    assert statistics.image_size == tiny.SIZE
    np.testing.assert_allclose(statistics.mean[site], mean, atol=1e-5)
    np.testing.assert_allclose(statistics.variance[site], variance, rtol=1e-4, atol=1e-6)


_SITE = {
    site: (lambda state, site=site: getattr(state.trace, site))
    for site in ("block_input", "attention_output", "mlp_output", "block_output")
}


def test_calibration_is_stable_for_a_small_variance_on_a_large_mean():
    """One-pass sums of squares would lose everything here; Chan's rule must not."""
    model = jaxvit.create(tiny.CONFIG)
    model.register_tokens[...] = model.register_tokens[...] + 100.0
    images = tiny.images(64)
    statistics = jaxvit.calibrate(model, [(images[i : i + 8], None) for i in range(0, 64, 8)], sites=("block_output",))
    streams = np.asarray(jaxvit.forward(model, images, capture="registers").captured["registers"], np.float64)
    np.testing.assert_allclose(statistics.variance["block_output"][:, 1:3], streams.var(axis=1), rtol=1e-3, atol=1e-6)


def test_calibration_refuses_nothing_and_mixed_sizes():
    with pytest.raises(ValueError, match="no valid image"):
        jaxvit.calibrate(tiny.model(), [])
    with pytest.raises(ValueError, match="use one size"):
        jaxvit.calibrate(tiny.model(), [(tiny.images(2), None), (tiny.images(2, size=(8, 8)), None)])
    with pytest.raises(ValueError, match="unknown site"):
        jaxvit.calibrate(tiny.model(), [(tiny.images(2), None)], sites=("output",))


def test_the_model_is_an_argument_that_can_be_differentiated():
    def loss(model):
        return jaxvit.forward(model, tiny.images(2)).cls.sum()

    gradient = jax.grad(loss)(tiny.model(tiny.PLAIN))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_weights_run_in_bfloat16_with_float32_attention():
    model, images = tiny.model(tiny.ROPE), tiny.images()
    half = cast(model, jnp.bfloat16)
    out = jaxvit.forward(half, images, capture="attention")
    assert half.rope_periods[...].dtype == jnp.float32
    assert out.tokens.dtype == jnp.bfloat16
    assert out.captured["attention"].dtype == jnp.float32
    full = jaxvit.forward(model, images).tokens
    assert jnp.linalg.norm(out.tokens - full) < 0.03 * jnp.linalg.norm(full)


@pytest.mark.parametrize("name", jaxvit.MODELS)
def test_every_released_model_has_the_tokens_its_config_says(name):
    config = jaxvit.MODELS[name]
    height, width = 2 * config.patch_size, 3 * config.patch_size
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)

    def shapes(model, images):
        out = jaxvit.forward(model, images, capture="attention_flow")
        return out.patches, out.registers, out.captured["attention_flow"]

    patches, registers, flow = jax.eval_shape(shapes, abstract(name), images)
    assert patches.shape == (1, 6, config.width)
    assert registers.shape == (1, config.registers, config.width)
    groups = config.registers + 2
    assert flow.shape == (config.depth, 1, config.heads, groups, groups)


# millions of parameters as the model cards give them (backbone, to the precision printed there)
PUBLISHED_SIZES = {
    "dino_vits16": 21, "dino_vitb16": 85, "dinov2_vits14": 21, "dinov2_vitb14": 86, "dinov2_vitl14": 300, "dinov2_vitg14": 1100,
    "dinov3_vits16": 21, "dinov3_vits16plus": 29, "dinov3_vitb16": 86, "dinov3_vitl16": 300, "dinov3_vith16plus": 840,
    "dinov3_vit7b16": 6716,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_parameter_counts_are_the_published_ones(name):
    millions = sum(leaf.size for leaf in jax.tree.leaves(abstract(name))) / 1e6
    assert abs(millions / PUBLISHED_SIZES[name] - 1) < 0.055


def test_normalise_is_the_published_rule():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    for name in ("dinov2_vits14", "dinov3_vitl16_sat493m"):
        config = jaxvit.MODELS[name]
        want = (images / 255 - np.array(config.pixel_mean)) / np.array(config.pixel_std)
        np.testing.assert_allclose(jaxvit.normalise(images, config), want, atol=1e-6)
    assert jaxvit.MODELS["dinov3_vitl16_sat493m"].pixel_mean != jaxvit.MODELS["dinov3_vitl16"].pixel_mean


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.create("dinov2_vits15"), "unknown model"),
        (lambda: jaxvit.forward(tiny.model(), jnp.ones((1, 18, 16, 3))), "for example to 16x16"),
        (lambda: jaxvit.forward(tiny.model(), jnp.ones((1, 0, 16, 3))), "no multiple"),
        (lambda: jaxvit.forward(tiny.model(), np.ones((1, 16, 16, 3), np.uint8)), "jaxvit.normalise"),
        (lambda: jaxvit.forward(tiny.model(), jnp.ones((1, 3, 16, 16))), r"\[batch, height, width, 3\]"),
        (lambda: jaxvit.forward(tiny.model(), tiny.images(), capture="atention"), "unknown capture"),
        (lambda: jaxvit.forward(tiny.model(), tiny.images(), valid=np.ones(3, bool)), "one entry per image"),
        (lambda: jaxvit.normalise(np.ones((4, 4, 3)), tiny.CONFIG), "uint8"),
        (lambda: jaxvit.normalise(np.ones((4, 4, 4), np.uint8), tiny.CONFIG), "height, width, 3"),
        (lambda: jaxvit.ViTConfig(4, 24, 1, 5, 24), "do not divide"),
    ],
)
def test_bad_input_says_what_is_wrong_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_jensen_shannon_is_scipys_also_where_attention_moves_altogether():
    """From equal rows over shares of 1e-30 to disjoint ones: scipy's in double precision, never infinite."""
    from scipy.spatial.distance import jensenshannon

    generator = np.random.default_rng(0)
    p = np.exp(generator.normal(size=(40, 9)) * np.geomspace(0.1, 30, 40)[:, None])
    q = np.exp(generator.normal(size=(40, 9)) * np.geomspace(0.1, 30, 40)[:, None])
    p, q = (np.maximum(x / x.sum(axis=1, keepdims=True), 1e-30).astype(np.float32) for x in (p, q))
    p[0], q[0] = np.eye(9)[0], np.eye(9)[1]
    q[1] = p[1]
    found = np.asarray(attention.jensen_shannon(jnp.asarray(p), jnp.asarray(q)))
    want = jensenshannon(p.astype(np.float64), q.astype(np.float64), base=2, axis=1) ** 2
    np.testing.assert_allclose(found, np.nan_to_num(want), atol=1e-6)
    assert found[0] == 1
    assert found[1] == 0


def test_a_truncated_model_ends_after_a_block():
    """Its output is the block's, and its read tokens are those under the whole model's final norm."""
    model, images = tiny.model(), tiny.images()
    short = truncated(model, 2)
    outputs = jaxvit.forward(model, images, capture="block_output").captured["block_output"]
    found = jaxvit.forward(short, images)
    np.testing.assert_allclose(found.prenorm, outputs[1], atol=1e-6)
    np.testing.assert_allclose(found.tokens, model.final_norm(outputs[1]), atol=1e-6)
    assert short.config.depth == 2
    assert model.config.depth == 3
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        truncated(model, 4)
