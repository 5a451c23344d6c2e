"""Write the page of a finished study again from its folder: `python -m experiments.report runs/demo`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.definition import check_page_budget
from experiments.program import run
from experiments.report import page
from experiments.report.tables import SHOWN_ROWS, fill_readme, shown_rows
from experiments.study.results import read_results
from jaxvit.files import refuse_remote, write_text


@dataclass(frozen=True)
class Report:
    """Write the page of a study again from its folder.

    Attributes:
        folder: the study's folder, such as runs/demo.
        readme: also write the table of results into this file, between its marks, and the rows that README and model cards are made of
            to experiments/demo_results.jsonl beside it.
        page_budget: megabytes that the page may weigh. What its other sections leave is for the data of the token microscope; the page
            says what did not fit.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    readme: Path | None = None
    page_budget: Annotated[
        float | None, tyro.conf.arg(metavar="MB", help_behavior_hint="(default: 5 for the bundled demo models, else 12)")
    ] = None


def write(report: Report) -> None:
    """Write the page, and what else is asked for.

    Raises:
        ValueError: the folder holds no finished study, or a quick look where tables for a README are asked for; or no number of megabytes.
    """
    if report.readme:
        refuse_remote(report.readme)
    check_page_budget(report.page_budget)
    results = read_results(report.folder)
    if report.readme and results.manifest["study"].get("quick"):
        raise ValueError(
            f"{report.folder} is a quick look, and a README shows a whole study; give the folder of one, or leave out --readme"
        )
    written = page.write(report.folder, megabytes=report.page_budget)
    if report.readme:
        rows = shown_rows(results.rows)
        fill_readme(report.readme, rows)
        write_text(report.readme.parent / SHOWN_ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    print(written)


if __name__ == "__main__":
    run(write, Report, __doc__)
