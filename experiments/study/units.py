"""Pieces of work of a study that one process does in one go: jobs that share what they extract, and what they need beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from experiments.study.cells import cell_hash
from experiments.study.jobs import Job


class Unit(NamedTuple):
    """Jobs of one model that are computed one after the other.

    Attributes:
        jobs: by the hashes of their cells, in order.
        needs: hashes of the cells that they need and that other units make.
    """

    jobs: dict[str, Job]
    needs: frozenset[str]

    @property
    def model(self) -> str:
        """Name of the model in the study."""
        return next(iter(self.jobs.values())).model

    @property
    def label(self) -> str:
        """What the screen says meanwhile."""
        return next(iter(self.jobs.values())).label

    @property
    def host_only(self) -> bool:
        """Whether none of its jobs needs a device."""
        return all(job.host_only for job in self.jobs.values())

    @property
    def apart(self) -> bool:
        """Whether its jobs neither share features with others nor need their cells."""
        return not self.needs and all(job.apart for job in self.jobs.values())


def units_of(jobs: Iterable[Job]) -> list[Unit]:
    """Units of jobs, in the order of the first of each, except that a unit comes after those whose cells it needs.

    Raises:
        ValueError: units need one another.
    """
    grouped: dict[tuple[str, ...], dict[str, Job]] = {}
    for job in jobs:
        name = cell_hash(job.key)
        grouped.setdefault((job.model, job.unit) if job.unit else (name,), {})[name] = job
    units = [_unit(members) for members in grouped.values()]
    maker = {name: unit for unit in units for name in unit.jobs}
    ordered: dict[str, Unit] = {}

    def place(unit: Unit, way: tuple[str, ...]) -> None:
        first = next(iter(unit.jobs))
        if first in way:
            raise ValueError(f"the jobs of {unit.label} need cells that need theirs; divide them, by another Job(unit=)")
        if first not in ordered:
            for needed in (maker[name] for name in sorted(unit.needs) if name in maker):
                place(needed, (*way, first))
            ordered[first] = unit

    for unit in units:
        place(unit, ())
    return list(ordered.values())


def _unit(jobs: dict[str, Job]) -> Unit:
    needs = {cell_hash(key) for job in jobs.values() for key in job.needs}
    return Unit(jobs, frozenset(needs - jobs.keys()))
