"""What all programs of this folder share: one clear line and exit code 2 on bad input, and the choice of devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import tyro

from jaxvit.checkpoint import cache_folder

Config = TypeVar("Config")


def run(program: Callable[[Config], None], config: type[Config], description: str | None, default: Config | None = None) -> None:
    """Parse the command line into `config`, from `default` where options are not given, and run; a `ValueError` ends the program with
    its message and code 2."""
    try:
        start: dict[str, Any] = {} if default is None else {"default": default}
        program(tyro.cli(config, description=description, **start))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped", file=sys.stderr)
        raise SystemExit(130) from None


def prepare_devices() -> None:
    """Before any computation: on a CPU one device per core, so that the batch is split over cores as it is over chips; float32
    products in full float32 on every device; programs that took long to compile are kept in the cache."""
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
