"""Running the jobs of a study one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from experiments.study.cells import Store
from experiments.study.jobs import Job, run_job
from experiments.study.progress import report_progress
from experiments.study.target import Target


def run_jobs(jobs: Sequence[Job], targets: Sequence[Target], store: Store, console: Console) -> None:
    """Compute and store the cells of all jobs; a model gives its memory back when the next one begins."""
    with report_progress(console, len(jobs), sum(job.weight for job in jobs)) as progress:
        for job in jobs:
            for target in targets:
                if target.name != job.key["model"]["name"]:
                    target.release()
            progress.begin(job.label)
            run_job(job, store)
            progress.end(job.weight)
