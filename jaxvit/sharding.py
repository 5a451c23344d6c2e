"""Data parallelism: batches are split over a mesh of devices, everything else is copied to all of them.

Only programs choose devices; the library follows the sharding of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int


def batch_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices (by default all of this process) with one axis, "batch"."""
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("batch",))


def split(tree: Any, mesh: Mesh) -> Any:
    """The arrays with their first axis split over the mesh; its length must be a multiple of the number of devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("batch")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays, copied to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_host(tree: Any) -> Any:
    """The arrays on the host, or as they are inside a function that JAX transforms.

    Results of several devices are taken apart there: a program that does so would have every device wait for the slowest, and a CPU
    gives up a wait of 40 seconds.
    """
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf), tree)


def one_by_one(function: Callable[[Any], Any], entries: Any, count: Int[Array, ""]) -> Any:
    """`jax.lax.map`, whose number of steps is an argument of the program.

    A compiler that knows the number writes loops of few steps as another program, with other rounding: what each of several devices
    computes would then depend on how many there are. It has no gradient.

    Args:
        entries: arrays with a common leading axis.
        count: length of that axis.
    """
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), entries)
    length = len(jax.tree.leaves(entries)[0])
    empty = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), jax.eval_shape(function, first))

    def step(i: Array, results: Any) -> Any:
        result = function(jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), entries))
        return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, i, 0), results, result)

    return jax.lax.fori_loop(0, count, step, empty)


class Batch(NamedTuple):
    """Rows of a larger array on their way through the devices.

    Attributes:
        rows: [devices x size, ...].
        valid: False for padding.
        example_ids: numbers that address random draws, one per row.
        source: on the host, the position of each row in the larger array; -1 for padding.
    """

    rows: Array
    valid: Bool[Array, "rows"]
    example_ids: Array
    source: Int[np.ndarray, "rows"]


def mesh_of(tree: Any) -> Mesh:
    """The mesh of one axis, "batch", on which arrays are replicated; of arrays elsewhere, a mesh of their devices."""
    sharding = next(leaf.sharding for leaf in jax.tree.leaves(tree))
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.axis_names == ("batch",):
        return sharding.mesh
    return batch_mesh(sorted(sharding.device_set, key=lambda device: device.id))


def batches(
    rows: np.ndarray,
    size: int,
    mesh: Mesh,
    example_ids: Int[np.ndarray, "rows"] | None = None,
    order: Int[np.ndarray, "places"] | None = None,
) -> Iterator[Batch]:
    """All rows in batches of which every device takes `size` rows; padding repeats the last row.

    A device's share has one shape, and a row has the same neighbours in it, however many devices there are: programs that work on
    shares alone (`jax.shard_map`) then give the same numbers, bit for bit.

    Args:
        example_ids: a number for each row; by default its position.
        order: positions of the rows in the order in which they are taken, -1 for padding; by default that of the array.

    Raises:
        ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"{size} rows a device is not a number of rows; choose 1 or more")
    places = np.arange(len(rows)) if order is None else np.asarray(order)
    ids = np.arange(len(rows)) if example_ids is None else example_ids
    step = size * mesh.size
    for start in range(0, len(places), step):
        source = np.full(step, -1)
        source[: len(places[start : start + step])] = places[start : start + step]
        index = np.where(source < 0, len(rows) - 1, source)
        batch_rows, valid, batch_ids = split((rows[index], source >= 0, ids[index]), mesh)
        yield Batch(batch_rows, valid, batch_ids, source)
