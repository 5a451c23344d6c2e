"""Drawings: scales against closed forms, what is cut, and how letters are escaped."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree.ElementTree import fromstring

import pytest

from experiments.plotting import svg


def test_a_scale_is_a_straight_line_through_its_ends():
    scale = svg.Scale(-10, 30, 100, 300)
    assert [scale(value) for value in (-10, 0, 30)] == [100, 150, 300]
    upwards = svg.Scale(0, 1, 200, 0)
    assert upwards(0.25) == 150


@pytest.mark.parametrize(("low", "high"), [(-37.2, 4.1), (0, 1), (-0.003, 0.0021), (5, 980), (-1e-9, 1e-9)])
@pytest.mark.parametrize("most", [2, 4, 9])
def test_ticks_are_round_and_few_and_within_the_scale(low, high, most):
    numbers = svg.ticks(low, high, most)
    steps = {round(b - a, 15) for a, b in pairwise(numbers)}
    assert len(numbers) <= most + 1
    assert all(low - 1e-12 <= number <= high + 1e-12 for number in numbers)
    step = min(steps, default=1)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert any(math.isclose(mantissa, factor, rel_tol=1e-5) for factor in (1, 2, 5))
    assert low > 0 or 0 in numbers


@pytest.mark.parametrize(
    ("values", "ends"),
    [([], (-1, 1)), ([-20, -3], (-20, 0)), ([4.0], (0, 4)), ([-0.1, 0.2], (-1, 1)), ([-30, 0.2], (-30, 1))],
)
def test_an_axis_has_zero_and_all_numbers_and_small_ones_are_not_made_large(values, ends):
    low, high = svg.span(values)
    beyond = (ends[1] - ends[0]) / 20
    assert (low, high) == pytest.approx((ends[0] - beyond, ends[1] + beyond))
    assert svg.span([1 + value for value in values], around=1) == pytest.approx((1 + low, 1 + high))


def test_words_are_escaped_kept_apart_by_direction_and_cut_with_the_whole_beside():
    root = svg.drawing(100, 20, "<b> & co", 'a "description"')
    svg.text(root, 0, 10, "<i>" * 20, room=90)
    svg.text(root, 0, 10, "תמונה")
    read = fromstring(svg.written(root))
    assert [element.text for element in read][:2] == ["<b> & co", 'a "description"']
    cut, turned = read[2], read[3]
    assert cut.text.endswith("…")
    assert svg.width_of(cut.text) <= 90
    assert cut[0].text == "<i>" * 20
    assert turned.text == "\u2068תמונה\u2069"
    assert read.attrib["viewBox"] == "0 0 100 20"


def test_letters_as_wide_as_they_are_high_are_counted_as_such():
    assert svg.width_of("登録器") > 1.5 * svg.width_of("abc")
    assert svg.shortened("登録器" * 5, 60).endswith("…")


def test_24_series_are_told_apart_and_none_is_without_a_class():
    assert len({svg.series(index) for index in range(24)}) == 24
    assert svg.series(24) == svg.series(0)


@pytest.mark.parametrize(("low", "high", "expected"), [(-9, 3, [-5, 0]), (-1.1, 1.1, [-1, 0, 1]), (-60, 5, [-60, -40, -20, 0])])
def test_ticks_are_round_and_hold_zero(low, high, expected):
    assert svg.ticks(low, high, 4) == expected
