"""Does the size of a model change what its registers carry? The same conditions in models of one family that differ in size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from experiments.analyses.model_differences import compared_score, pair_of
from experiments.demo import label
from experiments.plotting.columns import Column, plain_heading, score_key
from experiments.plotting.deltas import entry, on_one_scale, unit_of
from experiments.plotting.dots import Entry, Panel
from experiments.plotting.escape import escaped, joined
from experiments.plotting.hover import signed
from experiments.rows import Row, select
from experiments.study import grid
from experiments.study.changes import KIND
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Model size within a family"
NOTE = (
    "The same conditions in models of one family that differ in size, and below them what their changes differ by (dashed, without an "
    "interval, where that was not tested). Teachers, training data and patch sizes differ between families: compare models "
    "within one family only."
)
CONDITIONS = ("zero_cls", "zero_registers", "mean_registers", "random_patches")


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under the conditions that are compared."""
    return grid.jobs(target, CONDITIONS)


def section(results: StudyResults) -> str:
    """Dots with intervals for each family of which the study has two sizes or more: under each condition a panel for each score, in it
    every size and what they differ by."""
    page = ""
    for family, models in _families(results.models).items():
        for condition in CONDITIONS:
            panels = [panel for column in results.columns if (panel := _panel(results.rows, column, models, condition))]
            about = joined(family, condition)
            page += f"<h3>{escaped(about)}</h3>{on_one_scale(panels, about)}" if panels else ""
    return page


def _families(models: Sequence[str]) -> dict[str, list[str]]:
    """The models of each family that has several sizes here, small ones first, by the family's name."""
    families: dict[str, list[str]] = {}
    for model in sorted(models, key=lambda model: "SBLG".find(_size(model))):
        families.setdefault(_SIZE.sub("vit", model), []).append(model)
    return {family: of_family for family, of_family in families.items() if len(of_family) > 1}


def _size(model: str) -> str:
    """The letter of a model's size: "S"."""
    match = _SIZE.search(model)
    return match[1].upper() if match else model


def _panel(rows: Sequence[Row], column: Column, models: Sequence[str], condition: str) -> Panel | None:
    """One score of all sizes, or None where fewer than two of them have it."""
    compared = [r for r in rows if r["condition"] == condition and r["delta"] is not None and score_key(r) == column.key]
    found = {r["model"]: r for r in compared if r["model"] in models}
    if len(found) < 2:
        return None
    name = plain_heading(column.heading)
    entries = [entry(f"{_size(model)}: {label(model)}", found.get(model), name) for model in models]
    pairs = [_difference(rows, column, found[one], found[other]) for one, other in pairwise(m for m in models if m in found)]
    return Panel(name, [*entries, *(pair for pair in pairs if pair)], unit_of(next(iter(found.values()))))


def _difference(rows: Sequence[Row], column: Column, small: Row, large: Row) -> Entry | None:
    """What the changes of two sizes differ by: with its interval where `model_differences` has computed it, else the number alone."""
    if small["by_construction"] or large["by_construction"]:
        return None
    pair = {small["model"], large["model"]}
    for row in select(rows, analysis=KIND, condition=small["condition"]):
        if {*pair_of(row)} == pair and compared_score(row) == column.key:
            one, other = map(_size, pair_of(row))
            return entry(f"{one} − {other}", row, f"change of {plain_heading(column.heading)}")
    number = signed(large, large["delta"] - small["delta"])
    says = f"The changes of {_size(large['model'])} and {_size(small['model'])} differ by {number}: not tested in this study."
    name = f"{_size(large['model'])} − {_size(small['model'])}"
    return Entry(name, value=large["scale"] * (large["delta"] - small["delta"]), number=number, kind="sum", says=says)


_SIZE = re.compile(r"vit([sblg])(?=\d)")
