"""Strings of a user's as text of the page: names of models and conditions, notes, protocols."""

from __future__ import annotations

import html
import unicodedata

_ISOLATE, _END = "\u2068", "\u2069"
_ISOLATES = frozenset(("\u2066", "\u2067", _ISOLATE))
_TURNS = frozenset(("R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI", "FSI", "PDF", "PDI"))
"""Classes of characters that can change the direction of the text around them."""


def isolated(text: str) -> str:
    """The text, between marks that keep its direction from the text around it where it has characters that change it: those
    written from right to left, and overrides. Such marks in the text itself stay where each has its end; else they are left out."""
    if not any(unicodedata.bidirectional(character) in _TURNS for character in text):
        return text
    if not _closed(text):
        text = "".join(character for character in text if character not in _ISOLATES and character != _END)
    return f"{_ISOLATE}{text}{_END}"


def _closed(text: str) -> bool:
    """Whether every mark that begins an isolation has its end, and every end its beginning."""
    depth = 0
    for character in text:
        depth += (character in _ISOLATES) - (character == _END)
        if depth < 0:
            return False
    return depth == 0


def joined(*parts: str, by: str = " · ") -> str:
    """Names side by side as one text, in their order also where one is written from right to left."""
    return by.join(map(isolated, parts))


def escaped(text: str) -> str:
    """The text as HTML, also as the value of an attribute: isolated, and with its markup shown as it is written."""
    return html.escape(isolated(text))
