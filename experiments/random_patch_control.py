"""As many patches as registers, chosen at random and zeroed: what losing any few tokens costs."""

from __future__ import annotations

from collections.abc import Iterator

from experiments import table
from experiments.deltas import bars
from experiments.figures import Finished, plot
from experiments.study import Job, Subject

TITLE = "Zeroing random patches instead"
NOTE = (
    "Four patches, drawn for each image and the same at all blocks, against all registers. Difference from the full condition in points, "
    "with 95 % intervals of the paired difference; random patches are a mean over draws."
)
CONDITIONS = ("random_patches", "zero_registers")


def jobs(subject: Subject) -> Iterator[Job]:
    """All tasks under both."""
    return table.jobs(subject, CONDITIONS)


def section(study: Finished) -> str:
    """Bars of differences."""
    figure = bars(study, CONDITIONS)
    return plot(figure) if figure else ""


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("random_patch_control", __doc__)
