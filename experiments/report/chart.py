"""The chart of the summary as SVG: what zeroing CLS and zeroing the registers change in every main score, as dots with intervals.

Colours, fonts and line widths are those of the page's style: the chart follows the light and the dark one, and needs no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from experiments.demo import label
from experiments.plotting import svg
from experiments.plotting.dots import interval
from experiments.plotting.escape import isolated, joined
from experiments.report.summary import Change, Verdict, verdict
from experiments.report.wording import signed

_LINE, _NAME = 20, 16  # pixels from one line of the chart to the next; of a line that holds a name alone
_TOP = 40  # above the first line: names of the panels, and numbers of the axis
_GAP = 14  # between panels
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

    def scale(self, panel: int) -> svg.Scale:
        return svg.Scale(self.low, self.high, self.start(panel), self.start(panel) + self.panel)

    def start(self, panel: int) -> float:
        return self.left + 2 + panel * (self.panel + _GAP)


def zeroing_chart(changes: Sequence[Change], models: Sequence[str], narrow: bool) -> str:
    """The chart as an SVG element, for a wide or a narrow screen.

    Args:
        changes: under the conditions of the two panels.
        models: in their order; those without changes are left out.
    """
    width, left = (svg.WIDTH, 0) if narrow else (560, 184)
    low, high = svg.span(end for change in changes if not change.by_construction for end in (change.low, change.high))
    plan = _Plan(width, left, (width - left - _GAP - 4) / len(PANELS), low, high)
    shown = [model for model in models if any(change.model == model for change in changes)]
    body = Element("g")
    y: float = _TOP
    for model in shown:
        y = _block(body, plan, [change for change in changes if change.model == model], y)
    height = int(y) + 40
    title = f"Change in points of every main score of {joined(*map(label, shown), by=', ')}"
    chart = svg.drawing(width, height, title, "Left with CLS, right with all registers zeroed.", "narrow" if narrow else "wide")
    chart.set("tabindex", "0")  # from where arrow keys lead to its dots
    _axes(chart, plan, y)
    chart.append(body)
    svg.text(chart, (plan.left + width) / 2, height - 4, "change against full, points", "middle", "soft")
    return svg.written(chart)


def _block(parent: Element, plan: _Plan, changes: Sequence[Change], y: float) -> float:
    """The lines of one model, global scores first; returns where they end."""
    by_cell = {(change.score, change.condition): change for change in changes}
    for dense in (False, True):
        scores = list(dict.fromkeys(change.score for change in changes if change.score.dense == dense))
        if scores:
            kind = ": dense scores" if dense else ": global scores"
            name = svg.shortened(label(changes[0].model), plan.width - svg.width_of(kind, bold=True), bold=True)
            svg.text(parent, 2, y + 14, isolated(name) + kind, kind="head")
            y += _LINE
        for score in scores:
            if plan.left:
                svg.text(parent, plan.left - 8, y + 14, score.name, "end", room=plan.left)
            else:
                svg.text(parent, 2, y + 13, score.name, room=plan.width)
                y += _NAME
            for panel, condition in enumerate(PANELS):
                _cell(parent, plan, panel, y + _LINE / 2, by_cell.get((score, condition)))
            y += _LINE
    return y + 6


def _cell(parent: Element, plan: _Plan, panel: int, y: float, change: Change | None) -> None:
    """One dot with its interval, or words where there is none."""
    if change is None or change.by_construction:
        words = "by construction" if change else "not run"
        svg.text(parent, plan.start(panel) + 4, y + 4, words, kind="soft")
        return
    kind = {Verdict.COSTS: "costs", Verdict.GAINS: "gains"}.get(verdict(change), "same")
    interval(parent, plan.scale(panel), y, (change.delta, change.low, change.high), kind, _sentence(change))


def _sentence(change: Change) -> str:
    """What a dot says where it is pointed at."""
    p = "" if change.p_holm is None else f", Holm p = {change.p_holm:.2g}"
    numbers = f"{signed(change.delta)} points [{signed(change.low)}, {signed(change.high)}]"
    what = joined(label(change.model), PANELS[change.condition], change.score.name, by=", ")
    return f"{what}: {numbers}{p}"


def _axes(parent: Element, plan: _Plan, bottom: float) -> None:
    """Names of the panels, a line for every number of the axis, and the numbers above and below."""
    for panel, title in enumerate(PANELS.values()):
        scale = plan.scale(panel)
        svg.text(parent, plan.start(panel) + plan.panel / 2, 12, title, "middle", "head")
        svg.axis_across(parent, scale, _TOP - 6, bottom)
        for tick in scale.ticks():
            svg.text(parent, scale(tick), _TOP - 10, svg.number(tick), "middle", "soft")
