"""Columns of the tables and bars that show scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from experiments.rows import Row

ScoreKey = tuple[str, str, str | None, str | None]
"""Task, metric, feature and read-out of a score."""


class Column(NamedTuple):
    """One score of the tables; declared by its task (`experiments.tasks.base.Task.columns`).

    Attributes:
        metric, feature, readout: of its rows.
        heading: as HTML.
        primary: whether it is one of the study's main scores.
        task: name of the task, which the table of tasks fills in.
    """

    metric: str
    feature: str
    heading: str
    readout: str | None = None
    primary: bool = False
    task: str = ""

    @property
    def key(self) -> ScoreKey:
        """What its rows have in common."""
        return self.task, self.metric, self.feature, self.readout


def score_key(row: Row) -> ScoreKey:
    """The key of the column that a row belongs to."""
    return row["task"], row["metric"], row["feature"], row["readout"]


def filled(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns that rows have scores for."""
    keys = {score_key(row) for row in rows}
    return [column for column in columns if column.key in keys]


def refitted(columns: Sequence[Column]) -> list[Column]:
    """The columns without those of frozen read-outs."""
    return [column for column in columns if column.readout != "frozen"]


def plain_heading(heading: str) -> str:
    """A heading without its line breaks."""
    return heading.replace("-<br>", "").replace("<br>", " ")
