"""Which registers matter? Each one is zeroed alone, then the first two, three, and so on to all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from experiments.demo import label
from experiments.features.conditions import lesions
from experiments.plotting.deltas import plot_deltas
from experiments.plotting.dots import Entry
from experiments.plotting.escape import joined
from experiments.plotting.hover import signed
from experiments.rows import Row
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Single and cumulative lesions of registers"
NOTE = (
    "Each register zeroed alone (r1, r2, ...), then the first two (r1 to r2), and so on to all of them together; last what the single "
    "differences add up to, dashed and without an interval. Where they do not add up to the joint one, registers carry the same "
    "information or depend on each other."
)


def jobs(target: Target) -> Iterator[Job]:
    """All tasks under single and cumulative lesions."""
    return grid.jobs(target, _conditions(target.model.config.registers if target.model else 0))


def section(results: StudyResults) -> str:
    """Dots with intervals: for each model with registers a panel for each score, with the sum of the single lesions."""
    run = {r["condition"] for r in results.rows}
    names = {name: _name(name) for name in _conditions(_registers(run))}
    return plot_deltas(results.rows, results.columns, results.models, names, _sum)


def _name(condition: str) -> str:
    """A lesion in a panel: "r1", "r1 to r2", "all registers"."""
    return "all registers" if condition == "zero_registers" else condition.removeprefix("zero_").replace("_", " ")


def _sum(by_condition: Mapping[str, Row], score: str) -> list[Entry]:
    """The differences of all single lesions, added up: where the joint one is another, registers share information or depend on each
    other. Nothing where a single lesion is missing or holds by construction."""
    single = [by_condition.get(f"zero_r{i + 1}") for i in range(_registers(by_condition))]
    rows = [row for row in single if row is not None and not row["by_construction"]]
    if len(rows) < 2 or len(rows) < len(single):
        return []
    total = sum(row["delta"] for row in rows)
    number = signed(rows[0], total)
    says = (
        f"{joined(label(rows[0]['model']), score, by=', ')}: the {len(rows)} single lesions add up to {number}. A sum has no interval here."
    )
    return [Entry("sum of single", value=rows[0]["scale"] * total, number=number, kind="sum", says=says)]


def _conditions(registers: int) -> list[str]:
    """Names of the lesions of a model with so many registers, in order; none where it has no registers."""
    return [*lesions(registers), "zero_registers"] if registers else []


def _registers(conditions: Iterable[str]) -> int:
    """The largest number of registers among models that these conditions were run on, read off the single lesions."""
    numbers = [name.removeprefix("zero_r") for name in conditions if name.startswith("zero_r")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)
