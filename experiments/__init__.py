"""Programs a person runs: data sets, tasks, the resumable study and its analyses, the report, training and benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# XLA's LAPACK calls come from several threads at once; OpenBLAS's own threads below each of them make them wait on one another, some for
# ever (bench/NOTES.md). It reads its setting when it is loaded, so this stands before any import of numpy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if TYPE_CHECKING:
    from experiments.study.results import StudyResults


def results(folder: str | Path) -> Any:
    """The numbers of a finished study: a pandas frame with a column for each field of a row where pandas is installed, else the rows as
    dictionaries (`experiments.rows.RowFields` says what each field means).

    Raises:
        ValueError: there is none, or another version wrote it.
    """
    rows = open_study(folder).rows
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def open_study(folder: str | Path) -> StudyResults:
    """The finished study in a folder: its rows, its run.json, its cells, and the scores of single units behind a row.

    Raises:
        ValueError: there is none, or another version wrote it.
    """
    from experiments.study.results import read_results

    return read_results(Path(folder))
