"""Rows made by hand, and what a page's figures show of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

from experiments.rows import Row, make_row

SHARE = {"unit": "%", "scale": 100.0, "higher_is_better": True}
PLAIN = {"unit": "", "scale": 1.0, "higher_is_better": None}
"""Fields of a number that is no share of 1."""


def made_row(**changes: Any) -> Row:
    """A row with every field, of a comparison with the full condition; an interval of 0.1 on each side of its value."""
    row = {"model": "model", "condition": "zero_cls", "tokens": "cls", "ablation": ["a" * 20], "window": "all"}
    row |= {"task": "linear_probe", "metric": "top1", "feature": "cls", "readout": "refitted", "layer": 5} | SHARE
    row |= {"primary": False, "value": 0.5, "ci_covers": "units", "n": 30, "n_unit": "images", "seeds": 1, "by_seed": [0.5]}
    row |= {"delta": -0.25, "delta_ci_low": -0.375, "delta_ci_high": -0.125, "p_value": 0.01, "p_holm": 0.02, "holm_tests": 2}
    row |= {"reference": {"model": "model", "condition": "full", "value": 0.75}, "holm_family": "secondary: top1 of linear_probe of model"}
    row |= {"by_construction": False, "protocol": "ridge(select=val)", "cell": "0" * 20, "quick": False} | changes
    return make_row(**({"ci_low": row["value"] - 0.1, "ci_high": row["value"] + 0.1} | row))


def made_flow(source: str, target: str, **changes: Any) -> Row:
    """A row of the attention that one token group gives another."""
    fields = {"task": "attention_flow", "metric": "attention", "feature": None, "readout": None, "higher_is_better": None}
    return made_row(**fields, source=source, target=target, **changes)


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
    drawings = [ElementTree.fromstring(text) for text in re.findall(r'<svg [^>]*class="chart dots".*?</svg>', page, re.DOTALL)]
    return {drawing.findtext("title"): list(_lines(drawing)) for drawing in drawings}


def _lines(drawing: ElementTree.Element) -> Iterator[Line]:
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


def _on_grid(drawing: ElementTree.Element, x: float) -> bool:
    return any(line.get("class") in ("grid", "zero") and float(line.get("x1")) == x for line in drawing.findall("line"))


def traces(page: str) -> list[dict[str, Any]]:
    """The traces of all figures of a piece of a page, in order, as plotly reads them."""
    starts = re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', page)
    return [trace for start in starts for trace in json.JSONDecoder().raw_decode(page, start.end())[0]]
