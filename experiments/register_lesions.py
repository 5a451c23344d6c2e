"""Which register counts: each one zeroed alone, and the first one, two, three, all."""

from __future__ import annotations

from collections.abc import Iterator

from experiments import table
from experiments.conditions import lesions
from experiments.deltas import bars
from experiments.figures import Finished, plot
from experiments.study import Job, Subject

TITLE = "Single and cumulative lesions of registers"
NOTE = (
    "Difference from the full condition in points, with 95 % intervals of the paired difference: R1 alone to the last alone, then R1 to "
    "R2, and so on to all (zero_registers). Where single differences do not add up to the joint one, registers share what they carry."
)


def jobs(subject: Subject) -> Iterator[Job]:
    """All tasks under single and cumulative lesions."""
    return table.jobs(subject, _names(subject.model.config.registers if subject.model else 0))


def section(study: Finished) -> str:
    """Bars of differences, one panel for each model with registers."""
    there = {r["condition"] for r in study.rows if r["condition"].startswith("zero_r")}
    figure = bars(study, [name for name in _names(max(_numbers(there), default=0)) if name in there])
    return plot(figure) if figure else ""


def _names(registers: int) -> list[str]:
    return [*lesions(registers), "zero_registers"] if registers else []


def _numbers(names: set[str]) -> list[int]:
    return [int(name.removeprefix("zero_r")) for name in names if name.removeprefix("zero_r").isdigit()]


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("register_lesions", __doc__)
