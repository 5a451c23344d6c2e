"""Strings of a user's on the page."""

from __future__ import annotations

import html
import unicodedata

from experiments.plotting.escape import escaped, isolated


def test_plain_text_stays_and_text_from_right_to_left_keeps_its_direction_to_itself():
    assert isolated("demo_reg & <b>") == "demo_reg & <b>"
    for name in ("שלום", "reg_عربي", "gnp.\u202emodel"):
        start, *text, end = isolated(name)
        assert [unicodedata.bidirectional(mark) for mark in (start, end)] == ["FSI", "PDI"]
        assert "".join(text) == name
    assert isolated("\u2067open \u2069שלום").count("\u2069") == 1, "an end in the text does not end the isolation"


def test_markup_is_shown_as_it_is_written():
    name = '<img src=x onerror="alert(1)"> & <b>bold</b>'
    assert "<" not in escaped(name)
    assert html.unescape(escaped(name)) == name
