"""Attribution against difference quotients of single edits, and its integral against the effect of all of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from jaxvit.vit import cast
from tests.jaxvit import tiny

DEPTH, HEADS, TOKENS = tiny.CONFIG.depth, tiny.CONFIG.heads, tiny.LAYOUT.tokens
EVERYONE = ["cls", "registers", "patches"]


def metric(output):
    return output.cls @ jnp.linspace(-1, 1, 24) + (output.patches @ jnp.linspace(1, 0, 24)).mean(axis=-1)


VALUES = {"block_output": np.linspace(0.1, 1, DEPTH * 4 * 24, dtype=np.float32).reshape(DEPTH, 4, 24)}
MOMENTS = jaxvit.Moments(VALUES, VALUES, 8, tiny.SIZE)
ABLATIONS = {
    "constant": (jaxvit.constant(EVERYONE, np.linspace(-1, 1, 24)), "tokens"),
    "mean in the stream and in neurons": (
        jaxvit.mean("registers", MOMENTS) & jaxvit.zero(EVERYONE, at="mlp_hidden", channels=[0, 5, 7]),
        "tokens",
    ),
    "values by head": (jaxvit.zero(EVERYONE, at="value", heads=[0, 2]), "heads"),
    "random patches": (jaxvit.constant(jaxvit.random_patches(5, 1), np.linspace(-1, 1, 24)), "tokens"),
    "a cut": (jaxvit.cut(EVERYONE, "registers[1]", layers=[0, 2]), "tokens"),
    "a cut by head": (jaxvit.cut("cls", "patches", heads=[1, 2], mass="lost"), "heads"),
    "a patch": (jaxvit.patch("registers", "donor"), "tokens"),
}
GIVEN = {"donor": np.linspace(-1, 1, 2 * 2 * 24, dtype=np.float32).reshape(2, 2, 24)}


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_entry_is_a_difference_quotient_of_one_edit(name):
    ablation, over = ABLATIONS[name]
    model, images, ids = tiny.model(), tiny.images(2), tiny.ids(2)
    given = GIVEN if name == "a patch" else None
    got = np.asarray(jaxvit.attribution(model, images, metric, ablation, over, example_ids=ids, given=given))
    assert got.shape == (DEPTH, 2, TOKENS) + ((HEADS,) if over == "heads" else ())
    edits = jaxvit.lower(ablation, model, tiny.SIZE)

    @jax.jit
    def value(chosen):
        """The metric where one token of one block is edited by a part."""

        def part(place, mask):
            if place == "attention":
                return mask * (chosen[:, :, None] if over == "tokens" else chosen.sum(axis=-1)[:, :, None])
            return mask * (chosen if over == "tokens" else chosen.sum(axis=-1))

        masks = {place: tuple(part(place, mask) for mask in masks) for place, masks in edits.masks.items()}
        return metric(jaxvit.forward(model, images, edits.with_masks(masks), example_ids=ids, given=given))

    if over == "heads":  # strengths of single heads are no masks of an ablation: their sum over heads is that of the token
        got = got.sum(axis=-1)
    rng = np.random.default_rng(0)
    for layer, token in zip(rng.integers(0, DEPTH, 6), [0, 1, 2, *rng.integers(3, TOKENS, 3)], strict=True):
        chosen = np.zeros((DEPTH, TOKENS), np.float32)
        chosen[layer, token] = 2e-2
        if over == "heads":
            chosen = chosen[..., None]
        quotient = (np.asarray(value(chosen)) - np.asarray(value(-chosen))) / 4e-2
        np.testing.assert_allclose(got[layer, :, token], quotient, rtol=0.02, atol=2e-4)
    assert np.abs(got).max() > 1e-3


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_integral_over_strengths_sums_to_the_joint_effect(name):
    ablation, over = ABLATIONS[name]
    model, images, ids = tiny.model(), tiny.images(2), tiny.ids(2)
    given = GIVEN if name == "a patch" else None
    effects = jaxvit.attribution(model, images, metric, ablation, over, steps=64, example_ids=ids, given=given)
    edited, clean = jaxvit.forward(model, images, ablation, example_ids=ids, given=given), jaxvit.forward(model, images)
    joint = np.asarray(metric(edited) - metric(clean))
    np.testing.assert_allclose(effects.sum(axis=tuple(i for i in range(effects.ndim) if i != 1)), joint, rtol=0.02, atol=0.02)


def test_heads_of_a_token_sum_to_the_token():
    model, images, ids = tiny.model(), tiny.images(2), tiny.ids(2)
    by_head, by_token = (
        np.asarray(jaxvit.attribution(model, images, metric, jaxvit.zero(EVERYONE, at="value"), over, example_ids=ids))
        for over in ("heads", "tokens")
    )
    np.testing.assert_allclose(by_head.sum(axis=-1), by_token, atol=1e-5)


def test_each_head_is_what_the_edit_of_that_head_alone_does():
    model, images = tiny.model(), tiny.images(2)
    for edit in (
        lambda heads: jaxvit.zero(EVERYONE, at="value", heads=heads),
        lambda heads: jaxvit.cut("cls", "patches", heads=heads, mass="lost"),
    ):
        by_head = jaxvit.attribution(model, images, metric, edit(range(HEADS)), "heads")
        for head in range(HEADS):
            np.testing.assert_allclose(by_head[..., head], jaxvit.attribution(model, images, metric, edit([head])), atol=1e-5)


def test_padding_and_tokens_that_are_not_edited_have_no_effect():
    model, images = tiny.model(), tiny.images(3)
    effects = np.array(jaxvit.attribution(model, images, metric, jaxvit.zero("registers", [1]), valid=[True, False, True]))
    assert effects[1, [0, 2], 1:3].all()
    effects[1, [0, 2], 1:3] = 0
    assert not effects.any()


def test_masks_are_read_softened_and_put_back():
    model, images = tiny.model(), tiny.images(2)
    edits = jaxvit.lower(jaxvit.zero("cls", [1]) & jaxvit.cut("patches", "cls", mass="lost"), model, tiny.SIZE)
    assert {place: [mask.shape for mask in masks] for place, masks in edits.masks.items()} == {
        "block_output": [(DEPTH, TOKENS)],
        "attention": [(DEPTH, TOKENS, 1)],
    }
    again = jaxvit.forward(model, images, edits.with_masks(edits.masks))
    np.testing.assert_array_equal(again.tokens, jaxvit.forward(model, images, edits).tokens)
    np.testing.assert_allclose(jaxvit.forward(model, images, edits.scaled(0.0)).tokens, jaxvit.forward(model, images).tokens, atol=1e-6)
    with pytest.raises(ValueError, match="masks"):
        edits.with_masks({"block_output": edits.masks["block_output"]})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ablation": jaxvit.shuffle("cls")}, "attribution of a shuffle"),
        ({"over": "head"}, 'over is "tokens" or "heads"'),
        ({"over": "heads"}, 'over="heads" is not possible at "block_output"'),
        ({"steps": 0}, "steps is 0"),
        ({"metric": lambda output: output.cls}, "one number for each of 2 images"),
        ({"model": "bfloat16"}, "float32 model"),
    ],
)
def test_what_is_not_possible_is_refused(change, says):
    call = {"model": tiny.model(), "images": tiny.images(2), "metric": metric, "ablation": jaxvit.zero("cls"), "example_ids": [1, 2]}
    if "model" in change:
        change = {"model": cast(tiny.model(), change["model"])}
    with pytest.raises(ValueError, match=says) as error:
        jaxvit.attribution(**(call | change))
    assert "\n" not in str(error.value)
