"""Pieces of work of a study: a job computes one cell."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from experiments.rows import Row
from experiments.study.cells import Cell, Key, Store
from experiments.study.target import Target

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A cell that is to be computed.

    Attributes:
        key: what determines it.
        label: what the screen says meanwhile.
        weight: its share of the study's time, for the progress bar.
        compute: rows and arrays of the cell; may load cells of earlier jobs.
        images: that go through the model, for the estimate of cost.
        host_only: it leaves devices alone, so that it may run beside the jobs that follow; none of those may load its cell.
    """

    key: Key
    label: str
    weight: float
    compute: Callable[[Store], tuple[list[Row], Arrays]]
    images: int = 0
    host_only: bool = False


def cell_key(target: Target, kind: str, **more: Any) -> dict[str, Any]:
    """The key of a cell: kind, model, data, settings, and what else determines it."""
    return {"kind": kind, "model": target.key, "data": target.data.key, **target.settings.key, **more}


def run_job(job: Job, store: Store) -> Cell:
    """Compute a cell and store it."""
    started = time.monotonic()
    rows, arrays = job.compute(store)
    provenance = {
        "seconds": round(time.monotonic() - started, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **machine(),
    }
    return store.save(job.key, rows, arrays, provenance)


def machine() -> dict[str, Any]:
    """Device and versions that numbers are computed with."""
    devices = jax.devices()
    packages = {name: version(name) for name in ("jaxvit", "jax", "jaxlib", "flax", "numpy")}
    return {"device": devices[0].device_kind, "devices": len(devices), "python": platform.python_version(), "versions": packages}
