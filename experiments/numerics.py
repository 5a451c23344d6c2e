"""What of JAX's settings can move a number or stop a program, and how every program here has them, whatever the environment says.

A setting of JAX holds for the process or, inside a context manager, for a thread: programs set it for their process (`pin_process`), a
study that is called from other code pins it for its own threads and gives it back (`pinned_numerics`, `pinned_thread`). The compiler's
own flags are read when it starts, before any of this: they stand in the keys of what they may move (`compiler_flags`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

THREAD: dict[str, Any] = {
    "default_matmul_precision": "highest",
    "enable_x64": False,
    "default_prng_impl": "threefry2x32",
    "threefry_partitionable": True,
    "enable_custom_prng": False,
    "legacy_prng_key": "allow",
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "softmax_custom_jvp": False,
    "allow_f16_reductions": True,
    "disable_jit": False,
    "debug_nans": False,
    "debug_infs": False,
}
"""Settings that JAX has a context manager for, `jax.NAME`."""

PROCESS: dict[str, Any] = {
    "random_seed_offset": 0,
    "high_dynamic_range_gumbel": False,
    "disable_most_optimizations": False,
    "optimization_level": "UNKNOWN",
    "exec_time_optimization_effort": 0.0,
}
"""Settings that are those of a whole process; a version of JAX need not have them all, and one that it lacks moves nothing."""

THREADS = "PJRT_NPROC"
"""Environment variable with the number of threads that XLA has on a CPU, whatever number of cores the process is left."""

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
_HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump")


def pin_process() -> None:
    """Set them all for this process and every thread of it; before any computation."""
    for name, value in (THREAD | _of_process()).items():
        jax.config.update(f"jax_{name}", value)


@contextlib.contextmanager
def pinned_numerics() -> Iterator[None]:
    """Set them all for this thread, and what has no thread for the process, as long as the block lasts."""
    before = {name: jax.config.values[f"jax_{name}"] for name in _of_process()}
    for name, value in _of_process().items():
        jax.config.update(f"jax_{name}", value)
    try:
        with pinned_thread():
            yield
    finally:
        for name, value in before.items():
            jax.config.update(f"jax_{name}", value)


@contextlib.contextmanager
def pinned_thread() -> Iterator[None]:
    """Set what a thread has of its own, for a thread that is started inside `pinned_numerics`."""
    with contextlib.ExitStack() as stack:
        for name, value in THREAD.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def compiler_flags() -> str:
    """Flags of the environment that the compiler has been started with and that can move a number; "" where there are none."""
    words = {name: [word for word in os.environ.get(name, "").split() if not word.startswith(_HARMLESS)] for name in _FLAGS}
    return ", ".join(f"{name}={' '.join(flags)}" for name, flags in words.items() if flags)


def cpu_threads() -> int:
    """Threads over which XLA divides a program of a CPU, before it has started: sums and products of matrices are cut by their number,
    so that it moves last bits. The number of cores, or more if there are more devices, or that of `THREADS` where it is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = next((int(text) for name in (THREADS, "NPROC") if (text := os.environ.get(name, "")).isdigit()), cores)
    return max(asked, jax.config.values["jax_num_cpu_devices"])


def numerics() -> dict[str, Any]:
    """What `run.json` says of these settings."""
    return {"pinned": THREAD | _of_process(), "compiler_flags": compiler_flags()}


def _of_process() -> dict[str, Any]:
    """Those of `PROCESS` that this version of JAX has."""
    return {name: value for name, value in PROCESS.items() if f"jax_{name}" in jax.config.values}
