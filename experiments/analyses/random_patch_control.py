"""A control: as many random patches as registers are zeroed, which shows what losing any few tokens costs the others."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.features.conditions import RANDOM_PATCHES
from experiments.plotting.deltas import plot_deltas
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Zeroing random patches instead"
NOTE = (
    f"As many random patches as the model has registers ({RANDOM_PATCHES} where it has none; unless the study defines that condition anew) "
    "against all registers. The patches are drawn for each image and are the same at all blocks. For random patches the difference is the "
    "mean over their draws. Tasks that score single patches leave the zeroed ones out, and so does the full condition that they are "
    "compared with: nothing of the image is left in them. Counted in, the condition loses by construction (results.jsonl has those numbers "
    "too, under names that end in _raw)."
)
CONDITIONS = ("random_patches", "zero_registers")


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under both conditions."""
    return grid.jobs(target, CONDITIONS)


def section(results: StudyResults) -> str:
    """Dots with intervals: for each model a panel for each score."""
    return plot_deltas(results.rows, results.columns, results.models, {name: name.replace("_", " ") for name in CONDITIONS})
