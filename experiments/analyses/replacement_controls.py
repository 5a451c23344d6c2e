"""Does the content of registers matter? They are replaced by zeros, their mean, noise, the registers of another image, or the constant that
costs least."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.features.conditions import REPLACEMENTS
from experiments.plotting.deltas import plot_deltas
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Replacing registers: zero, mean, noise, shuffle, optimal constant"
NOTE = (
    "A register set to zero is an activation "
    "that the model never saw in training; its mean, noise with the calibrated mean and variance, and the registers of another image "
    "(shuffle; shuffle_registers_whole keeps one donor for all blocks) are not. optimal_registers is the constant of every block and "
    "register that moves CLS and patches least, fitted on train images (Li & Janson 2024): about the least that a constant can cost. For "
    "CLS and patches mean_registers is fix_reg_mean of Sun et al. (2024), which replaces registers by their mean at the input of every "
    "block: it is run where it is asked for, and has no numbers of its own beside mean_registers."
)
CONDITIONS = (*REPLACEMENTS, "fix_reg_mean")


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under the replacements of registers."""
    return grid.jobs(target, CONDITIONS)


def section(results: StudyResults) -> str:
    """Dots with intervals: for each model with registers a panel for each score."""
    names = {name: name.replace("_registers", "").replace("_", " ") for name in REPLACEMENTS} | {"fix_reg_mean": "fix_reg_mean"}
    return plot_deltas(results.rows, results.columns, results.models, names)
