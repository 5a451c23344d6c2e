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
    """Consecutive rows of a larger array, padded by repeating the last of them.

    Attributes:
        rows: [padded, ...].
        valid: False for padding.
        example_ids: numbers that address random draws, one per row.
        start, length: the first row's position in the larger array, and the number of rows that are no padding.
    """

    rows: Array
    valid: Bool[Array, "padded"]
    example_ids: Array
    start: int
    length: int


def batches(rows: np.ndarray, size: int, mesh: Mesh, first_id: int = 0) -> Iterator[Batch]:
    """All rows in batches of at most `size`, split over the mesh; ids count from `first_id`.

    The last batch is padded to the shortest of size, size / 2, size / 4, ... that holds it, so that few rows cost little and few
    programs are compiled. A last row that would be alone takes one from the batch before: an example needs another to shuffle with.

    Raises:
        ValueError: `size` is no positive multiple of the number of devices.
    """
    if size < 1 or size % mesh.size:
        raise ValueError(f"batch size {size} is no positive multiple of the {mesh.size} devices; choose one")
    for start, stop in bounds(len(rows), size):
        index = np.arange(start, start + padded(stop - start, size, mesh.size))
        source = np.minimum(index, stop - 1)
        batch_rows, valid, example_ids = split((rows[source], index < stop, first_id + index), mesh)
        yield Batch(batch_rows, valid, example_ids, start, stop - start)


def bounds(count: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of every batch of `count` rows: `size` rows each, then the rest; where size > 2, a rest of one row takes another from
    the batch before."""
    stops = [*range(size, count, size), count] if count else []
    if len(stops) > 1 and size > 2 and stops[-1] - stops[-2] == 1:
        stops[-2] -= 1
    return list(zip([0, *stops[:-1]], stops, strict=True)) if stops else []


def padded(count: int, size: int, devices: int) -> int:
    """Rows that a batch of `count` is padded to: the shortest of size, size / 2, size / 4, ..., in multiples of the devices."""
    while (half := _half(size, devices)) >= count and half < size:
        size = half
    return size


def halved(size: int, most: int, devices: int) -> int:
    """The largest of size, size / 2, size / 4, ..., in multiples of the devices, that is at most `most`; the smallest where none is."""
    while size > most and (half := _half(size, devices)) < size:
        size = half
    return size


def _half(size: int, devices: int) -> int:
    return -(-size // 2 // devices) * devices
