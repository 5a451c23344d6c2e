"""Shared start of the programs of this folder: one clear line and exit code 2 on bad input, and the choice of devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import jax

from convert.commandline import parse
from jaxvit.files import cache_folder

Config = TypeVar("Config")


def run(program: Callable[[Config], None], config: type[Config], description: str | None, default: Config | None = None) -> None:
    """Run `program` on the command line, parsed into `config`; options that are not given have their value in `default`.

    A `ValueError`, of the command line or of the program, ends the process with its message on stderr and exit code 2; Ctrl-C ends
    it with code 130.
    """
    try:
        program(parse(config, description, default, _module_command()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on from it", file=sys.stderr)
        raise SystemExit(130) from None


def prepare_devices() -> None:
    """Configure JAX, before any computation.

    On a CPU there is one device per core, so that the batch is split over cores as it is over chips; float32 products are computed
    in full float32 on every device; compiled programs are kept in the cache folder, also short ones.
    """
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _module_command() -> str | None:
    """The command that started this process, "python -m module"; None where it was not started as a module."""
    spec = sys.modules["__main__"].__spec__
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
