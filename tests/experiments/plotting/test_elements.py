"""Pieces of a page."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from experiments.plotting.elements import grid, interval_cell, picture, plot
from tests.experiments.plotting.made_rows import PLAIN, made_row


def test_the_same_figure_is_the_same_text_and_another_has_another_id():
    one, same, other = (plot(go.Figure(go.Bar(x=["a"], y=[value]))) for value in (1, 1, 2))
    assert one == same
    ids = [re.findall(r'<div id="([^"]+)"', text) for text in (one, other)]
    assert ids[0] != ids[1]


def test_a_picture_holds_its_pixels_and_its_text():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tag = picture(pixels, "a patch")
    assert 'alt="a patch"' in tag
    (encoded,) = re.findall(r"base64,([^\"]+)", tag)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), pixels)


def test_shares_are_pixels_and_what_is_outside_is_cut_off():
    assert picture(np.array([[[-1.0, 0.5, 2.0]]]), "") == picture(np.array([[[0, 128, 255]]], np.uint8), "")


def test_a_grid_is_as_wide_as_its_longest_line():
    html = grid([("one", ["a"]), ("three", ["b", "c", "d"])])
    assert "repeat(3, 1fr)" in html
    assert html.endswith("<div>one</div>a<div>three</div>bcd</div></div>")


def test_a_cell_shows_value_and_interval_in_their_unit_or_nothing():
    assert interval_cell(made_row(), ".1f") == "<td>50.0<small>40.0 – 60.0</small></td>"
    assert interval_cell(made_row(**PLAIN)) == "<td>0.500<small>0.400 – 0.600</small></td>"
    assert interval_cell(None) == "<td></td>"
