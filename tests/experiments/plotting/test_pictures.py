"""Pictures of patches: what is drawn is what was given."""

from __future__ import annotations

import re

import numpy as np
import pytest

from experiments.plotting.pictures import (
    RAMP,
    definitions,
    drawn,
    outline,
    photograph,
    ramp,
    ramp_bar,
    sheet,
    show_photograph,
    steps,
)
from tests.experiments.plotting.seen import files, piece

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("count", "shape"), [(1, (2, 3)), (70, (4, 3)), (33, (3, 3, 3))])
def test_every_picture_of_a_sheet_is_the_one_that_was_given(count, shape):
    pictures = RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)
    made, definition = sheet("mine", pictures)
    for index, picture in enumerate(pictures):
        seen = piece(drawn(*shape[:2], made.show(index), "text"), definition)
        np.testing.assert_array_equal(seen, RAMP[picture] if picture.ndim == 2 else picture)


def test_the_ramp_goes_from_dark_to_bright_and_a_colour_is_a_number():
    """As `figures.js` needs to read numbers off pictures."""
    assert len({tuple(colour) for colour in RAMP}) == 256
    luminance = RAMP @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -0.6).all()
    np.testing.assert_array_equal(files(ramp())["ramp"][0], RAMP)


def test_numbers_are_steps_between_the_ends_and_equal_numbers_have_no_steps():
    np.testing.assert_array_equal(steps(np.array([1.0, 2.0, 3.0, 9.0, 0.0]), 1.0, 3.0), [0, 128, 255, 255, 0])
    np.testing.assert_array_equal(steps(np.full((2, 2), 5.0), 5.0, 5.0), np.zeros((2, 2)))


def test_a_photograph_is_nearly_what_was_given_and_a_large_one_is_made_smaller():
    smooth = np.stack([np.add.outer(np.arange(64), np.arange(64)) + shade for shade in (0, 50, 100)], axis=-1).astype(np.uint8)
    assert np.abs(files(photograph("p", smooth))["p"].astype(int) - smooth).mean() < 2
    large = np.repeat(np.repeat(smooth, 7, axis=0), 14, axis=1)
    assert files(photograph("p", large))["p"].shape == (84, 168, 3)


def test_an_outline_is_the_patch_and_a_photograph_lies_under_all_of_them():
    assert 'x="5.05" y="2.05" width="0.9" height="0.9"' in outline(2, 5)
    assert show_photograph("p", 3, 8) == '<use href="#p" transform="scale(8 3)"/>'


def test_texts_of_drawings_are_escaped_and_definitions_are_not_seen():
    assert 'aria-label="&lt;b&gt; &quot;x&quot;"' in drawn(2, 2, "", '<b> "x"')
    assert re.fullmatch(r'<svg class="definitions" width="0" height="0" aria-hidden="true">a</svg>', definitions(["a"]))
    assert ">1<svg" in ramp_bar("1", "<2>")
    assert "&lt;2&gt;" in ramp_bar("1", "<2>")
