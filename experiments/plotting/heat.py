"""Tables of numbers whose cells are coloured by their size: a heat map that can be read, copied and pointed at."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from experiments.plotting.columns import ScoreKey, score_key
from experiments.plotting.controls import Axis
from experiments.plotting.elements import empty_cell
from experiments.plotting.escape import escaped
from experiments.plotting.hover import note, plain, protocol, signed
from experiments.plotting.marks import direction, significant
from experiments.rows import Row

MOST = 45
"""Percent of a colour in the cell with the largest number: letters stay readable on it."""
SHOWN = Axis("Shown", {"delta": "change against full", "raw": "value"})
"""What a reader chooses where cells hold both; without script both stand there."""


class Protocols:
    """Protocols of numbers of a section, each told once: a note names it by its number in a list below the tables."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def named(self, row: Row) -> str:
        """The last line of a note."""
        return f"Protocol {self._numbers.setdefault(protocol(row), len(self._numbers) + 1)}, cell {row['cell']}."

    def listed(self) -> str:
        """The list, as HTML."""
        lines = "".join(f"<li>{escaped(text)}</li>" for text in self._numbers)
        return f'<details class="protocols"><summary>Protocols of these numbers</summary><ol>{lines}</ol></details>' if lines else ""


class Shades:
    """How strongly the numbers of some rows are coloured, in percent: differences by the root of their share of the largest one, so that
    small ones are told from none; values by their share of 1 or, where they are none, of the largest of their score.

    Differences that hold by construction are the largest: they are hatched, and do not set the range.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._changes: dict[ScoreKey | None, float] = {}
        self._values: dict[ScoreKey | None, float] = {}
        for row in rows:
            key = _scale(row)
            self._values[key] = max(self._values.get(key, 0), abs(row["value"]))
            if row["delta"] is not None and not row["by_construction"]:
                self._changes[key] = max(self._changes.get(key, 0), abs(row["delta"]))

    def change(self, row: Row) -> int:
        """Of a difference that does not hold by construction."""
        return round(MOST * math.sqrt(abs(row["delta"]) / (self._changes[_scale(row)] or 1)))

    def value(self, row: Row) -> int:
        """Of a value."""
        return round(MOST * abs(row["value"]) / (1 if row["unit"] == "%" else self._values[_scale(row)] or 1))


def _scale(row: Row) -> ScoreKey | None:
    """What has one range of colours: everything in percent, and every other score alone."""
    return None if row["unit"] == "%" else score_key(row)


def heat_cell(row: Row | None, score: str, shades: Shades, protocols: Protocols, values: bool = True, absent: str = "not run") -> str:
    """A number as a cell: its value (if `values`) and its difference, of which the page shows one; bold where the difference is significant
    after Holm, and what is known of it as a note.

    Args:
        score: its name, as text.
        absent: words where there is no number.
    """
    if row is None:
        return empty_cell(absent)
    mark = "†" if row["by_construction"] else ""
    kinds, sizes, body = ["heat"], [], ""
    if values:
        sizes.append(f"--r:{shades.value(row)}%")
        body = f'<span class="raw">{plain(row, row["value"])}{mark}</span>'
    if row["delta"] is None:
        kinds.append("alone")
    else:
        number = f"{signed(row, row['delta'])}{mark}"
        body += f'<span class="delta">{f"<b>{number}</b>" if significant(row) else number}</span>'
        kinds.append("built" if row["by_construction"] else direction(row))
        sizes += [] if row["by_construction"] else [f"--d:{shades.change(row)}%"]
    title = html.escape("\n".join([note(row, score), protocols.named(row)]))
    return f'<td class="{" ".join(kinds)}" style="{";".join(sizes)}" title="{title}">{body}</td>'
