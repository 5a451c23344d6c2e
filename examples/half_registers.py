"""A plug-in with a condition and an analysis of its own: are registers needed in all blocks, or in the late ones alone?

python -m experiments.reproduce --quick --plugin examples/half_registers.py --only half_registers
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import jaxvit
from experiments.plotting.deltas import plot_deltas
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

HALVES = ("mean_early", "mean_late", "mean_registers")


def mean_early(config: jaxvit.ViTConfig, moments: jaxvit.Moments, seed: int) -> jaxvit.Ablation:
    """Registers are their mean at the output of the first half of the blocks."""
    return jaxvit.mean("registers", moments, layers=range(config.depth // 2))


def mean_late(config: jaxvit.ViTConfig, moments: jaxvit.Moments, seed: int) -> jaxvit.Ablation:
    """Registers are their mean at the output of the second half of the blocks."""
    return jaxvit.mean("registers", moments, layers=range(config.depth // 2, config.depth))


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under both halves and under the whole; what another analysis has computed is not computed again."""
    return grid.jobs(target, HALVES)


def section(results: StudyResults) -> str:
    """Dots with intervals: what the main scores of each model lose in each window, or all scores where no main one was run."""
    windows = {row["condition"]: row["window"] for row in results.rows if row["condition"] in HALVES}
    names = {name: f"{name.removeprefix('mean_')} (blocks {window})" for name, window in windows.items()}
    columns = results.columns
    main = plot_deltas(results.rows, [column for column in columns if column.primary], results.models, names)
    return main or plot_deltas(results.rows, columns, results.models, names)


CONDITIONS = {"mean_early": mean_early, "mean_late": mean_late}
ANALYSES = {
    "half_registers": SimpleNamespace(
        TITLE="Registers replaced in half of the blocks",
        NOTE="Registers are their mean in the first half of the blocks, in the second half, or in all.",
        jobs=jobs,
        section=section,
    )
}
