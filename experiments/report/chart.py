"""The chart of the summary as SVG: what zeroing CLS and zeroing the registers change in every main score, as dots with intervals.

Colours, fonts and line widths are those of `style.css`: the chart follows the light and the dark style, and needs no script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from experiments.demo import label
from experiments.plotting.escape import isolated, joined
from experiments.report.summary import Change, Verdict, verdict
from experiments.report.wording import signed

_LINE, _NAME = 20, 16  # pixels from one line of the chart to the next; of a line that holds a name alone
_TOP = 40  # above the first line: names of the panels, and numbers of the axis
_GAP = 14  # between panels
_CHARACTER, _BOLD = 6.8, 7.8  # pixels of an average one, at the 12 px of the labels and of headings
PANELS = {"zero_cls": "zero CLS", "zero_registers": "zero registers"}
"""Titles of the panels, of the conditions in their order."""


class _Plan(NamedTuple):
    """Where things are, in pixels: the whole width, that of the names at the left (where it is 0, names have lines of their own), and that
    of a panel; and the range of the axis."""

    width: int
    left: int
    panel: float
    low: float
    high: float

    def x(self, panel: int, points: float) -> float:
        share = (points - self.low) / (self.high - self.low)
        return self.start(panel) + share * self.panel

    def start(self, panel: int) -> float:
        return self.left + 2 + panel * (self.panel + _GAP)


def zeroing_chart(changes: Sequence[Change], models: Sequence[str], narrow: bool) -> str:
    """The chart as an SVG element, for a wide or a narrow screen.

    Args:
        changes: under the conditions of the two panels.
        models: in their order; those without changes are left out.
    """
    width, left = (328, 0) if narrow else (560, 184)
    low, high = _range(changes)
    plan = _Plan(width, left, (width - left - _GAP - 4) / len(PANELS), low, high)
    shown = [model for model in models if any(change.model == model for change in changes)]
    body = Element("g")
    y: float = _TOP
    for model in shown:
        y = _block(body, plan, [change for change in changes if change.model == model], y)
    height = int(y) + 40
    alternative = (
        f"Change in points of every main score of {joined(*map(label, shown), by=', ')}: left with CLS, right with all registers zeroed."
    )
    size = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    chart = Element("svg", {**size, "class": "narrow" if narrow else "wide", "role": "img", "aria-label": alternative})
    _axes(chart, plan, y)
    chart.append(body)
    _text(chart, (plan.left + width) / 2, height - 4, "change against full, points", "middle", "soft")
    return tostring(chart, encoding="unicode")


def _range(changes: Sequence[Change]) -> tuple[float, float]:
    """The ends of the axis: all intervals but those of numbers that hold by construction, 0, and a point on each side of it."""
    ends = [end for change in changes if not change.by_construction for end in (change.low, change.high)]
    low, high = min([-1.0, *ends]), max([1.0, *ends])
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _block(parent: Element, plan: _Plan, changes: Sequence[Change], y: float) -> float:
    """The lines of one model, global scores first; returns where they end."""
    by_cell = {(change.score, change.condition): change for change in changes}
    for dense in (False, True):
        scores = list(dict.fromkeys(change.score for change in changes if change.score.dense == dense))
        if scores:
            kind = ": dense scores" if dense else ": global scores"
            name = _short(label(changes[0].model), plan.width - _BOLD * len(kind), _BOLD)
            _text(parent, 2, y + 14, isolated(name) + kind, "start", "head")
            y += _LINE
        for score in scores:
            if plan.left:
                _text(parent, plan.left - 8, y + 14, isolated(_short(score.name, plan.left)), "end")
            else:
                _text(parent, 2, y + 13, isolated(_short(score.name, plan.width)), "start")
                y += _NAME
            for panel, condition in enumerate(PANELS):
                _cell(parent, plan, panel, y + _LINE / 2, by_cell.get((score, condition)))
            y += _LINE
    return y + 6


def _cell(parent: Element, plan: _Plan, panel: int, y: float, change: Change | None) -> None:
    """One dot with its interval, or words where there is none."""
    if change is None or change.by_construction:
        words = "by construction" if change else "not run"
        _text(parent, plan.start(panel) + 4, y + 4, words, "start", "soft")
        return
    said = verdict(change)
    group = SubElement(parent, "g", {"class": {Verdict.COSTS: "costs", Verdict.GAINS: "gains"}.get(said, "same")})
    SubElement(group, "title").text = _sentence(change)
    ends = {"x1": f"{plan.x(panel, change.low):.1f}", "x2": f"{plan.x(panel, change.high):.1f}"}
    SubElement(group, "line", {**ends, "y1": f"{y:.1f}", "y2": f"{y:.1f}"})
    SubElement(group, "circle", {"cx": f"{plan.x(panel, change.delta):.1f}", "cy": f"{y:.1f}", "r": "4"})


def _sentence(change: Change) -> str:
    """What a dot says where it is pointed at."""
    p = "" if change.p_holm is None else f", Holm p = {change.p_holm:.2g}"
    interval = f"{signed(change.delta)} points [{signed(change.low)}, {signed(change.high)}]"
    what = joined(label(change.model), PANELS[change.condition], change.score.name, by=", ")
    return f"{what}: {interval}{p}"


def _axes(parent: Element, plan: _Plan, bottom: float) -> None:
    """Names of the panels, a line for every number of the axis, and the numbers above and below."""
    for panel, title in enumerate(PANELS.values()):
        _text(parent, plan.start(panel) + plan.panel / 2, 12, title, "middle", "head")
        for tick in ticks(plan.low, plan.high, max(2, int(plan.panel // 36))):
            x = f"{plan.x(panel, tick):.1f}"
            line = {"x1": x, "x2": x, "y1": str(_TOP - 6), "y2": f"{bottom:.1f}", "class": "grid" if tick else "zero"}
            SubElement(parent, "line", line)
            for y in (_TOP - 10, bottom + 14):
                _text(parent, plan.x(panel, tick), y, f"{tick:g}".replace("-", "−"), "middle", "soft")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, 0 among them where it lies between: at most so many steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(text: str, pixels: float, character: float = _CHARACTER) -> str:
    """The text, cut where it would be wider than its place."""
    most = int(pixels / character)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(parent: Element, x: float, y: float, words: str, anchor: str, kind: str = "") -> None:
    fields = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor} | ({"class": kind} if kind else {})
    SubElement(parent, "text", fields).text = words
