"""What two workers of a study must have in common: devices, versions, source and flags of the compiler."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.numerics import THREADS, compiler_flags
from experiments.program import prepare_devices
from experiments.study.jobs import machine, software

PLACE = "JAXVIT_WORKER_PLACE"
"""Environment variable of a worker that shares its machine, "1/4" for the second of four: it takes its part of the devices."""
_GPUS = "CUDA_VISIBLE_DEVICES"
_ROOT = Path(__file__).resolve().parents[2]


def required_software() -> dict[str, Any]:
    """What workers must compute with: what this process does, devices apart."""
    return {**software(), "source": source_hash(), "compiler_flags": compiler_flags()}


@functools.cache
def this_worker() -> dict[str, Any]:
    """Start the devices of this process and say what it computes with, and where it runs."""
    take_place(os.environ.get(PLACE, ""))
    prepare_devices()
    return {**machine(), **required_software(), "host": socket.gethostname()}


def take_place(place: str) -> None:
    """Leave the devices of this machine to the other workers on it, before JAX starts: of its cores and GPUs take every n-th. The number of
    threads stays that of all cores, which the last bits of numbers depend on (`experiments.numerics.cpu_threads`)."""
    if not place:
        return
    number, count = map(int, place.split("/"))
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.environ.setdefault(THREADS, str(len(cores)))  # as one process on all of them has: its numbers, bit for bit
        os.sched_setaffinity(0, cores[number::count] or [cores[number % len(cores)]])
    gpus = [name for name in os.environ.get(_GPUS, ",".join(map(str, range(_gpu_count())))).split(",") if name]
    if gpus:
        os.environ[_GPUS] = ",".join(gpus[number::count]) or gpus[number % len(gpus)]


def differences(required: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """In which of the required entries a worker differs, in words."""
    different = []
    for name, value in required.items():
        theirs = given.get(name)
        if isinstance(value, Mapping):
            different += differences(value, theirs if isinstance(theirs, Mapping) else {})
        elif theirs != value:
            different.append(f"{name.replace('_', ' ')} {theirs or 'none'} instead of {value or 'none'}")
    return different


@functools.cache
def source_hash() -> str:
    """SHA-256 (first 12 hex digits) of the Python source of jaxvit, convert and experiments."""
    digest = hashlib.sha256()
    for package in ("jaxvit", "convert", "experiments"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _gpu_count() -> int:
    """GPUs of NVIDIA's driver on this machine; asked without starting them."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
