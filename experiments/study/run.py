"""Running the jobs of a study in this process: most one after the other, and beside them those that can go alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from rich.console import Console

from experiments.numerics import pinned_thread
from experiments.preemption import check_preempted, discarding
from experiments.study.cells import Store
from experiments.study.jobs import Job, run_job
from experiments.study.progress import ProgressReporter, report_progress
from experiments.study.target import Target
from experiments.study.units import Unit, units_of


def run_jobs(jobs: Sequence[Job], targets: Sequence[Target], store: Store, console: Console) -> None:
    """Compute and store the cells of all jobs; a model gives its memory back when the next one begins.

    Units that leave devices alone run in a second thread, in their order. On a CPU those that share no features with others run in a third
    one, from the beginning: compiling keeps one core busy, and leaves the others to them. The first error of any job ends the run.
    """
    units = units_of(jobs)
    needed = frozenset[str]().union(*(unit.needs for unit in units))
    apart = [unit for unit in units if unit.apart and needed.isdisjoint(unit.jobs)] if jax.default_backend() == "cpu" else []
    on_host, beside = _Lane("host", store), _Lane("beside", store)
    try:
        with report_progress(console, len(jobs), sum(job.weight for job in jobs)) as progress:
            for unit in apart:
                beside.take(unit)
            for unit in units:
                if unit in apart:
                    continue
                if unit.host_only:
                    on_host.take(unit)
                else:
                    if not all(map(store.holds, unit.needs)):
                        on_host.finish(progress)
                    run_unit(unit, targets, store, progress)
                on_host.report(progress)
                beside.report(progress)
            on_host.finish(progress)
            beside.finish(progress)
    finally:
        with discarding():
            on_host.close()
            beside.close()


class _Lane:
    """A thread beside the main one, which computes units in the order in which it takes them."""

    def __init__(self, name: str, store: Store):
        self._thread, self._store = ThreadPoolExecutor(1, thread_name_prefix=name), store
        self._taken: deque[tuple[Unit, Future[None]]] = deque()

    def take(self, unit: Unit) -> None:
        """Compute a unit when those before it are done."""
        self._taken.append((unit, self._thread.submit(_run_in_thread, unit, self._store)))

    def report(self, progress: ProgressReporter) -> None:
        """Report the units that are done since; raise their errors."""
        while self._taken and self._taken[0][1].done():
            self._end_first(progress)

    def finish(self, progress: ProgressReporter) -> None:
        """Wait for all units."""
        while self._taken:
            progress.begin(self._taken[0][0].label)
            self._end_first(progress)

    def close(self) -> None:
        """Take no more units, and forget those that have not begun."""
        self._thread.shutdown(cancel_futures=True)

    def _end_first(self, progress: ProgressReporter) -> None:
        unit, done = self._taken.popleft()
        done.result()
        end(unit, progress)


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


def _run_in_thread(unit: Unit, store: Store) -> None:
    """`run_unit` in a thread of its own, which does not inherit what the main thread has pinned."""
    with pinned_thread():
        run_unit(unit, (), store)
