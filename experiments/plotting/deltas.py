"""Differences from the full condition as dots with intervals: a small multiple for each score of each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from experiments.demo import label
from experiments.plotting import dots
from experiments.plotting.columns import Column, ScoreKey, plain_heading, score_key
from experiments.plotting.dots import Entry, Panel
from experiments.plotting.escape import escaped
from experiments.plotting.hover import sentence, signed
from experiments.plotting.marks import kind_of
from experiments.rows import Row

NOT_RUN = "not run"

CAPTION = (
    "Change against full in points, with 95 % intervals of the paired difference. Filled: p below 0.05 after Holm; red where it costs, "
    "blue where it gains. All scores in points have one axis."
)

More = Callable[[Mapping[str, Row], str], Sequence[Entry]]


def plot_deltas(
    rows: Sequence[Row],
    columns: Sequence[Column],
    models: Sequence[str],
    conditions: Mapping[str, str],
    more: More = lambda by_condition, name: (),
) -> str:
    """The differences from the full condition in the scores of some columns, as HTML: for each model that ran any of the conditions a panel
    for each score, in it a line for each condition that the model ran. Empty where no model did.

    Args:
        conditions: in their order, and how each is called in the panels.
        more: lines below these, from a score's rows by condition and its name.
    """
    page = ""
    for model in models:
        of_model = [r for r in rows if r["model"] == model and r["delta"] is not None and r["condition"] in conditions]
        if panels := _panels(of_model, columns, conditions, more):
            page += f"<h3>{escaped(label(model))}</h3>{on_one_scale(panels, label(model))}"
    return page


def _panels(rows: Sequence[Row], columns: Sequence[Column], conditions: Mapping[str, str], more: More) -> list[Panel]:
    """The panels of one model: a score that was not measured under one of its conditions says so there."""
    run = [name for name in conditions if any(r["condition"] == name for r in rows)]
    by_score: dict[ScoreKey, dict[str, Row]] = {}
    for row in rows:
        by_score.setdefault(score_key(row), {})[row["condition"]] = row
    panels = []
    for column in columns:
        if found := by_score.get(column.key):
            name = plain_heading(column.heading)
            entries = [entry(conditions[condition], found.get(condition), name) for condition in run]
            panels.append(Panel(name, [*entries, *more(found, name)], unit_of(next(iter(found.values())))))
    return panels


def entry(name: str, row: Row | None, score: str) -> Entry:
    """The line of a difference. What holds by construction shows nothing, and what repeats another condition shows it again: words stand
    there."""
    if row is None:
        return Entry(name, NOT_RUN)
    if row["by_construction"]:
        return Entry(name, "by construction")
    if row["repeats"]:
        return Entry(name, f"as {row['repeats']}")
    value, low, high = (row["scale"] * row[field] for field in ("delta", "delta_ci_low", "delta_ci_high"))
    return Entry(name, "", value, low, high, signed(row, row["delta"]), kind_of(row), sentence(row, score))


def unit_of(row: Row) -> str:
    """What the numbers of an axis of differences are, where they are no points."""
    return "" if row["unit"] == "%" else f"change, {row['unit']}" if row["unit"] else "change"


def on_one_scale(panels: Sequence[Panel], about: str, caption: str = CAPTION) -> str:
    """Panels of differences, of which those in points have one axis."""
    points = [panel for panel in panels if not panel.unit]
    ends = dots.extent(points) if points else None
    return dots.figure([panel if panel.unit else panel._replace(ends=ends) for panel in panels], about, caption)
