"""What drawings of a page show, read back from the page."""

from __future__ import annotations

import re
from itertools import pairwise
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
