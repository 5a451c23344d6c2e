"""Does size change what registers carry: the same conditions in the S and the B model of a family."""

from __future__ import annotations

import re
from collections.abc import Iterator

from experiments import table
from experiments.deltas import bars
from experiments.figures import Finished, plot
from experiments.study import Job, Subject

TITLE = "Small against base"
NOTE = (
    "Difference from the full condition in points, with 95 % intervals of the paired difference, for models of one family that differ in "
    "size. Teachers, data and patch sizes differ between families: compare within one."
)
CONDITIONS = ("zero_cls", "zero_registers", "mean_registers", "random_patches")


def jobs(subject: Subject) -> Iterator[Job]:
    """All tasks under the conditions that are compared."""
    return table.jobs(subject, CONDITIONS)


def section(study: Finished) -> str:
    """Bars of differences of every family that has two sizes among the models."""
    together: dict[str, list[str]] = {}
    for model in study.models:
        together.setdefault(re.sub(r"vit([sblg])(?=\d)", "vit", model), []).append(model)
    models = [m for family in together.values() if len(family) > 1 for m in family]
    figure = bars(study._replace(models=models), CONDITIONS)
    return plot(figure) if figure else ""


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("scale_comparison", __doc__)
