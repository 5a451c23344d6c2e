"""Running the jobs of a study in this process: those that need devices one after the other, intervals and tests beside them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rich.console import Console

from experiments.numerics import pinned_thread
from experiments.preemption import check_preempted
from experiments.study.cells import Store
from experiments.study.jobs import Job, run_job
from experiments.study.progress import ProgressReporter, report_progress
from experiments.study.target import Target
from experiments.study.units import Unit, units_of


def run_jobs(jobs: Sequence[Job], targets: Sequence[Target], store: Store, console: Console) -> None:
    """Compute and store the cells of all jobs; a model gives its memory back when the next one begins.

    Units that leave devices alone run in a second thread, in their order. The first error of any job ends the run.
    """
    on_host: deque[tuple[Unit, Future[None]]] = deque()
    worker = ThreadPoolExecutor(1, thread_name_prefix="host")
    try:
        with report_progress(console, len(jobs), sum(job.weight for job in jobs)) as progress:

            def wait_for_host() -> None:
                while on_host:
                    unit, done = on_host.popleft()
                    progress.begin(unit.label)
                    done.result()
                    end(unit, progress)

            for unit in units_of(jobs):
                if unit.host_only:
                    on_host.append((unit, worker.submit(_run_on_host, unit, store)))
                else:
                    if not all(map(store.holds, unit.needs)):
                        wait_for_host()
                    run_unit(unit, targets, store, progress)
                while on_host and on_host[0][1].done():
                    finished, done = on_host.popleft()
                    done.result()
                    end(finished, progress)
            wait_for_host()
    finally:
        worker.shutdown(cancel_futures=True)


def run_unit(unit: Unit, targets: Sequence[Target], store: Store, progress: ProgressReporter | None = None) -> None:
    """Compute and store the cells of a unit, one after the other; models besides its own give their memory back."""
    for target in targets:
        if target.name != unit.model and not unit.host_only:
            target.release()
    for job in unit.jobs.values():
        check_preempted()
        if progress:
            progress.begin(job.label)
        run_job(job, store)
        if progress:
            progress.end(job.weight)


def end(unit: Unit, progress: ProgressReporter) -> None:
    """Report that all jobs of a unit are done."""
    for job in unit.jobs.values():
        progress.end(job.weight)


def _run_on_host(unit: Unit, store: Store) -> None:
    """`run_unit` in a thread of its own, which does not inherit what the main thread has pinned."""
    with pinned_thread():
        run_unit(unit, (), store)
