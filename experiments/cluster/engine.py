"""Where workers come from: processes of this machine, a scheduler that somebody started, or Slurm."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.cluster.machines import PLACE

_LOCAL = re.compile(r"local:([1-9][0-9]*)")
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://[^/\s:]+:[0-9]+")
_KINDS = "local:2 (so many processes of this machine), tcp://HOST:8786 (a scheduler that is running) and slurm (with --cluster-config FILE)"
_CONNECT = 20  # seconds


def check_cluster(cluster: str, config: Path | None) -> None:
    """Check what a command line says of workers, without looking for them.

    Raises:
        ValueError: it names none, or the configuration does not go with it.
    """
    if not cluster:
        if config is not None:
            raise ValueError(f'--cluster-config "{config}" is for --cluster slurm, and no --cluster is given; add it, or leave this out')
        return
    if cluster != "slurm" and not _LOCAL.fullmatch(cluster) and not _ADDRESS.fullmatch(cluster):
        raise ValueError(f'--cluster "{cluster}" is unknown; possible are {_KINDS}')
    if cluster == "slurm" and config is None:
        raise ValueError("--cluster slurm needs --cluster-config FILE; docs/launching.md has an example")
    if cluster != "slurm" and config is not None:
        raise ValueError(f'--cluster-config "{config}" is for --cluster slurm; leave it out')
    for package in ("distributed", *(["dask_jobqueue"] if cluster == "slurm" else [])):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"--cluster needs the package {package}; install it on all machines: pip install -e '.[cluster]'")
    if config is not None:
        read_config(config)


@contextlib.contextmanager
def connected(cluster: str, config: Path | None) -> Iterator[Any]:
    """A client of Dask (`distributed.Client`) whose workers are started, or asked for, and end with the block if they were started here.

    Raises:
        ValueError: there is no scheduler at the address, or Slurm's commands are not here.
    """
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Sending large graph")  # needed cells travel with their unit, once
    with contextlib.ExitStack() as stack:
        target = cluster
        if local := _LOCAL.fullmatch(cluster):
            target = stack.enter_context(_local(int(local[1])))
        elif cluster == "slurm":
            assert config is not None
            target = stack.enter_context(_slurm(read_config(config)))
        try:
            yield stack.enter_context(Client(target, timeout=_CONNECT, set_as_default=False))
        except (OSError, TimeoutError) as error:
            if not _is_connecting(error):
                raise
            start = f"dask scheduler --port {cluster.rpartition(':')[2]}"
            raise ValueError(f"there is no scheduler at {cluster}; start one there: {start}") from error


def _is_connecting(error: Exception) -> bool:
    return "Timed out" in str(error) or "trying to connect" in str(error)


def _local(count: int) -> Any:
    """So many workers on this machine, each with its part of the devices; they end with this process."""
    from distributed import Nanny, Scheduler, SpecCluster

    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    common = {"host": "127.0.0.1", "nthreads": 1, "memory_limit": None, "dashboard": False, "silence_logs": logging.CRITICAL}
    workers = {i: {"cls": Nanny, "options": {**common, "env": {PLACE: f"{i}/{count}"}}} for i in range(count)}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def read_config(path: Path) -> dict[str, Any]:
    """The options of Slurm's workers, YAML: `workers`, their number, and those of `dask_jobqueue.SLURMCluster`; `cores` are of a worker.

    Raises:
        ValueError: it cannot be read, or lacks the number of workers or what each takes.
    """
    import yaml

    try:
        options = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f'--cluster-config "{path}" cannot be read ({" ".join(str(error).split())}); give a YAML file') from error
    missing = [name for name in ("workers", "cores", "memory") if not isinstance(options, dict) or name not in options]
    if missing:
        raise ValueError(f'--cluster-config "{path}" lacks {", ".join(missing)}; give one line each, as in examples/launch/slurm.yaml')
    if not isinstance(options["workers"], int) or options["workers"] < 1:
        raise ValueError(f'--cluster-config "{path}": workers is {options["workers"]}; give 1 or more')
    if unknown := sorted(options.keys() - _slurm_options() - {"workers"}):
        raise ValueError(f'--cluster-config "{path}" has {unknown[0]}, which dask_jobqueue.SLURMCluster does not take; remove it')
    return options


def job_script(config: Path) -> str:
    """The script that Slurm is given for each worker."""
    options = read_config(config)
    with _cluster_of(options, {"host": "127.0.0.1"}) as cluster:
        return str(cluster.job_script())


@contextlib.contextmanager
def _slurm(options: dict[str, Any]) -> Iterator[Any]:
    import shutil

    if shutil.which("sbatch") is None:
        raise ValueError("--cluster slurm needs sbatch, which is not on this machine; run it on a login node")
    with _cluster_of(options, {}) as cluster:
        cluster.adapt(minimum=options["workers"], maximum=options["workers"])  # jobs that end are asked for again
        yield cluster


def _cluster_of(options: dict[str, Any], scheduler: dict[str, Any]) -> Any:
    """One worker a job: one process with one thread of Dask, to which all cores and devices of the job belong."""
    from dask_jobqueue import SLURMCluster

    own = {name: value for name, value in options.items() if name not in ("workers", "cores")}
    own.setdefault("job_cpu", options["cores"])
    scheduler = {"dashboard": False, "dashboard_address": ":0", **scheduler}
    arguments = [*own.pop("worker_extra_args", ["--no-dashboard", "--memory-limit", "0"])]
    return SLURMCluster(cores=1, processes=1, scheduler_options=scheduler, worker_extra_args=arguments, **own)


def _slurm_options() -> set[str]:
    """Names that `SLURMCluster` takes, itself and for its jobs: it would find an unknown one with a scheduler half started."""
    from dask_jobqueue.core import Job, JobQueueCluster
    from dask_jobqueue.slurm import SLURMJob

    return {name for taking in (Job, JobQueueCluster, SLURMJob) for name in inspect.signature(taking.__init__).parameters}
