"""Handing units to workers, as they come and go: a unit of a worker that is lost, silent or refused goes to another one."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from experiments.cluster.machines import differences, required_software, this_worker
from experiments.cluster.worker import Order, Refusal, run_order
from experiments.definition import Study
from experiments.preemption import check_preempted
from experiments.study.cells import Store
from experiments.study.jobs import Job
from experiments.study.progress import ProgressReporter, report_progress
from experiments.study.run import end
from experiments.study.units import Unit, units_of

SILENCE = 60.0
"""Seconds without a heartbeat after which a worker is stuck; `DASK_JAXVIT__SILENCE` in the environment changes it."""
WAIT = 300.0
"""Seconds without any worker that fits after which a run ends; `DASK_JAXVIT__WAIT` changes it. Jobs of Slurm are waited for without end."""
LOSSES = 5
"""Workers that one unit may cost before it is taken for the reason."""
RETRIES = 2
"""Further attempts at a unit that ended with an error which another machine need not have."""
_LOOK, _POLL = 1.0, 0.02
"""Seconds between looks at who is there, and at what has come back."""


def run_on_cluster(
    jobs: Sequence[Job],
    study: Study,
    store: Store,
    client: Any,
    console: Console,
    required: Mapping[str, Any],
    begin: Callable[[dict[str, Any]], None],
) -> None:
    """Compute the cells of all jobs on the workers of a client, and store them here.

    Args:
        required: devices that workers must have; by default those of the first worker.
        begin: called once, with what the workers compute with, before anything is stored.

    Raises:
        ValueError: the scheduler is gone, no worker fits, or a unit ends worker after worker.
    """
    units = units_of(jobs)
    with report_progress(console, len(jobs), sum(job.weight for job in jobs)) as progress:
        _Distribution(units, pickle.dumps(study.for_workers()), store, client, console, progress, dict(required), begin).run()


@dataclass
class _Worker:
    """A worker as the driver sees it.

    Attributes:
        future: what it does, its greeting or a unit; None while it is idle.
        fits: None until it has greeted.
        model: of its last unit, which it has in memory.
        beat, since: its last heartbeat by the scheduler's clock, and when that changed by ours, which need not agree.
    """

    future: Any = None
    unit: Unit | None = None
    started: float = 0.0
    fits: bool | None = None
    model: str = ""
    beat: float = 0.0
    since: float = 0.0
    silent: bool = False


class _Distribution:
    def __init__(
        self,
        units: list[Unit],
        study: bytes,
        store: Store,
        client: Any,
        console: Console,
        progress: ProgressReporter,
        required: dict[str, Any],
        begin: Callable[[dict[str, Any]], None],
    ):
        import dask

        self._waiting, self._study, self._store, self._client = units, study, store, client
        self._console, self._progress, self._begin = console, progress, begin
        self._required, self._begun = {**required_software(), **required}, False
        self._missing = {name for unit in units for name in unit.jobs}
        self._workers: dict[str, _Worker] = {}
        self._losses, self._failures = Counter[str](), Counter[str]()
        self._longest, self._fitting, self._reason = 0.0, time.monotonic(), ""
        self._silence = float(dask.config.get("jaxvit.silence", SILENCE))
        self._wait = float(dask.config.get("jaxvit.wait", WAIT))

    def run(self) -> None:
        """Until every cell is stored."""
        looked = -_LOOK
        while self._missing:
            check_preempted()
            if time.monotonic() - looked >= _LOOK:
                looked = time.monotonic()
                self._look_around()
            self._hand_out()
            time.sleep(_POLL)
            self._collect()

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _look_around(self) -> None:
        """Greet workers that have come, and take the units of those that have gone or are silent."""
        try:
            # `scheduler_info` returns a cache that a poll of Dask's own overwrites with one that names no workers
            identity = self._client.sync(self._client.scheduler.identity, n_workers=-1, callback_timeout=self._silence)
        except (OSError, TimeoutError) as error:
            raise ValueError("the scheduler is gone; what was finished is kept: start it again, and then the same command") from error
        known, now = identity["workers"], time.monotonic()
        for address in [address for address in self._workers if address not in known]:
            self._lose(address, "is gone")
            del self._workers[address]
        for address, entry in known.items():
            worker = self._workers.setdefault(address, _Worker())
            if entry["last_seen"] != worker.beat:
                worker.beat, worker.since, worker.silent = entry["last_seen"], now, False
            elif now - worker.since > self._silence and not worker.silent:
                worker.silent = True
                self._lose(address, f"has been silent for {self._silence:.0f} s")
            if worker.fits is None and worker.future is None and not worker.silent:
                if entry["nthreads"] != 1:
                    self._refuse(address, f"it runs {entry['nthreads']} threads; start it with --nthreads 1")
                else:
                    worker.future = self._submit(address, this_worker)
        if any(worker.fits and not worker.silent for worker in self._workers.values()):
            self._fitting = now
        elif now - self._fitting > self._wait:
            raise ValueError(
                f"no worker for {self._wait:.0f} s{f' (the last one: {self._reason})' if self._reason else ''}; what was finished is kept: "
                "start workers, and then the same command (docs/launching.md)"
            )

    def _submit(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._client.submit(function, *arguments, workers=[address], allow_other_workers=False, pure=False)

    def _hand_out(self) -> None:
        """A unit for every idle worker, as long as there are units whose needs are met."""
        for address, worker in self._workers.items():
            if worker.fits and worker.future is None and not worker.silent and (unit := self._next(worker)):
                needs = {name: self._store.read_files(name) for name in unit.needs}
                order = Order(self._study, tuple(unit.jobs), needs, self._required)
                worker.future, worker.unit, worker.model = self._submit(address, run_order, order), unit, unit.model
                worker.started = time.monotonic()
                self._progress.begin(unit.label)

    def _next(self, worker: _Worker) -> Unit | None:
        """The unit that is best for a worker: one that needs devices before one that does not, one of the model that it has in memory, else
        of the model that the fewest have. Where none is left, one that takes suspiciously long elsewhere."""
        ready = [unit for unit in self._waiting if unit.needs.isdisjoint(self._missing)]
        if ready:
            models = Counter(other.model for other in self._workers.values() if other.unit)
            unit = min(ready, key=lambda unit: (unit.host_only, unit.model != worker.model, models[unit.model]))
            self._waiting.remove(unit)
            return unit
        now, copies = time.monotonic(), Counter(other.unit.label for other in self._workers.values() if other.unit)
        late = [o.unit for o in self._workers.values() if o.unit and now - o.started > max(2 * self._silence, 4 * self._longest)]
        return next((unit for unit in late if copies[unit.label] == 1), None)

    def _collect(self) -> None:
        """Take what has come back."""
        for address, worker in self._workers.items():
            if worker.future is not None and worker.future.status != "pending":
                self._take(address, worker)

    def _take(self, address: str, worker: _Worker) -> None:
        """What a worker has sent: its greeting, cells, a refusal or an error."""
        from distributed.scheduler import KilledWorker

        future, unit, worker.future, worker.unit = worker.future, worker.unit, None, None
        if future.status in ("cancelled", "lost"):
            self._put_back(unit)
            return
        result = future.exception() if future.status == "error" else future.result()
        if isinstance(result, KilledWorker):
            worker.unit = unit
            self._lose(address, "was killed")
        elif isinstance(result, ImportError) or (isinstance(result, BaseException) and unit is None):
            self._put_back(unit)
            self._refuse(address, f"it cannot start ({' '.join(str(result).split())})")
        elif isinstance(result, BaseException):
            assert unit is not None
            self._failures[unit.label] += 1
            if isinstance(result, ValueError) or self._failures[unit.label] > RETRIES:
                raise result
            self._say(f"worker {address}: {unit.label} failed ({type(result).__name__}: {result}); it is tried again")
            self._put_back(unit)
        elif isinstance(result, Refusal):
            self._put_back(unit)
            self._refuse(address, result.reason)
        elif unit is None:
            self._greeted(address, worker, result)
        else:
            self._keep(unit, result, time.monotonic() - worker.started)

    def _greeted(self, address: str, worker: _Worker, entry: dict[str, Any]) -> None:
        """Take a worker that fits, and refuse one that does not; the first one decides what devices all must have."""
        if different := differences(self._required, entry):
            self._refuse(address, f"on {entry['host']} it has {', '.join(different)}")
            return
        worker.fits = True
        self._required |= {name: entry[name] for name in ("device", "devices", "threads")}
        if not self._begun:
            self._begun = True
            self._begin(entry)

    def _keep(self, unit: Unit, cells: Mapping[str, Any], seconds: float) -> None:
        self._longest = max(self._longest, seconds)
        if self._missing.isdisjoint(unit.jobs):
            return  # another worker was faster
        for name, files in cells.items():
            self._store.write_files(name, files)
        self._missing.difference_update(unit.jobs)
        end(unit, self._progress)

    def _refuse(self, address: str, reason: str) -> None:
        worker = self._workers[address]
        worker.fits, self._reason = False, reason
        self._say(f"worker {address} is refused: {reason}")

    def _lose(self, address: str, what: str) -> None:
        """Give the unit of a worker to another one."""
        worker = self._workers[address]
        if worker.future is not None:
            worker.future.cancel()
        unit, worker.future, worker.unit = worker.unit, None, None
        if unit is not None:
            self._losses[unit.label] += 1
            if self._losses[unit.label] > LOSSES:
                raise ValueError(f"{unit.label} has cost {LOSSES + 1} workers, the last one {what}; look at their memory and their logs")
            self._say(f"worker {address} {what}; {unit.label} goes to another")
            self._put_back(unit)

    def _put_back(self, unit: Unit | None) -> None:
        elsewhere = [other.unit for other in self._workers.values()]
        if unit is not None and not self._missing.isdisjoint(unit.jobs) and unit not in elsewhere and unit not in self._waiting:
            self._waiting.insert(0, unit)
