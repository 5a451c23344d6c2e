"""A run that goes on from a block is the rest of the whole run."""

from __future__ import annotations

import numpy as np
import pytest

import jaxvit
from tests.jaxvit import tiny
from tests.jaxvit.ablations import statistics


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.ROPE])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_the_rest_of_a_run_is_that_of_the_whole_run(config, start):
    model, images, ids = tiny.model(config), tiny.images(2), tiny.ids(2)
    ablation = (
        jaxvit.zero("registers", at="value")
        & jaxvit.cut("cls", "patches[3]", layers=[1])
        & jaxvit.zero(jaxvit.random_patches(2))
        & jaxvit.patch("cls", "donor", layers=[2])
    )
    given = {"donor": np.ones((2, 1, config.width), np.float32)}
    captures = ["block_output", "attention_flow"]
    whole = jaxvit.forward(model, images, ablation, [*captures, stream_in], example_ids=ids, given=given)
    stream = whole.prenorm if start == config.depth else whole.captured["stream_in"][start]
    rest = jaxvit.resume(model, stream, tiny.SIZE, start, ablation, captures, example_ids=ids, given=given)
    np.testing.assert_allclose(rest.tokens, whole.tokens, atol=1e-6)
    for name in captures:
        np.testing.assert_allclose(rest.captured[name], whole.captured[name][start:], atol=1e-6)


def stream_in(state):
    return state.stream_in


def test_numbers_of_examples_are_those_of_the_run():
    model, images, ids = tiny.model(), tiny.images(4), tiny.ids(4)
    valid = np.array([True, True, True, False])
    ablation = jaxvit.noise("registers", statistics(), 3, layers=[2]) & jaxvit.shuffle("cls", 4, layers=[1])
    stream = jaxvit.forward(model, images, capture="block_output").captured["block_output"][0]
    rest = jaxvit.resume(model, stream, tiny.SIZE, 1, ablation, example_ids=list(ids), valid=valid)
    whole = jaxvit.forward(model, images, ablation, example_ids=ids, valid=valid)
    np.testing.assert_allclose(rest.tokens[:3], whole.tokens[:3], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"start": 4}, "this model has blocks 0 to 2, and 3 leaves the final norm alone"),
        ({"start": -1}, "start is -1"),
        ({"image_size": 32}, "for this model at 32x32 pixels"),
        ({"image_size": 15}, "multiple"),
        ({"example_ids": [1]}, "one entry per image"),
        ({"ablation": jaxvit.zero(jaxvit.random_patches(2))}, "pass example_ids"),
        ({"stream": np.zeros((2, 15, 23), np.float32)}, "15 tokens, 24 channels"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    call = {"model": tiny.model(), "stream": np.zeros((2, tiny.LAYOUT.tokens, 24), np.float32), "image_size": tiny.SIZE, "start": 1}
    with pytest.raises(ValueError, match=says) as error:
        jaxvit.resume(**(call | change))
    assert "\n" not in str(error.value)
