"""Custom edits: a function at every site, in its layers alone; what it is known by; what is refused."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit.apply import apply
from jaxvit.forward import sweep_layers
from jaxvit.ops import BlockContext
from jaxvit.sites import HEAD_SITES, SITES, width_at
from tests.draws import normal
from tests.jaxvit import tiny
from tests.jaxvit.ablations import run

forward = importlib.import_module("jaxvit.forward")  # the attribute of the package is the function


def clipped(x, context, arrays):
    """A cap on the size of activations, of its own in each block."""
    return jnp.clip(x, -arrays["cap"], arrays["cap"])


def rooted(x, context, arrays):
    """Has no gradient at all where a token is 0 or less."""
    return jnp.sqrt(x)


def doubled(x, context, arrays):
    return 2 * x


def numbered(x, context, arrays):
    """CLS becomes the number of the block and the example's id."""
    return x.at[:, 0].set(100 * context.layer + context.example_ids[:, None].astype(x.dtype))


def too_short(x, context, arrays):
    return x[:, 1:]


def wide(x, context, arrays):
    return (x * 2).astype(jnp.float16)


CAPS = np.array([0.5, 0.1, 0.2], np.float32)


def block_of(ablation, site, layer=1):
    return jax.tree.map(lambda leaf: leaf[layer], jaxvit.lower(ablation, tiny.CONFIG, tiny.SIZE).ops[site])


@pytest.mark.parametrize("site", SITES)
def test_it_is_the_function_at_every_site_in_its_layers_with_the_arrays_of_the_layer(site):
    capture = {"x": lambda state: getattr(state.trace, site)}
    out = run(jaxvit.custom(clipped, site, [0, 2], {"cap": CAPS}), 2, capture=capture).captured["x"]
    clean = run(None, 2, capture=capture).captured["x"]
    np.testing.assert_array_equal(out[0], np.clip(clean[0], -0.5, 0.5))
    assert np.abs(out[1]).max() > 0.2
    assert np.abs(out[2]).max() == np.float32(0.2)
    assert out.shape[-2:] == ((3, 8) if site in HEAD_SITES else (tiny.LAYOUT.tokens, width_at(site, tiny.CONFIG)))


def test_it_knows_the_block_and_the_examples():
    out = run(jaxvit.custom(numbered, layers="1-2"), 2, capture="cls").captured["cls"]
    np.testing.assert_array_equal(out[1:, :, 0], [[200, 201], [300, 301]])


def test_it_stands_in_turn_with_other_edits_and_in_every_kind_of_run():
    model, images = tiny.model(), tiny.images(2)

    def ablation(**where):
        return jaxvit.constant("cls", np.ones(24), **where) & jaxvit.custom(doubled, **where) & jaxvit.zero("registers", **where)

    ours = jaxvit.forward(model, images, ablation(layers=[0, 1])).tokens
    built_in = jaxvit.constant("cls", np.ones(24), [0, 1]) & jaxvit.scale(["cls", "registers", "patches"], 2, [0, 1])
    np.testing.assert_allclose(ours, run(built_in & jaxvit.zero("registers", [0, 1]), 2).tokens, atol=5e-6)
    swept = sweep_layers(model, images, ablation()).tokens
    pair = jaxvit.contrast(model, images, ablation(layers=-1))
    np.testing.assert_allclose(swept[2], pair.ablated.tokens, atol=5e-6)
    np.testing.assert_allclose(swept[0], run(ablation(layers=0), 2).tokens, atol=5e-6)
    np.testing.assert_allclose(pair.clean.tokens, run(None, 2).tokens, atol=2e-6)


def test_stacked_conditions_are_the_single_ones():
    ablations = [
        jaxvit.custom(clipped, layers=[1], arrays={"cap": CAPS}),
        jaxvit.Ablation(),
        jaxvit.custom(clipped, arrays={"cap": 2 * CAPS}) & jaxvit.custom(doubled, layers=[0]),
        jaxvit.zero("cls"),
    ]
    edits = jaxvit.stack(ablations, tiny.model(), tiny.SIZE)
    out = jax.vmap(lambda e: jaxvit.forward(tiny.model(), tiny.images(), e).tokens)(edits)
    for got, ablation in zip(out, ablations, strict=True):
        np.testing.assert_allclose(got, run(ablation).tokens, atol=5e-6)


def test_a_function_that_has_no_gradient_reaches_none_outside_its_layers():
    """Where a result is chosen after both are computed, its gradient is NaN in all layers."""
    model, images = tiny.model(), tiny.images(2)
    edits = jaxvit.lower(jaxvit.custom(rooted, layers=[]), model, tiny.SIZE)

    def loss(images):
        return jaxvit.forward(model, images, edits).cls.sum()

    np.testing.assert_allclose(jax.grad(loss)(images), jax.grad(lambda i: jaxvit.forward(model, i).cls.sum())(images), atol=1e-5)


