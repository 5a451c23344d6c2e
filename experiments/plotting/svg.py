"""Charts as SVG: the drawing, scales with round numbers, axes, texts and marks.

What is drawn has classes and no colours: `experiments/report/figures.css` gives them those of the light, the dark and the printed style. A
drawing is as wide as a phone (`WIDTH`), and small multiples stand side by side where there is room: its letters are never made smaller.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from experiments.plotting.escape import isolated

WIDTH = 328
"""Pixels: what fits on a phone of 360."""
FONT_SIZE = 12
"""Pixels: of all letters, as in `figures.css`."""
COLOURS, DASHES = 8, 3
"""Numbers of colours and of dashes that tell series apart, as in `figures.css`."""
_CHARACTER, _BOLD, _WIDE = 6.8, 7.8, 12.5  # pixels of an average letter, of one of a heading, and of one as wide as it is high


class Scale(NamedTuple):
    """Where numbers are: those from `low` to `high` go to the pixels from `start` to `end` (which may run backwards, as upwards)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, apart: float = 34) -> list[float]:
        """Round numbers that are so many pixels apart or more."""
        return ticks(self.low, self.high, max(2, int(abs(self.end - self.start) // apart)))


def span(values: Iterable[float], least: float = 1.0, around: float = 0.0) -> tuple[float, float]:
    """The ends of an axis: all values, what they lie around, and `least` on each side of that where values are or, where all are the same,
    on both; a twentieth of the whole beyond."""
    ends = [value - around for value in values]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    low, high = (min(low, -least) if low < 0 or high == 0 else low), (max(high, least) if high > 0 or low == 0 else high)
    beyond = 0.05 * (high - low)
    return around + low - beyond, around + high + beyond


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, 0 among them where it lies between: at most so many steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def pixels(value: float) -> str:
    """A place or a length in a drawing, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def number(value: float) -> str:
    """A number of an axis, with the sign of minus."""
    return f"{value:g}".replace("-", "−")


def drawing(width: float, height: float, title: str, description: str = "", kind: str = "chart") -> Element:
    """An empty drawing that is made smaller where the screen is narrower.

    Args:
        title: what it shows, in a few words: its name for those who do not see it.
        description: what is to be seen in it, in a sentence.
        kind: its classes.
    """
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "height": f"{height:g}"}
    root = Element("svg", {**size, "class": kind, "role": "img"})
    SubElement(root, "title").text = title
    if description:
        SubElement(root, "desc").text = description
    return root


def written(root: Element) -> str:
    """A drawing as a piece of a page."""
    return tostring(root, encoding="unicode").replace(" />", "/>")


def group(parent: Element, kind: str, says: str = "") -> Element:
    """A group of marks of these classes; `says` is what it tells where it is pointed at or has the focus."""
    made = SubElement(parent, "g", {"class": kind} if kind else {})
    if says:
        SubElement(made, "title").text = says
    return made


def text(parent: Element, x: float, y: float, words: str, anchor: str = "start", kind: str = "", room: float = math.inf) -> Element:
    """Words with their base line at y, of which a name of a user's keeps its direction to itself. Words that are wider than `room` pixels
    are cut, and said whole where they are pointed at."""
    fields = {"x": pixels(x), "y": pixels(y)} | ({"text-anchor": anchor} if anchor != "start" else {}) | ({"class": kind} if kind else {})
    made = SubElement(parent, "text", fields)
    short = shortened(words, room, bold="head" in kind.split())
    made.text = isolated(short)
    if short != words:
        SubElement(made, "title").text = isolated(words)
    return made


def line(parent: Element, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> Element:
    """A straight line."""
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return SubElement(parent, "line", {name: pixels(value) for name, value in ends.items()} | ({"class": kind} if kind else {}))


def dot(parent: Element, x: float, y: float, radius: float = 4, kind: str = "") -> Element:
    """A filled circle."""
    fields = {"cx": pixels(x), "cy": pixels(y), "r": pixels(radius)} | ({"class": kind} if kind else {})
    return SubElement(parent, "circle", fields)


def axis_across(parent: Element, scale: Scale, top: float, bottom: float, title: str = "") -> float:
    """A line from top to bottom for every round number of a scale that runs across, the numbers below, and the title below them; returns
    the height that it ends at."""
    for tick in scale.ticks():
        line(parent, scale(tick), top, scale(tick), bottom, "grid" if tick else "zero")
        text(parent, scale(tick), bottom + 15, number(tick), "middle", "soft")
    if title:
        text(parent, (scale.start + scale.end) / 2, bottom + 31, title, "middle", "soft")
    return bottom + (36 if title else 20)


def axis_up(parent: Element, scale: Scale, left: float, right: float, numbers: bool = True) -> None:
    """A line from left to right for every round number of a scale that runs upwards, and the numbers at the left."""
    for tick in scale.ticks(32):
        line(parent, left, scale(tick), right, scale(tick), "grid" if tick else "zero")
        if numbers:
            text(parent, left - 6, scale(tick) + 4, number(tick), "end", "soft")


def series(index: int) -> str:
    """The classes of the entry with this index of a figure: the first 24 differ in colour or in dash; later ones repeat, so that such an
    entry needs its name beside it."""
    repeat, colour = divmod(index, COLOURS)
    return f"s{colour} d{repeat % DASHES}"


def width_of(words: str, bold: bool = False) -> float:
    """About how many pixels words are wide."""
    letters = [character for character in words if not unicodedata.combining(character)]
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in letters)
    return wide * _WIDE + (len(letters) - wide) * (_BOLD if bold else _CHARACTER)


def shortened(words: str, room: float, bold: bool = False) -> str:
    """The words, cut where they are wider than so many pixels."""
    if width_of(words, bold) <= room:
        return words
    while words and width_of(f"{words}…", bold) > room:
        words = words[:-1]
    return f"{words}…"
