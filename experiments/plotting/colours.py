"""Styles that tell the entries of a figure apart, and the font of all figures."""

from __future__ import annotations

from typing import NamedTuple

FONT = {"family": "system-ui, sans-serif", "size": 13}
_COLOURS = ("#1f4e79", "#c0504d", "#7f9f3f", "#7b5ea7", "#d9903d", "#3a9a9a", "#8c6d5a", "#555555", "#b05fa0")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_PATTERNS = ("", "/", "x", ".", "-", "|")


class Style(NamedTuple):
    """How one entry of a figure is drawn: its colour, the dash of its line, the pattern of its bar."""

    colour: str
    dash: str
    pattern: str


def style(index: int) -> Style:
    """The style of the entry with this index: the first 54 differ in colour or dash, and in colour or pattern; later ones repeat."""
    repeat, colour = divmod(index, len(_COLOURS))
    return Style(_COLOURS[colour], _DASHES[repeat % len(_DASHES)], _PATTERNS[repeat % len(_PATTERNS)])