@pytest.mark.parametrize("site", ["value", "block_output"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_gradient_of_its_mask_is_result_minus_token_and_it_is_differentiated(site, strength):
    (op,) = block_of(jaxvit.custom(clipped, site, arrays={"cap": CAPS}), site)
    x = normal(3, 2, tiny.LAYOUT.tokens, *((3, 8) if site in HEAD_SITES else (24,)))
    weight = normal(4, *x.shape)
    context = BlockContext(jnp.asarray(1), None, None, None, tiny.LAYOUT)

    def loss(mask, x, cap):
        op_ = dataclasses.replace(op, mask=mask, arrays={"cap": cap})
        return (apply((op_,), x, context, site) * weight).sum()

    to_mask, to_x, to_cap = jax.grad(loss, argnums=(0, 1, 2))(op.mask * strength, x, op.arrays["cap"])
    x, w = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    np.testing.assert_allclose(to_mask, (w * (np.clip(x, -0.1, 0.1) - x)).sum(axis=others), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_x, w * (1 - strength + strength * (np.abs(x) < 0.1)), atol=1e-6)
    np.testing.assert_allclose(to_cap, strength * (w * np.sign(x) * (np.abs(x) > 0.1)).sum(), rtol=1e-4, atol=1e-5)


def test_arrays_and_layers_of_a_function_are_one_program():
    model, images = tiny.model(), tiny.images(3, seed=81)
    forward._forward.clear_cache()
    for scale, layers in ((1, "all"), (2, [0]), (3, -1)):
        jaxvit.forward(model, images, jaxvit.custom(clipped, "value", layers, {"cap": scale * CAPS}))
    assert forward._forward._cache_size() == 1


def test_the_result_is_cast_to_the_type_of_the_tokens():
    np.testing.assert_array_equal(run(jaxvit.custom(wide, layers=[2])).prenorm, np.float32(np.float16(2 * run(None).prenorm)))


def test_json_names_the_function_and_imports_nothing():
    ablation = jaxvit.custom(clipped, "value", [1], {"cap": CAPS}) & jaxvit.custom(lambda x, c, a: x, version="2")
    name = "tests.jaxvit.test_custom.clipped"
    entry = json.loads(ablation.to_json())["replacements"][0]
    assert (entry["function"]["name"], list(entry["arrays"])) == (name, ["cap"])
    with pytest.raises(ValueError, match=f'names function {name}, which was not given; pass functions={{"{name}": function}}'):
        jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays)
    again = jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays, ablation.functions)
    assert again == ablation
    assert hash(again) == hash(ablation)
    np.testing.assert_array_equal(run(again).tokens, run(ablation).tokens)
    with pytest.raises(ValueError, match=f'the function given for "{name}" has another source'):
        jaxvit.Ablation.from_json(ablation.to_json(), ablation.arrays, ablation.functions | {name: doubled})
    assert str(ablation) == (
        f"custom({name}, cap) at value of block 1 & "
        'custom(tests.jaxvit.test_custom.test_json_names_the_function_and_imports_nothing.<locals>.<lambda>, version="2") '
        "at block_output of all blocks"
    )


def test_equal_definitions_are_equal_and_a_version_or_an_array_makes_another():
    assert jaxvit.custom(clipped, arrays={"cap": CAPS}) == jaxvit.custom(clipped, arrays={"cap": CAPS.copy()})
    different = {jaxvit.custom(doubled), jaxvit.custom(doubled, version="2"), jaxvit.custom(rooted), jaxvit.custom(clipped)}
    different |= {jaxvit.custom(clipped, arrays={"cap": CAPS}), jaxvit.custom(clipped, arrays={"cap": 2 * CAPS})}
    assert len(different) == len({a.to_json() for a in different}) == 6
    assert jaxvit.custom(jax.jit(doubled)).replacements[0].function.source == jaxvit.custom(doubled).replacements[0].function.source


def test_two_lambdas_of_one_version_are_two_programs():
    """Their definitions are equal because the user says so; what runs is what was passed."""
    two, three = (jaxvit.custom(lambda x, c, a, f=f: f * x, layers=[2], version="1") for f in (2, 3))
    clean = np.asarray(run(None).prenorm)
    for ablation, factor in ((two, 2), (three, 3)):
        np.testing.assert_allclose(run(ablation).prenorm, factor * clean, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jaxvit.custom(lambda x, c, a: x), r'<lambda> does not say what it does, or there is none; pass version="1"'),
        (lambda: jaxvit.custom(functools.partial(clipped, context=1)), r"test_custom\.clipped does not say what it does"),
        (lambda: jaxvit.custom(abs), "builtins.abs does not say what it does"),
        (lambda: jaxvit.custom(tiny.CONFIG), "custom takes a function"),
        (lambda: jaxvit.custom("clipped"), "custom takes a function"),
        (lambda: jaxvit.custom(doubled, version=2), "version is a string"),
        (lambda: jaxvit.custom(doubled, "output"), "unknown site"),
        (
            lambda: jaxvit.lower(jaxvit.custom(clipped, arrays={"cap": CAPS[:2]}), tiny.CONFIG, 16),
            r'array "cap" of .* but this model has 3',
        ),
        (
            lambda: jaxvit.lower(jaxvit.custom(clipped, arrays={"cap": 1.0}), tiny.CONFIG, 16),
            r"has shape \[1\], but this model has 3 blocks",
        ),
        (lambda: run(jaxvit.custom(too_short)), r'too_short returned shape \[4, 14, 24\] at "block_output", where x has \[4, 15, 24\]'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_says_what_to_do(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
