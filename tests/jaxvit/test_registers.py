"""Test-time registers: what they are when nobody reads them, and each rule of moving activations against its own words in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit.ops import BlockContext
from jaxvit.registers import neuron_mask, shift_layer_maximum, shift_neuron_maxima
from tests.draws import normal
from tests.jaxvit import tiny

CONFIGS = {"table": tiny.PLAIN, "rope": dataclasses.replace(tiny.ROPE, registers=0)}
LAYOUT = jaxvit.TokenLayout(2, 4, 3)
CHOSEN = [1, 4, 5]


@pytest.mark.parametrize("name", CONFIGS)
def test_registers_that_no_one_attends_to_change_nothing(name):
    model, images = tiny.model(CONFIGS[name]), tiny.images(2)
    more = jaxvit.with_registers(model, 2)
    x, rope = more.add_prefix(more.embed_patches(images), (4, 3)), more.rope((4, 3))
    np.testing.assert_array_equal(x[:, 1:3], 0)
    may_attend = np.ones((2, LAYOUT.tokens, LAYOUT.tokens), bool)
    may_attend[:, :, 1:3] = False
    for number in range(model.config.depth):
        block = jax.tree.map(lambda leaf, number=number: leaf[number], more.blocks)
        x = block(x, rope, attention_mask=may_attend).block_output
    tokens, clean = more.final_norm(x), jaxvit.forward(model, images)
    np.testing.assert_allclose(tokens[:, 0], clean.cls, atol=5e-6)
    np.testing.assert_allclose(tokens[:, 3:], clean.patches, atol=5e-6)


def test_they_are_registers_like_any_other(tmp_path):
    """Selected, ablated, calibrated and saved; the model itself stays as it was."""
    model, images = tiny.model(tiny.PLAIN), tiny.images(2)
    more = jaxvit.with_registers(model, 3)
    assert more.config == dataclasses.replace(tiny.PLAIN, registers=3)
    assert model.config.registers == 0
    assert model.register_tokens is None
    statistics = jaxvit.calibrate(more, [(images, None)])
    out = jaxvit.forward(more, images, jaxvit.zero("cls") & jaxvit.mean("registers[2]", statistics))
    assert out.registers.shape == (2, 3, 24)
    assert np.abs(out.patches - jaxvit.forward(model, images).patches).max() > 1e-3
    jaxvit.save(more, tmp_path / "more")
    np.testing.assert_array_equal(jaxvit.forward(jaxvit.load(tmp_path / "more"), images).tokens, jaxvit.forward(more, images).tokens)


def by_neuron(image):
    """The paper: for each register neuron, the highest activation over the tokens goes to the registers; it is zero elsewhere."""
    moved = image.copy()
    for neuron in CHOSEN:
        highest = max(image[token, neuron] for token in range(len(image)))
        for token in range(len(image)):
            moved[token, neuron] = highest if token in (1, 2) else 0
    return moved


def by_layer(image):
    """The code: one activation, the largest by magnitude with its sign; patches become zero, CLS is left alone."""
    moved = image.copy()
    largest = max((image[token, neuron] for token in range(len(image)) for neuron in CHOSEN), key=abs)
    for neuron in CHOSEN:
        for token in range(1, len(image)):
            moved[token, neuron] = largest if token in (1, 2) else 0
    return moved


RULES = {"shift_neuron_maxima": (shift_neuron_maxima, by_neuron), "shift_layer_maximum": (shift_layer_maximum, by_layer)}


@pytest.mark.parametrize("shift", ["as drawn", "all below zero", "all above zero"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_what_it_says(name, shift):
    function, in_words = RULES[name]
    x = np.asarray(normal(3, 4, LAYOUT.tokens, 7))
    x = {"as drawn": x, "all below zero": -np.abs(x), "all above zero": np.abs(x)}[shift]
    mask = np.isin(np.arange(7), CHOSEN)
    context = BlockContext(jnp.asarray(0), None, None, None, LAYOUT)
    got = jax.jit(function)(x, context, {"neurons": mask})
    np.testing.assert_array_equal(got, np.stack([in_words(image) for image in x]))
    np.testing.assert_array_equal(function(x, context, {"neurons": np.zeros(7, bool)}), x)
    gradient = jax.grad(lambda x: function(x, context, {"neurons": mask}).sum())(x)
    assert np.isfinite(gradient).all()
    assert function(x.astype(jnp.bfloat16), context, {"neurons": mask}).dtype == jnp.bfloat16


def test_neurons_are_named_by_block():
    mask = neuron_mask(tiny.model(), {0: [3], 2: [0, 47]})
    assert np.argwhere(mask).tolist() == [[0, 3], [2, 0], [2, 47]]
    assert mask.shape == (3, 48)


CONTEXT = BlockContext(jnp.asarray(0), None, None, None, jaxvit.TokenLayout(0, 4, 3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.with_registers(tiny.model(), 1), "trained with 2 registers"),
        (lambda: jaxvit.with_registers(tiny.model(tiny.PLAIN), 0), "count is 0"),
        (lambda: neuron_mask(tiny.CONFIG, {3: [0]}), "block 3 does not exist; this model has blocks 0 to 2"),
        (lambda: neuron_mask(tiny.CONFIG, {0: [-1]}), "neuron -1 does not exist; this model has neurons 0 to 47"),
        (lambda: shift_layer_maximum(jnp.ones((1, 13, 7)), CONTEXT, {"neurons": np.ones(7)}), "with_registers"),
        (
            lambda: shift_neuron_maxima(jnp.ones((1, 15, 7)), dataclasses.replace(CONTEXT, layout=LAYOUT), {"neurons": np.ones((3, 7))}),
            "mlp_hidden",
        ),
    ],
)
def test_bad_input_says_what_is_wrong_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
