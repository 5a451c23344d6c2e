"""Rows for models larger than a chip: what the TPU compiler says of the 7B with its weights split over the chips of one host.

As in `tpu.py`, it compiles for a described slice in a process of its own: `python -m experiments.bench.large TOPOLOGY small|full`.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.programs import Shapes, large_programs
from experiments.bench.rows import BenchRow, Goal, Size
from experiments.bench.tpu import SLICES, compiled_apart, estimates, mesh_of_slice
from experiments.numerics import pin_process

NAME = "dinov3_vit7b16"
_TIMES = ("seconds", "images_per_second_per_chip")  # the compiler has no estimate for what goes from chip to chip


def rows() -> list[BenchRow]:
    """The rows of this module: whether all programs fit."""
    return [
        BenchRow(
            name=f"large_{name}",
            what=f"{NAME}, weights split over {name}-8: forward, flow and a cut fit",
            against="",
            dtype="float32, bfloat16",
            goals=(Goal("memory", 1),),
            build=functools.partial(compiled, name),
            platform="tpu",
            estimate="compiler's estimate",
        )
        for name in SLICES
    ]


def compiled(name: str, size: Size) -> dict[str, Any]:
    """The compiler's numbers for every program on a slice. Errors as for `compiled_apart`."""
    return compiled_apart("experiments.bench.large", name, size)


def _compile(topology: str, size: Size) -> dict[str, Any]:
    """The compiler's numbers for every program, and the bytes of weights that a chip holds."""
    shapes = Shapes(mesh_of_slice(topology))
    entries: list[dict[str, Any]] = []
    for dtype in (jnp.float32, jnp.bfloat16):
        programs = list(large_programs(NAME, dtype, shapes, size))
        for program, entry in zip(programs, estimates(programs), strict=True):
            held = sum(
                math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.call[1][0])
            )
            timeless = {name: value for name, value in entry.items() if name not in _TIMES}
            entries.append(timeless | {"images": program.images, "weight_bytes": held})
    return {"chips": shapes.mesh.size, "programs": entries}


if __name__ == "__main__":
    pin_process()
    print(json.dumps(_compile(sys.argv[1], Size(sys.argv[2] == "small"))))
