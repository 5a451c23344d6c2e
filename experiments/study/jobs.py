"""Pieces of work of a study: a job computes one cell."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from experiments.numerics import cpu_threads
from experiments.rows import SCHEMA, Row
from experiments.study.cells import Cell, Key, Needed, Store
from experiments.study.target import Target

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A cell that is to be computed.

    Attributes:
        key: what determines it.
        model: name of the model in the study.
        label: what the screen says meanwhile.
        weight: its share of the study's time, for the progress bar.
        compute: rows and arrays of the cell; may load the cells that it needs.
        images: that go through the model, for the estimate of cost.
        condition: name of the one that the images are run under; "" for several or none.
        ablations: definitions of ablations that only this cell knows, by hash.
        host_only: it leaves devices alone, so that it may run beside the jobs that follow.
        apart: it makes no use of the features that jobs of a model share, and little of memory: on a CPU it may run beside others.
        needs: keys of the cells that `compute` loads.
        unit: jobs of one model and one unit share what they extract: one process computes them one after the other; "" for a job alone.
    """

    key: Key
    model: str
    label: str
    weight: float
    compute: Callable[[Needed], tuple[list[Row], Arrays]]
    images: int = 0
    condition: str = ""
    ablations: Mapping[str, str] = field(default_factory=dict)
    host_only: bool = False
    apart: bool = False
    needs: tuple[Key, ...] = ()
    unit: str = ""


def scores_key(target: Target, kind: str, **definition: Any) -> dict[str, Any]:
    """The key of a cell without rows: kind, model, data, how features are extracted, and the definition of what is computed from them."""
    return {"kind": kind, "model": target.key, "data": target.data.key, "extraction": target.settings.extraction, **definition}


def rows_key(target: Target, kind: str, **definition: Any) -> dict[str, Any]:
    """The key of a cell with rows: besides, what stands in its rows, which is names, resampling and the version of their fields."""
    settings = target.settings
    inference = {"name": target.name, "schema": SCHEMA, "resamples": settings.resamples, "seed": settings.seed}
    return {**scores_key(target, kind, **definition), **inference}


def run_job(job: Job, store: Store) -> Cell:
    """Compute a cell and store it."""
    started = time.monotonic()
    rows, arrays = job.compute(Needed(store, job.needs))
    provenance = {
        "seconds": round(time.monotonic() - started, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **machine(),
    }
    return store.save(job.key, rows, arrays, provenance)


@functools.cache
def machine() -> dict[str, Any]:
    """Devices, threads (of a CPU; else 0) and versions that numbers are computed with."""
    devices = jax.local_devices()
    threads = cpu_threads() if devices[0].platform == "cpu" else 0
    return {"device": devices[0].device_kind, "devices": len(devices), "threads": threads, **software()}


@functools.cache
def software() -> dict[str, Any]:
    """Versions that numbers are computed with; starts no device."""
    packages = {name: version(name) for name in ("jaxvit", "jax", "jaxlib", "flax", "numpy")}
    return {"python": platform.python_version(), "versions": packages}
