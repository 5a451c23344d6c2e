"""Data parallelism: batches are split over a mesh of devices, everything else is copied to all of them, but for weights too large for that:
those of blocks are split as well, and gathered one block at a time.

Only programs choose devices; the library follows the sharding of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from jaxvit.calls import check_model

Module = TypeVar("Module")
Step = TypeVar("Step", bound=Callable[..., Any])


def batch_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices (by default all of this process) with one axis, "batch"."""
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("batch",))


def split(tree: Any, mesh: Mesh) -> Any:
    """The arrays with their first axis split over the mesh; its length must be a multiple of the number of devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("batch")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays, copied to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


@dataclass(frozen=True)
class WeightShards:
    """How the weights of a model's blocks are split over a mesh; equal ones share compiled programs.

    Attributes:
        mesh: of one axis.
        axes: of every leaf of a block the axis that is split, and its whole length; None for a leaf that every device holds.
    """

    mesh: Mesh
    axes: tuple[tuple[int, int] | None, ...]


def shard_weights(model: Module, mesh: Mesh) -> Module:
    """The model, a `ViT`, with the matrices of its blocks split over the mesh, and everything else copied to all its devices.

    Whatever runs blocks gathers the weights of one block at a time, also inside of `jax.jit`, `jax.vmap` and `jax.shard_map`: a device
    needs its share of the weights and one or two whole blocks. Outputs are those of a model that is copied, bit for bit.

    Raises:
        ValueError: it is no model, no mesh or one of other axes than "batch", or its devices divide no side of any matrix.
    """
    check_model(model)
    split_model = with_weight_shards(model, mesh)
    placed: Module = jax.device_put(split_model, weight_shardings(split_model, mesh))
    return placed


def with_weight_shards(model: Any, mesh: Mesh) -> Any:
    """The same leaves, which may be shapes, as a model whose weights are split. Errors as for `shard_weights`."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise ValueError(f"mesh is {type(mesh).__name__}; give a mesh of the devices to split weights over: jaxvit.sharding.batch_mesh()")
    if mesh.axis_names != ("batch",):
        raise ValueError(
            f"weights are split over a mesh of one axis, batch, and this one has {', '.join(mesh.axis_names)}; "
            "use jaxvit.sharding.batch_mesh()"
        )
    axes = tuple(_split_axis(leaf.shape[1:], mesh.size) for leaf in jax.tree.leaves(model.blocks))
    if not any(axes):
        sides = sorted({side for leaf in jax.tree.leaves(model.blocks) if leaf.ndim > 2 for side in leaf.shape[1:]})
        fewer = next(count for count in range(mesh.size, 0, -1) if any(side % count == 0 for side in sides))
        raise ValueError(
            f"{mesh.size} devices divide none of {', '.join(map(str, sides))}, the sides of this model's matrices; leave them whole, or "
            f"split them over {fewer}: jaxvit.sharding.batch_mesh(jax.devices()[:{fewer}])"
        )
    marked = jax.tree.map(lambda leaf: leaf, model)
    marked.weight_shards = WeightShards(mesh, axes)
    return marked


def _split_axis(shape: tuple[int, ...], devices: int) -> tuple[int, int] | None:
    """The first side of a matrix that can be shared out, and its length. Vectors are small, and stay whole."""
    return next(((axis, side) for axis, side in enumerate(shape) if side % devices == 0), None) if len(shape) > 1 else None


def weight_specs(model: Any) -> Any:
    """For `jax.shard_map`: how the leaves of a model whose weights are split lie on its mesh; of another model, that all are copied."""
    if model.weight_shards is None:
        return PartitionSpec()
    axes = model.weight_shards.axes
    split = [PartitionSpec() if found is None else PartitionSpec(*[None] * (1 + found[0]), "batch") for found in axes]
    specs = jax.tree.map(lambda leaf: PartitionSpec(), model)
    specs.blocks = jax.tree.unflatten(jax.tree.structure(model.blocks), split)
    return specs


def weight_shardings(model: Any, mesh: Mesh) -> Any:
    """Where the leaves of a model lie on a mesh: split as its `weight_shards` say, or copied."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), weight_specs(model), is_leaf=lambda x: isinstance(x, PartitionSpec))


def whole(leaf: Any) -> np.ndarray:
    """An array on the host. JAX keeps what it has fetched beside an array: of one that is split over devices a copy of the array's handle
    is fetched and forgotten, or all weights would gather on the host."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
        leaf = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, [shard.data for shard in leaf.addressable_shards])
    return np.asarray(leaf)


def place(model: Module, mesh: Mesh) -> Module:
    """The model on all devices of a mesh: copied, unless its weights are split."""
    placed: Module = replicate(model, mesh) if getattr(model, "weight_shards", None) is None else shard_weights(model, mesh)
    return placed


def gathered(block: Any, shards: WeightShards | None) -> Any:
    """A block, whole on every device. Inside of `jax.shard_map` each device asks for the others' shares; elsewhere the compiler is told
    that none of the block is split, since by itself it would split products and sum their parts, in another order."""
    if shards is None:
        return block
    leaves, structure = jax.tree.flatten(block)
    inside = "batch" in jax.sharding.get_abstract_mesh().manual_axes
    everywhere = NamedSharding(shards.mesh, PartitionSpec())

    def collected(leaf: Array, found: tuple[int, int] | None) -> Array:
        if found is None:
            return leaf
        axis, length = found
        if not inside:  # without the barrier a CPU's compiler gathers before it drops the axis of layers, and copies all shares for that
            leaf = jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(leaf), everywhere)
        elif leaf.shape[axis] < length:
            leaf = jax.lax.all_gather(leaf, "batch", axis=axis, tiled=True)
        return leaf

    return jax.tree.unflatten(structure, [collected(leaf, found) for leaf, found in zip(leaves, shards.axes, strict=True)])


def keeping_shares(step: Step, shards: WeightShards | None) -> Step:
    """A step through a block of which a gradient keeps what it always does, but for the gathered weights: they are gathered again."""
    if shards is None:
        return step
    return cast(Step, jax.checkpoint(step, prevent_cse=False, policy=_is_not_gathered))


def _is_not_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name not in ("optimization_barrier", "sharding_constraint", "all_gather")


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
