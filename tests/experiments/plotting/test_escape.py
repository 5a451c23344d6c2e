"""Strings of a user's on the page."""

from __future__ import annotations

import html
import re
import unicodedata

from experiments.plotting.escape import escaped, isolated, joined


def test_plain_text_stays_and_text_from_right_to_left_keeps_its_direction_to_itself():
    assert isolated("demo_reg & <b>") == "demo_reg & <b>"
    for name in ("שלום", "reg_عربي", "gnp.\u202emodel"):
        start, *text, end = isolated(name)
        assert [unicodedata.bidirectional(mark) for mark in (start, end)] == ["FSI", "PDI"]
        assert "".join(text) == name
    for text in ("a\u2069שלום", "\u2067a \u2069 b\u2069", "\u2067open"):
        assert len(re.findall("[\u2066-\u2069]", isolated(text))) == 2, "marks of the text that do not fit together are left out"


def test_names_side_by_side_stay_in_their_order():
    """Isolated names inside an isolated text: the direction of the whole is that of what stands outside of them."""
    assert joined("demo", "full") == "demo · full"
    text = joined("שלום", "zero_cls")
    assert text == f"{isolated('שלום')} · zero_cls"
    assert isolated(text) == f"\u2068{text}\u2069"


def test_markup_is_shown_as_it_is_written():
    name = '<img src=x onerror="alert(1)"> & <b>bold</b>'
    assert "<" not in escaped(name)
    assert html.unescape(escaped(name)) == name
