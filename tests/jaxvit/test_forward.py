"""Running a model: the scan is a loop, contrast is two runs, a sweep is a run for every block; JAX's transformations; bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit.forward import sweep_layers
from jaxvit.vit import abstract, cast
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


ABLATIONS = {
    "zero registers at the output of a block": lambda **at: jaxvit.zero("registers", **at),
    "zero random patches at its input and what attention adds to CLS": lambda **at: (
        jaxvit.zero(jaxvit.random_patches(3, seed=3), at="block_input", **at) & jaxvit.zero("cls", at="attention_output", **at)
    ),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_sweep_over_layers_is_a_run_for_every_layer(name):
    ablation = ABLATIONS[name]
    model, images, ids = tiny.model(), tiny.images(2), tiny.ids(2)
    swept = sweep_layers(model, images, ablation(), ids)
    assert swept.patches.shape == (tiny.CONFIG.depth, 2, tiny.LAYOUT.patches, tiny.CONFIG.width)
    runs = jaxvit.stack([ablation(layers=[layer]) for layer in range(tiny.CONFIG.depth)], model, tiny.SIZE)
    single = jax.vmap(lambda edits: jaxvit.forward(model, images, edits, example_ids=ids))(runs)
    np.testing.assert_allclose(swept.tokens, single.tokens, atol=5e-6)
    np.testing.assert_allclose(swept.prenorm, single.prenorm, atol=5e-6)
    clean = jaxvit.forward(model, images).tokens
    assert np.abs(np.asarray(swept.tokens) - clean).max(axis=(1, 2, 3)).min() > 1e-2


def test_a_sweep_refuses_what_forward_refuses():
    with pytest.raises(ValueError, match="example_ids"):
        sweep_layers(tiny.model(), tiny.images(2), jaxvit.shuffle("registers"))


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
