"""Whether a study could start: devices, versions, cache, disk, memory, the study itself, and the workers of a cluster."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.cluster.engine import connected, job_script
from experiments.cluster.machines import differences, required_software, this_worker
from experiments.cluster.worker import Order, Refusal, run_order
from experiments.definition import Study
from experiments.numerics import compiler_flags
from experiments.planning import chosen, load_models, make_plan, study_images
from experiments.program import prepare_devices
from experiments.study import folder
from experiments.study.cells import cell_hash
from experiments.study.cost import estimate, free_host_memory
from experiments.study.jobs import machine, software
from jaxvit.checkpoint import weights_hash
from jaxvit.files import cache_folder
from jaxvit.sharding import batch_mesh

_GIB = 2**30
_PATIENCE = 120  # seconds for a worker to start its devices, and again to prepare the study


def examine(study: Study, console: Console) -> bool:
    """Print a line for each thing that a study needs, and return whether all are there; nothing is computed or written but the caches."""
    cells: list[str] = []
    checks: dict[str, Callable[[], str]] = {
        "devices": lambda: _devices(study),
        "versions": _versions,
        "cache": lambda: _folder(cache_folder()),
        "results": lambda: _folder(study.folder.absolute()),
        "memory": _memory,
        "study": lambda: _study(study, cells),
    }
    fine = all([_report(console, name, check) for name, check in checks.items()])
    if study.cluster and fine:
        try:
            for name, check in _workers(study, cells):
                fine &= _report(console, name, check)
        except (ValueError, OSError) as error:
            fine = _print(console, False, "cluster", str(error))
    console.print("a study can start" if fine else "a study cannot start: see the lines with NO", highlight=False)
    return fine


def _report(console: Console, name: str, check: Callable[[], str]) -> bool:
    """Print what a check says, or the line of its error."""
    try:
        line, fine = check(), True
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        line, fine = " ".join(str(error).split()), False
    return _print(console, fine, name, line)


def _print(console: Console, fine: bool, name: str, line: str) -> bool:
    console.print(f"{'ok' if fine else 'NO':3} {name:9} {line}", soft_wrap=True, markup=False, highlight=False)
    return fine


def _devices(study: Study) -> str:
    prepare_devices(only_cpu=bool(study.cluster))
    entry = machine()
    return f"{entry['devices']} x {entry['device']}{' (this process plans; workers compute)' if study.cluster else ''}"


def _versions() -> str:
    entry, flags = software(), compiler_flags()
    versions = {"python": entry["python"], **entry["versions"]}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + (f"; compiler flags {flags}" if flags else "")


def _folder(path: Path) -> str:
    """That a folder can be written to, and how much is free there."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f'"{existing}" cannot be written to; choose another folder')
    return f"{path}, {shutil.disk_usage(existing).free / _GIB:.1f} GiB free"


def _memory() -> str:
    free = free_host_memory()
    return "not told by this system" if free is None else f"{free / _GIB:.1f} GiB free"


def _study(study: Study, cells: list[str]) -> str:
    """What is left to compute; the names of all cells go into `cells`."""
    out = study.folder
    folder.check_owner(out)
    models = load_models(study)
    choices, data = chosen(study, models), study_images(study, models)
    images = list({entry.protocol: entry for entry in data.values()}.values())
    weights = {name: weights_hash(model) for name, model in models.items()}
    folder.check_run_folder(out, study.identity(*images), weights, images[0].files)
    plan = make_plan(study, choices, models, data, batch_mesh())
    cost = estimate(plan.targets, plan.jobs, out)
    cost.check(computing=not study.cluster)
    cells += [cell_hash(job.key) for job in plan.jobs]
    return f"{len(cells)} cells; {cost}"


def _workers(study: Study, cells: Sequence[str]) -> Iterator[tuple[str, Callable[[], str]]]:
    """A check of every worker: that it is like the first one and this process, and can prepare the study."""
    if study.cluster == "slurm" and study.cluster_config:
        script = job_script(study.cluster_config)
        yield "slurm", lambda: _slurm(script)
        return
    required = {**required_software(), **folder.required_devices(study.folder)}
    with connected(study.cluster, study.cluster_config) as client:
        identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=_PATIENCE)
        if not identity["workers"]:
            raise ValueError(f"no workers at {study.cluster}; start them: dask worker {study.cluster} --nthreads 1 --memory-limit 0")
        for address, entry in identity["workers"].items():
            yield "worker", lambda address=address, entry=entry: _worker(client, address, entry, required, study, cells)  # type: ignore[misc]


def _slurm(script: str) -> str:
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch is not on this machine; run on a login node")
    return f"each worker is this job:\n{script}"


def _worker(client: Any, address: str, entry: dict[str, Any], required: dict[str, Any], study: Study, cells: Sequence[str]) -> str:
    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        future = client.submit(function, *arguments, workers=[address], allow_other_workers=False, pure=False)
        try:
            return future.result(timeout=_PATIENCE)
        except TimeoutError as error:
            raise ValueError(f"{address} does not answer for {_PATIENCE} s; end it, or wait for what it computes") from error

    if entry["nthreads"] != 1:
        raise ValueError(f"{address} runs {entry['nthreads']} threads; start it with --nthreads 1")
    has = ask(this_worker)
    if different := differences(required, has):
        raise ValueError(f"{address} on {has['host']} has {', '.join(different)}")
    required |= {name: has[name] for name in ("device", "devices", "threads")}
    answer = ask(run_order, Order(pickle.dumps(study.for_workers()), tuple(cells), {}, required, only_check=True))
    if isinstance(answer, Refusal):
        raise ValueError(f"{address} on {has['host']}: {answer.reason}")
    return f"{address} on {has['host']}: {has['devices']} x {has['device']}, prepared the study"
