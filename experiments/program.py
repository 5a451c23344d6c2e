"""Shared start of the programs of this folder: one clear line and exit code 2 on bad input, and the choice of devices."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import jax

from convert.commandline import describe, parse, print_anything
from experiments.numerics import pin_process
from experiments.preemption import EXIT_CODE, preempted, preemptible
from experiments.slices import join_slice
from jaxvit.files import cache_folder

Config = TypeVar("Config")

_MALLOPT = {-1: 2**30, -2: 2**26, -3: 2**28}
"""Settings of the C library (malloc.h): M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, in bytes."""


def run(program: Callable[[Config], None], config: type[Config], description: str | None, default: Config | None = None) -> None:
    """Run `program` on the command line, parsed into `config`; options that are not given have their value in `default`.

    Bad input, of the command line or found by the program, and a machine that lacks something (`convert.commandline.describe`) end the
    process with one line on stderr and exit code 2; Ctrl-C ends it with code 130, SIGTERM with code 143.
    """
    print_anything()
    try:
        with preemptible():
            program(parse(config, description, default, _module_command()))
    except BaseException as error:
        if preempted():  # whatever the libraries in between made of it
            print("stopped by SIGTERM; what was finished is kept, the same command goes on from it", file=sys.stderr)
            raise SystemExit(EXIT_CODE) from None
        if isinstance(error, KeyboardInterrupt):
            print("interrupted; what was finished is kept, the same command goes on from it", file=sys.stderr)
            raise SystemExit(130) from None
        if not isinstance(error, ValueError | OSError | RuntimeError) or (line := describe(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def prepare_devices(only_cpu: bool = False) -> None:
    """Configure JAX, before any computation, and start its back end.

    On a CPU there is one device per core, so that the batch is split over cores as it is over chips; float32 products are computed
    in full float32 on every device, and no other setting moves a number (`experiments.numerics`); compiled programs are kept in the
    cache folder, also short ones.

    Args:
        only_cpu: leave accelerators to other processes.

    Raises:
        ValueError: the back end that the environment names is not here, or the machines of its slice are not.
    """
    pin_process()
    if only_cpu:
        jax.config.update("jax_platforms", "cpu")
    else:
        join_slice()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        jax.devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        asked = next((f'{name}="{os.environ[name]}"' for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)), "")
        remedy = f"unset {asked.partition('=')[0]}, or set it to cpu, to run on what is here" if asked else "set JAX_PLATFORMS=cpu"
        raise ValueError(f"JAX cannot start {asked or 'its back end'} on this machine ({reason}); {remedy}") from error
    if jax.default_backend() == "cpu":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have the C library keep up to 1 GB of freed memory for the next arrays.

    By itself it gives large arrays back to the system, which clears every page of the next one. A program of a CPU allocates its arrays
    anew whenever it runs: that was a seventh of the quick look's processor time (bench/NOTES.md). Another C library is left as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, size in _MALLOPT.items():
        mallopt(parameter, size)


def _module_command() -> str | None:
    """The command that started this process, "python -m module"; None where it was not started as a module."""
    spec = sys.modules["__main__"].__spec__
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
