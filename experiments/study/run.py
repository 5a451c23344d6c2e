"""Running the jobs of a study one after the other, with a bar that tells how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.study.cells import Store
from experiments.study.jobs import Job, run_job
from experiments.study.target import Target


def run_jobs(jobs: Sequence[Job], targets: Sequence[Target], store: Store, console: Console) -> None:
    """Compute and store the cells of all jobs; a model gives its memory back when the next one begins."""
    columns = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(BarColumn(), TaskProgressColumn(), *columns, console=console) as progress:
        bar = progress.add_task("starting", total=sum(job.weight for job in jobs))
        for job in jobs:
            for target in targets:
                if target.name != job.key["model"]["name"]:
                    target.release()
            progress.update(bar, description=job.label)
            run_job(job, store)
            progress.advance(bar, job.weight)
