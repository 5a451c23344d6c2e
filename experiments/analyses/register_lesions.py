"""Which registers matter? Each one is zeroed alone, then the first two, three, and so on to all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from experiments.features.conditions import lesions
from experiments.plotting.deltas import plot_deltas
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Single and cumulative lesions of registers"
NOTE = (
    "Difference from the full condition in points, with 95 % intervals of the paired difference: each register zeroed alone (zero_r1, "
    "zero_r2, ...), then the first two (zero_r1_to_r2), and so on to all (zero_registers). Where the single differences do not add up to "
    "the joint one, registers carry the same information or depend on each other."
)


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under single and cumulative lesions."""
    return grid.jobs(target, _conditions(target.model.config.registers if target.model else 0))


def section(results: StudyResults) -> str:
    """Bars of differences, one panel for each model with registers."""
    run = {r["condition"] for r in results.rows}
    conditions = [name for name in _conditions(_registers(run)) if name in run]
    return plot_deltas(results.rows, results.columns, results.models, conditions)


def _conditions(registers: int) -> list[str]:
    """Names of the lesions of a model with so many registers, in order; none where it has no registers."""
    return [*lesions(registers), "zero_registers"] if registers else []


def _registers(conditions: Iterable[str]) -> int:
    """The largest number of registers among models that these conditions were run on, read off the single lesions."""
    numbers = [name.removeprefix("zero_r") for name in conditions if name.startswith("zero_r")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)
