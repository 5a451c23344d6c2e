"""What an analysis is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target


class Analysis(Protocol):
    """One section of the page, and the cells it is made from. Every analysis is a module of this package.

    To add one:

    1. Write `experiments/analyses/my_analysis.py` with the four members below. `random_patch_control.py` is a short example that
       shows numbers of tasks under some conditions (`study.grid.jobs`); `instrument_check.py` computes numbers of its own.
    2. Add it to `presets.ANALYSES` under the module's name, at its place on the page.

    `python -m experiments.reproduce --only my_analysis` then runs its cells and writes a page with its section. A cell is computed once,
    also where several analyses ask for it: what makes a cell the same is its key (`study.jobs.rows_key`).

    An analysis that compares models may have `pair_jobs(first, second)` besides, the cells that it needs of every two of them; they are
    computed after those of single models. One that comes to a conclusion may have `verdicts(results)`: lines of plain text for the summary
    of the page, none where the study has nothing for it; and `verdict_words(results)`: the same by model, for run.json.

    Attributes:
        TITLE: heading of the section.
        NOTE: HTML under the heading: what is shown, how it was measured, and what a reader may conclude from it.
    """

    TITLE: str
    NOTE: str

    def jobs(self, target: Target) -> Iterator[Job]:
        """The cells that the section needs of one model (or baseline); none where the analysis does not apply to it."""

    def section(self, results: StudyResults) -> str:
        """The section as HTML, from the rows and cells of a finished study; empty where the study has nothing for it."""
