"""Strings of a user's as text of the page: names of models and conditions, notes, protocols."""

from __future__ import annotations

import html
import unicodedata

_ISOLATE, _END = "\u2068", "\u2069"
_TURNS = frozenset(("R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI", "FSI", "PDF", "PDI"))
"""Classes of characters that can change the direction of the text around them."""


def isolated(text: str) -> str:
    """The text, between marks that keep its direction from the text around it where it has characters that change it: those
    written from right to left, and overrides. An end of such marks in the text itself is left out: it would end these."""
    turns = any(unicodedata.bidirectional(character) in _TURNS for character in text)
    return f"{_ISOLATE}{text.replace(_END, '')}{_END}" if turns else text


def escaped(text: str) -> str:
    """The text as HTML and as a text of a plotly figure, both of which read markup: isolated, and with its markup shown as it is written.

    Quotes are left as they are (plotly shows their entities): not for attributes.
    """
    return html.escape(isolated(text), quote=False)
