"""What drawings of a page show, read back from the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element, fromstring


def charts(page: str, kind: str) -> list[Element]:
    """The charts of a kind in a piece of a page, in order."""
    return [fromstring(text) for text in re.findall(rf'<svg [^>]*class="chart {kind}".*?</svg>', page, re.DOTALL)]


def heading(chart: Element) -> str:
    """The words above a chart."""
    return next(text.text or "" for text in chart.iter("text") if "head" in text.get("class", ""))


def lines(chart: Element) -> list[tuple[str, list[tuple[float, ...]]]]:
    """The classes of every line and its points, as pixels."""
    return [
        (group.get("class", ""), [tuple(map(float, point.split(","))) for point in polyline.get("points", "").split()])
        for group in chart.iter("g")
        for polyline in group.findall("polyline")
    ]


def axis_up(chart: Element) -> dict[float, float]:
    """The pixel of every number at the left of a chart: where its line is, which stands before it."""
    children = list(chart)
    return {
        float((text.text or "").replace("−", "-")): float(line.get("y1", ""))
        for line, text in pairwise(children)
        if line.tag == "line" and text.tag == "text" and text.get("text-anchor") == "end"
    }


def notes(chart: Element) -> list[str]:
    """What its marks say."""
    return [title.text or "" for group in chart.iter("g") for title in group.findall("title")]


class Line(NamedTuple):
    """A line of a panel of dots: its name, its texts besides the name, the numbers of its dot and its interval as they are drawn (read back
    off the axis), the classes of the mark, and what it says."""

    name: str
    words: list[str]
    numbers: list[float]
    kind: str
    says: str


def panels(page: str) -> dict[str, list[Line]]:
    """The lines of all panels of dots of a piece of a page, by the title of their drawing."""
    return {drawing.findtext("title", ""): list(_lines(drawing)) for drawing in charts(page, "dots")}


def _lines(drawing: Element) -> Iterator[Line]:
    texts = [(float(text.get("x")), float(text.get("y")), text.text.strip("\u2068\u2069")) for text in drawing.findall("text")]
    ticks = sorted(
        (x, float(words.replace("−", "-"))) for x, _, words in texts if re.fullmatch(r"−?[\d.e-]+", words) and _on_grid(drawing, x)
    )
    (left, low), (right, high) = ticks[0], ticks[-1]
    bottom = max(float(line.get("y2")) for line in drawing.findall("line"))
    marks = {float(mark.find("circle").get("cy")): mark for mark in drawing.findall("g")}
    for _, y, name in [text for text in texts if text[0] == 0 and 20 < text[1] < bottom]:
        mark = marks.get(y - 4)
        beside = [words for x, other, words in texts if other == y and x > 0]
        if mark is None:
            yield Line(name, beside, [], "", "")
            continue
        x = [mark.find("circle").get("cx"), *(line.get(end) for line in mark.findall("line") for end in ("x1", "x2"))]
        numbers = [low + (float(place) - left) / (right - left) * (high - low) for place in x]
        yield Line(name, beside, numbers, mark.get("class").removeprefix("mark "), mark.findtext("title"))


def _on_grid(drawing: Element, x: float) -> bool:
    return any(line.get("class") in ("grid", "zero") and float(line.get("x1")) == x for line in drawing.findall("line"))
