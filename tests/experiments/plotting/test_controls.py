"""Controls that choose what a figure shows."""

from __future__ import annotations

import re

from experiments.plotting.controls import Axis, not_shown, view, views, words

MODELS = Axis("model", {"m0": "first", "m1": "<second>"}, group="model")
BLOCKS = Axis("block", {"0": "0", "1": "1", "2": "2"}, chosen="2", slider=True)


def test_a_panel_belongs_to_an_option_of_every_axis_that_is_chosen_from():
    alone = Axis("model", {"m0": "first"})
    assert words((MODELS, BLOCKS), "m1", None) == "m1 *"
    assert words((alone, BLOCKS), "m0", "1") == "1"
    assert view((alone,), "m0") == 'data-view=""'
    assert "radio" not in views("figure", (alone, BLOCKS), "")


def test_few_short_names_stand_side_by_side_and_more_in_a_list():
    few, many = (views("f", (Axis("image", {str(i): str(i + 1) for i in range(count)}, chosen="1"),), "") for count in (6, 30))
    assert few.count('type="radio"') == 6
    assert re.findall(r'value="(\d)" checked', few) == ["1"]
    assert many.count("<option") == 30
    assert re.findall(r'value="(\d)" selected', many) == ["1"]


def test_a_picture_of_an_option_stands_before_its_name():
    html = views("f", (Axis("image", {"0": "1", "1": "2"}, icons={"1": "<svg/>"}),), "")
    assert re.findall(r'value="(\d)"(?: checked)?>(.*?)</label>', html) == [("0", "1"), ("1", "<svg/>2")]


def test_names_are_text_and_every_control_has_one():
    html = views("figure", (MODELS, BLOCKS), "<p>body</p>")
    assert "&lt;second&gt;" in html
    assert "<legend>model</legend>" in html
    assert '<label class="slide"><output>block 2</output><input type="range" min="0" max="2" step="1" value="2" ' in html
    assert 'data-label="block" aria-label="block">' in html
    assert html.endswith("<p>body</p></div>")


def test_models_that_are_not_shown_are_named():
    assert not_shown(["a", "<b>"]) == '<p class="note">Not shown, not computed: a, &lt;b&gt;.</p>'
    assert not_shown([]) == ""
