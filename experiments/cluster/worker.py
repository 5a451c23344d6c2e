"""What runs in a worker: it makes the plan of the study for itself, computes the cells that it is sent for, and sends their files back.

Nothing but the scheduler's connection is shared: a worker needs no folder of the driver's, only the same models and images.
"""

from __future__ import annotations

import functools
import pickle
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cluster.machines import differences, this_worker
from experiments.definition import Study
from experiments.planning import whole_plan
from experiments.study.cells import CellFiles, Store, cell_hash
from experiments.study.cost import estimate
from experiments.study.jobs import Job
from experiments.study.run import run_unit
from experiments.study.target import Target
from experiments.study.units import Unit
from jaxvit.sharding import batch_mesh


class Order(NamedTuple):
    """A unit for a worker.

    Attributes:
        study: the study, pickled.
        cells: hashes of the cells that it is to compute.
        needs: files of the cells that these need, by hash.
        required: entries of `this_worker` that the study asks for.
        only_check: compute nothing, return no cells; say only whether it could.
    """

    study: bytes
    cells: tuple[str, ...]
    needs: Mapping[str, CellFiles]
    required: Mapping[str, Any]
    only_check: bool = False


class Refusal(NamedTuple):
    """Why a worker can compute nothing of this study, in one line."""

    reason: str


_one_at_a_time = threading.Lock()


def run_order(order: Order) -> dict[str, CellFiles] | Refusal:
    """The files of the cells of an order, by hash."""
    with _one_at_a_time:
        different = differences(order.required, this_worker())
        if different:
            return Refusal(f"it has {', '.join(different)}")
        try:
            targets, jobs = _plan(order.study)
        except (ValueError, OSError, ImportError) as error:
            return Refusal(f"it cannot prepare the study: {' '.join(str(error).split())}")
        if any(name not in jobs for name in order.cells):
            return Refusal("its models, images or plug-ins are others than here; copy those of this machine to it, or empty its cache")
        if order.only_check:
            return {}
        with tempfile.TemporaryDirectory(prefix="jaxvit-cells-", dir=_scratch()) as folder:
            store = Store(Path(folder))
            for name, files in order.needs.items():
                store.write_files(name, files)
            run_unit(Unit({name: jobs[name] for name in order.cells}, frozenset(order.needs)), targets, store)
            return {name: store.read_files(name) for name in order.cells}


@functools.lru_cache(maxsize=1)
def _plan(study: bytes) -> tuple[list[Target], dict[str, Job]]:
    """Models with their data, and all jobs of a study by the hashes of their cells; those of the last study stay in memory.

    Raises:
        ValueError: what it reads is not here, or it does not fit this machine.
    """
    chosen: Study = pickle.loads(study)
    plan = whole_plan(chosen, batch_mesh())
    estimate(plan.targets, plan.jobs, Path(tempfile.gettempdir())).check()
    return plan.targets, {cell_hash(job.key): job for job in plan.jobs}


def _scratch() -> str | None:
    """The worker's own folder, which Dask empties after workers that were killed; None outside a worker."""
    from distributed import get_worker

    try:
        return str(get_worker().local_directory)
    except ValueError:
        return None
