"""Dots with intervals: small multiples, in each a line for each entry, with its name at the left and its number at the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from experiments.plotting import svg
from experiments.plotting.escape import escaped, joined

_LINE = 19  # pixels from one line to the next
_TOP = 26  # above the first line: the heading
_NAMES = 150  # pixels of the names at the left, at most


class Entry(NamedTuple):
    """One line of a panel.

    Attributes:
        name: at its left, as text.
        words: what stands in the place of a number that there is none of, or that is no finding.
        value, low, high: the dot and the ends of its interval; a dot alone where there is none.
        number: at its right, as text.
        kind: class of the mark: "costs", "gains", "same", "value" of what is no difference, "sum" of what was added up.
        says: what the mark says, as text.
    """

    name: str
    words: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    number: str = ""
    kind: str = "same"
    says: str = ""


class Panel(NamedTuple):
    """One of the small multiples.

    Attributes:
        heading: as text.
        entries: its lines.
        unit: of its axis, where the caption of the figure does not say it.
        ends: of its axis; by default what its entries need.
        reference: a value that a dashed line marks, as that of the full condition.
    """

    heading: str
    entries: Sequence[Entry]
    unit: str = ""
    ends: tuple[float, float] | None = None
    reference: float | None = None


def extent(panels: Sequence[Panel], least: float = 1.0, around: float = 0.0) -> tuple[float, float]:
    """The ends of an axis that all entries of some panels fit on; see `svg.span`."""
    return svg.span((end for panel in panels for e in panel.entries for end in (e.value, e.low, e.high) if end is not None), least, around)


def figure(panels: Sequence[Panel], about: str, caption: str) -> str:
    """Panels side by side as far as there is room, and a line on those that have no number; empty where there are none at all.

    Args:
        about: whose they are, as text.
        caption: as HTML.
    """
    drawn = [panel for panel in panels if any(entry.value is not None for entry in panel.entries)]
    entries = [entry for panel in drawn for entry in panel.entries]
    names = min(_NAMES, 4 + max((svg.width_of(entry.name) for entry in entries), default=0))
    numbers = 6 + max((svg.width_of(entry.number) for entry in entries), default=0)
    body = "".join(svg.written(_panel(panel, about, names, numbers)) for panel in drawn)
    box = f'<div class="charts" tabindex="0" role="group" aria-label="{escaped(about)}">{body}</div>'
    figure = f"<figure><figcaption>{caption}</figcaption>{box}</figure>" if drawn else ""
    return figure + _unnumbered([panel for panel in panels if panel not in drawn])


def _unnumbered(panels: Sequence[Panel]) -> str:
    """What stands in the place of the numbers of some panels, as one line."""
    by_words: dict[str, list[str]] = {}
    for panel in panels:
        by_words.setdefault(" or ".join(dict.fromkeys(entry.words for entry in panel.entries)), []).append(panel.heading)
    lines = "; ".join(f"{escaped(words)}: {escaped(', '.join(headings))}" for words, headings in by_words.items())
    return f'<p class="note">Without a number here, {lines}.</p>' if lines else ""


def _panel(panel: Panel, about: str, names: float, numbers: float) -> Element:
    """One of the small multiples, with so many pixels for names and numbers."""
    bottom = _TOP + _LINE * len(panel.entries)
    height = bottom + (36 if panel.unit else 20)
    root = svg.drawing(svg.WIDTH, height, joined(about, panel.heading, by=": "), _described(panel), "chart dots")
    scale = svg.Scale(*(panel.ends or extent([panel], 1e-3)), names + 14, svg.WIDTH - numbers - 8)
    svg.text(root, 0, 14, panel.heading, kind="head", room=svg.WIDTH)
    svg.axis_across(root, scale, _TOP - 2, bottom, panel.unit)
    if panel.reference is not None:
        svg.line(root, scale(panel.reference), _TOP - 2, scale(panel.reference), bottom, "reference")
    for index, entry in enumerate(panel.entries):
        _entry(root, entry, scale, _TOP + _LINE * (index + 0.5), names)
    return root


def _entry(root: Element, entry: Entry, scale: svg.Scale, y: float, names: float) -> None:
    svg.text(root, 0, y + 4, entry.name, room=names)
    if entry.value is None:
        svg.text(root, scale.start + 4, y + 4, entry.words, kind="soft over")
        return
    interval(root, scale, y, (entry.value, entry.low, entry.high), entry.kind, entry.says)
    svg.text(root, svg.WIDTH, y + 4, entry.number, "end")


def interval(
    parent: Element, scale: svg.Scale, y: float, numbers: tuple[float, float | None, float | None], kind: str, says: str
) -> Element:
    """A dot, its interval where it has one, and what both say. `kind` is that of an `Entry`."""
    value, low, high = numbers
    mark = svg.group(parent, f"mark {kind}", says)
    if low is not None and high is not None:
        svg.line(mark, scale(low), y, scale(high), y)
    svg.dot(mark, scale(value), y)
    return mark


def _described(panel: Panel) -> str:
    """The numbers of a panel in one sentence."""
    return f"{'; '.join(joined(entry.name, entry.number or entry.words, by=': ') for entry in panel.entries)}."
