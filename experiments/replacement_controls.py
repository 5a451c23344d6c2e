"""Is it the content of registers that counts? Zeroing them against means, noise and other images' registers."""

from __future__ import annotations

from collections.abc import Iterator

from experiments import table
from experiments.conditions import REPLACEMENTS
from experiments.deltas import bars
from experiments.figures import Finished, plot
from experiments.study import Job, Subject

TITLE = "Zero, mean, noise, shuffle"
NOTE = (
    "Difference from the full condition in points, with 95 % intervals of the paired difference. Zeros put a token where the model "
    "never saw one; the mean, noise with the calibrated moments, and registers of another image do not. fix_reg_mean replaces at the "
    "input of every block (Sun et al. 2024)."
)
CONDITIONS = (*REPLACEMENTS, "fix_reg_mean")


def jobs(subject: Subject) -> Iterator[Job]:
    """All tasks under the replacements of registers."""
    return table.jobs(subject, CONDITIONS)


def section(study: Finished) -> str:
    """Bars of differences, one panel for each model with registers."""
    figure = bars(study, CONDITIONS)
    return plot(figure) if figure else ""


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("replacement_controls", __doc__)
