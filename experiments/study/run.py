"""Running the jobs of a study: those that need devices one after the other, intervals and tests beside them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rich.console import Console

from experiments.numerics import pinned_thread
from experiments.preemption import check_preempted
from experiments.study.cells import Cell, Store
from experiments.study.jobs import Job, run_job
from experiments.study.progress import report_progress
from experiments.study.target import Target


def run_jobs(jobs: Sequence[Job], targets: Sequence[Target], store: Store, console: Console) -> None:
    """Compute and store the cells of all jobs; a model gives its memory back when the next one begins.

    Jobs that leave devices alone run in a second thread, in their order. The first error of any job ends the run.
    """
    on_host: deque[tuple[Job, Future[Cell]]] = deque()
    worker = ThreadPoolExecutor(1, thread_name_prefix="host")
    try:
        with report_progress(console, len(jobs), sum(job.weight for job in jobs)) as progress:
            for job in jobs:
                check_preempted()
                if job.host_only:
                    on_host.append((job, worker.submit(_run_on_host, job, store)))
                else:
                    for target in targets:
                        if target.name != job.model:
                            target.release()
                    progress.begin(job.label)
                    run_job(job, store)
                    progress.end(job.weight)
                while on_host and on_host[0][1].done():
                    finished, cell = on_host.popleft()
                    cell.result()
                    progress.end(finished.weight)
            for finished, cell in on_host:
                progress.begin(finished.label)
                cell.result()
                progress.end(finished.weight)
    finally:
        worker.shutdown(cancel_futures=True)


def _run_on_host(job: Job, store: Store) -> Cell:
    """`run_job` in a thread of its own, which does not inherit what this one has pinned."""
    with pinned_thread():
        return run_job(job, store)
