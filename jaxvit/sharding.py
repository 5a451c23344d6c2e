"""Data parallelism: batches are split over a mesh of devices, everything else is copied to all of them.

Only programs choose devices; the library follows the sharding of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool


def batch_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices (all by default) with one axis, "batch"."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("batch",))


def split(tree: Any, mesh: Mesh) -> Any:
    """The arrays with their first axis split over the mesh; its length must be a multiple of the number of devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("batch")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays, copied to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


class Batch(NamedTuple):
    """Consecutive rows of a larger array, padded to the batch size by repeating its last row."""

    rows: Array
    valid: Bool[Array, "batch"]
    example_ids: Array


def batches(rows: np.ndarray, size: int, mesh: Mesh, first_id: int = 0) -> Iterator[Batch]:
    """All rows in batches of exactly `size`, split over the mesh; ids count from `first_id`, padding has `valid` False.

    Raises:
        ValueError: `size` is no positive multiple of the number of devices.
    """
    if size < 1 or size % mesh.size:
        raise ValueError(f"batch size {size} is no positive multiple of the {mesh.size} devices; choose one")
    for start in range(0, len(rows), size):
        index = np.arange(start, start + size)
        source = np.minimum(index, len(rows) - 1)
        batch_rows, valid, example_ids = split((rows[source], index < len(rows), first_id + index), mesh)
        yield Batch(batch_rows, valid, example_ids)
