"""Does the size of a model change what its registers carry? The same conditions in models of one family that differ in size."""

from __future__ import annotations

import re
from collections.abc import Iterator

from experiments.plotting.deltas import plot_deltas
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Model size within a family"
NOTE = (
    "Difference from the full condition in points, with 95 % intervals of the paired difference, for models of one family that differ in "
    "size. Teachers, training data and patch sizes differ between families: compare models within one family only."
)
CONDITIONS = ("zero_cls", "zero_registers", "mean_registers", "random_patches")


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under the conditions that are compared."""
    return grid.jobs(target, CONDITIONS)


def section(results: StudyResults) -> str:
    """Bars of differences, one panel for each model of a family that has at least two sizes in the study."""
    families: dict[str, list[str]] = {}
    for model in results.models:
        families.setdefault(re.sub(r"vit([sblg])(?=\d)", "vit", model), []).append(model)
    models = [model for family in families.values() if len(family) > 1 for model in family]
    return plot_deltas(results.rows, results.columns, models, CONDITIONS)
