"""Does an ablation cost one model more than another? Differences of differences, model x condition, with their own intervals and tests."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.demo import label
from experiments.plotting.columns import Column, ScoreKey, plain_heading, score_key
from experiments.plotting.elements import table
from experiments.plotting.escape import joined
from experiments.plotting.heat import Protocols, Shades, heat_cell
from experiments.rows import Row, select
from experiments.study import grid
from experiments.study.changes import KIND, METRIC_ENDING, changes_job
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Differences between models"
NOTE = (
    "How much more an ablation changes a score of one model than of another: the difference of their differences from the full condition, "
    "in points, with its own paired interval over the same test units and its own test; that two intervals of two models overlap, or that "
    "one effect is significant and another is not, says nothing about it. A model without registers has only the conditions of CLS and "
    "patches. Models that differ in their teacher, data or patch size differ in more than one thing. Red: the first model loses more. "
    "Bold: p below 0.05 after Holm over the metric's differences between the two models. "
    "Point at a cell, or reach it with Tab and the arrow keys, for its interval and test."
)
CONDITIONS = ("zero_cls", "zero_registers", "mean_registers", "random_patches")


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under the conditions that are compared."""
    if not target.baseline:
        yield from grid.jobs(target, CONDITIONS)


def pair_jobs(target: Target, other: Target) -> Iterator[Job]:
    """The differences of main scores between two models, under every condition that both have."""
    if target.baseline or other.baseline:
        return
    for condition in CONDITIONS:
        if condition in target.conditions and condition in other.conditions:
            for task in grid.runnable_tasks(target):
                if any(column.primary for column in target.settings.tasks[task].columns):
                    yield changes_job(target, other, condition, task)


def section(results: StudyResults) -> str:
    """A table for each pair of models: conditions against scores."""
    rows = select(results.rows, analysis=KIND)
    scores = {(*pair_of(row), row["condition"], *compared_score(row)): row for row in rows}
    shades, protocols, tables = Shades(rows), Protocols(), ""
    for pair in dict.fromkeys(map(pair_of, rows)):
        columns = [column for column in results.columns if any(key[:2] == pair and key[3:] == column.key for key in scores)]
        conditions = dict.fromkeys(row["condition"] for row in rows if pair_of(row) == pair)
        lines = [
            (name, [_cell(scores.get((*pair, name, *column.key)), column, shades, protocols) for column in columns]) for name in conditions
        ]
        tables += table(joined(*map(label, pair), by=" − "), [column.heading for column in columns], lines)
    return tables and f'<div class="heats">{tables}</div>{protocols.listed()}'


def _cell(row: Row | None, column: Column, shades: Shades, protocols: Protocols) -> str:
    return heat_cell(row, f"change of {plain_heading(column.heading)}", shades, protocols, values=False, absent="not compared")


def compared_score(row: Row) -> ScoreKey:
    """The score whose changes are compared."""
    return score_key({**row, "metric": row["metric"].removesuffix(METRIC_ENDING)})


def pair_of(row: Row) -> tuple[str, str]:
    """The two models of a row."""
    return row["model"], row["reference"]["model"]
