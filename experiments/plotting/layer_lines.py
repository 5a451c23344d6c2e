"""Lines over blocks, or along another series: one drawing for each model, one line for each feature, condition or target of attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

from experiments.demo import label
from experiments.plotting import svg
from experiments.plotting.elements import table
from experiments.plotting.escape import escaped, isolated, joined
from experiments.plotting.hover import plain, shown, token_label
from experiments.rows import Row, select

_LEFT, _TOP, _HEIGHT, _END = 38, 26, 190, 8  # pixels: numbers at the left, heading, height of the lines, room at the right


class Along(NamedTuple):
    """What lines run along: a field of rows, what it is called, and the number of its first place, which is 0 in rows."""

    field: str
    title: str
    first: int = 0

    def __call__(self, row: Row) -> int:
        place: int = row[self.field]
        return place + self.first


BLOCKS = Along("layer", "block")


class LogScale(svg.Scale):
    """A scale of powers of ten: equal ratios are equally far apart."""

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, apart: float = 40) -> list[float]:
        """The powers of ten on it."""
        low, high = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(low, high + 1)]


class Line(NamedTuple):
    """One line of a drawing.

    Attributes:
        name: as text.
        style: number of its colour and dash (`svg.series`).
        rows: its numbers, one for each block.
    """

    name: str
    style: int
    rows: Sequence[Row]


def plot_layer_lines(rows: Sequence[Row], models: Sequence[str], task: str, metric: str, features: Sequence[str], title: str) -> str:
    """A metric of some features over blocks with intervals, as HTML: a line for each feature. Empty where there are no rows."""
    rows = [r for r in select(rows, task=task, metric=metric) if r["feature"] in features]
    return _plot_panels(rows, models, "feature", {name: token_label(name) for name in features}, title, intervals=True)


def plot_condition_lines(rows: Sequence[Row], models: Sequence[str], task: str, metric: str, title: str) -> str:
    """A metric over blocks, as HTML: a line for each condition. Empty where there are no rows."""
    shown = select(rows, task=task, metric=metric)
    conditions = dict.fromkeys(r["condition"] for model in models for r in select(shown, model=model))
    return _plot_panels(shown, models, "condition", {name: name for name in conditions}, title, intervals=False)


def _plot_panels(rows: Sequence[Row], models: Sequence[str], field: str, names: Mapping[str, str], title: str, intervals: bool) -> str:
    """One drawing for each model that has rows, on one scale; one line for each value of the field `field`, called as in `names`."""
    by_model = {m: lines_of(select(rows, model=m), field, names) for m in models}
    shown = {model: lines for model, lines in by_model.items() if lines}
    if not shown:
        return ""
    ends = ends_of([line for lines in shown.values() for line in lines], intervals)
    charts = "".join(layer_chart(label(model), lines, ends, intervals=intervals) for model, lines in shown.items())
    numbers = "".join(numbers_table(label(model), lines) for model, lines in shown.items())
    return (
        f"<figure><figcaption>{escaped(title)}, by block</figcaption>{legend([line for lines in shown.values() for line in lines])}"
        f"{side_by_side(charts, title)}<details><summary>The numbers of this chart</summary>{numbers}</details></figure>"
    )


def side_by_side(drawings: str, about: str) -> str:
    """Drawings side by side as far as there is room; `about` is what they show, as text."""
    return f'<div class="charts" tabindex="0" role="group" aria-label="{escaped(about)}">{drawings}</div>'


def lines_of(rows: Sequence[Row], field: str, names: Mapping[str, str]) -> list[Line]:
    """A line for each value of a field that has rows, called as in `names`: the same value has the same style in every drawing."""
    lines = [Line(name, index, select(rows, **{field: entry})) for index, (entry, name) in enumerate(names.items())]
    return [line for line in lines if line.rows]


def ends_of(lines: Sequence[Line], intervals: bool = True) -> tuple[float, float]:
    """The ends of an axis that all lines, their intervals and published numbers fit on; 0 is on it."""
    fields = ("ci_low", "ci_high") if intervals else ("value",)
    rows = [row for line in lines for row in line.rows]
    numbers = [row["scale"] * row[field] for row in rows for field in fields]
    return svg.span([*numbers, *(row["scale"] * other["value"] for row in rows for other in row["published"] or ())], least=0.001)


def layer_chart(
    heading: str,
    lines: Sequence[Line],
    ends: tuple[float, float],
    blocks: Mapping[int, str] | None = None,
    intervals: bool = True,
    along: Along = BLOCKS,
    scale: type[svg.Scale] = svg.Scale,
) -> str:
    """Lines over blocks as a drawing.

    Args:
        heading: as text.
        ends: of the axis upwards.
        blocks: blocks that a control chooses, each with the words of its panel (`controls.words`): a mark stands at the chosen one.
        along: what the lines run along, where that is not blocks.
        scale: of the axis upwards.
    """
    layers = sorted({along(row) for line in lines for row in line.rows})
    bottom = _TOP + _HEIGHT
    up = scale(*ends, bottom, _TOP)
    across = svg.Scale(layers[0], layers[-1] if len(layers) > 1 else layers[0] + 1, _LEFT + 8, svg.WIDTH - _END)
    root = svg.drawing(svg.WIDTH, bottom + 36, isolated(heading), _described(lines, along), "chart lines")
    svg.text(root, 0, 14, heading, kind="head", room=svg.WIDTH)
    svg.axis_up(root, up, _LEFT, svg.WIDTH)
    every = -(-len(layers) // 13)
    for layer in layers[::every]:
        svg.text(root, across(layer), bottom + 15, str(layer), "middle", "soft")
    svg.text(root, (across.start + across.end) / 2, bottom + 31, along.title, "middle", "soft")
    for layer, words in (blocks or {}).items():
        svg.line(root, across(layer), _TOP, across(layer), bottom, "now").set("data-view", words)
    for line in lines:
        _draw(root, line, across, up, heading, intervals, along)
    return svg.written(root)


def _draw(root: Element, line: Line, across: svg.Scale, up: svg.Scale, heading: str, intervals: bool, along: Along) -> None:
    """The band of the intervals, the line, and a dot for each number, which says it."""

    def points(rows: Sequence[Row], field: str) -> list[str]:
        return [f"{svg.pixels(across(along(r)))},{svg.pixels(up(r['scale'] * r[field]))}" for r in rows]

    drawn = svg.group(root, _look(line.style))
    if intervals:
        SubElement(drawn, "polygon", {"points": " ".join([*points(line.rows, "ci_high"), *points(line.rows[::-1], "ci_low")])})
    SubElement(drawn, "polyline", {"points": " ".join(points(line.rows, "value"))})
    for row in line.rows:
        says = f"{joined(heading, line.name, by=', ')}, {along.title} {along(row)}: {shown(row)}"
        for other in row["published"] or ():
            svg.dot(drawn, across(along(row)), up(row["scale"] * other["value"]), 4, "published")
        says += "".join(f"\nPublished {plain(row, other['value'])}: {isolated(other['source'])}" for other in row["published"] or ())
        svg.dot(svg.group(drawn, "mark", says), across(along(row)), up(row["scale"] * row["value"]), 3)


def _look(style: int) -> str:
    """The classes of a line: those of its colour and dash and, where these repeat, of its width. The first 72 differ."""
    return f"line {svg.series(style)} w{style // (svg.COLOURS * svg.DASHES) % 3}"


def _described(lines: Sequence[Line], along: Along) -> str:
    """First and last number of every line, for those who do not see it."""
    ends = [(line, line.rows[0], line.rows[-1]) for line in lines]
    return "; ".join(
        f"{isolated(line.name)} from {plain(a, a['value'])} at {along.title} {along(a)} to {plain(b, b['value'])} at {along(b)}"
        for line, a, b in ends
    )


def numbers_table(corner: str, lines: Sequence[Line]) -> str:
    """The values of lines, a column for each block."""
    layers = sorted({row["layer"] for line in lines for row in line.rows})
    cells = []
    for line in lines:
        by_layer = {row["layer"]: row for row in line.rows}
        cells.append((line.name, [f"<td>{plain(by_layer[n], by_layer[n]['value']) if n in by_layer else ''}</td>" for n in layers]))
    return table(corner, [f"block {layers[0]}", *map(str, layers[1:])] if layers else [], cells)


def legend(lines: Sequence[Line]) -> str:
    """The names of lines beside their colours and dashes, each once, and what a circle is where there are published numbers; nothing where
    there is only one line."""
    names = dict.fromkeys((line.name, line.style) for line in sorted(lines, key=lambda line: line.style))
    published = any(row["published"] for line in lines for row in line.rows)
    if len(names) + published < 2:
        return ""
    stroke = '<svg class="stroke" viewBox="0 0 24 8" width="24" height="8" aria-hidden="true"><line x1="0" x2="24" y1="4" y2="4"/></svg>'
    entries = "".join(f'<li class="{_look(index)}">{stroke}{escaped(name)}</li>' for name, index in names)
    circle = '<svg class="stroke" viewBox="0 0 24 10" width="24" height="10" aria-hidden="true"><circle cx="12" cy="5" r="4"/></svg>'
    entries += f'<li class="published">{circle}published</li>' if published else ""
    return f'<ul class="legend">{entries}</ul>'
