"""Exact nearest neighbours by cosine similarity, in bounded memory, with queries shared out over a mesh of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit import checks
from jaxvit.geometry import unit
from jaxvit.sharding import on_host, one_by_one

AnyArray = Array | np.ndarray
_CHUNK, _ROWS = {"gpu": 1_024}, {"gpu": 262_144}
"""Queries, and rows of the bank, searched at a time by default where JAX's default back end is this; else 256 and 65,536. A GPU takes few
large steps rather than many small ones, and with more rows at a time less is sorted."""


def check_search(queries: Any, bank: Any, k: int, valid: Any, chunk: int | None, rows: int | None, fetch: bool = False) -> None:
    """Check what a search is given.

    Args:
        valid: rows of the bank that are not padding, or None.
        fetch: look at values on an accelerator too (`jaxvit.checks`).

    Raises:
        ValueError: queries or bank are not [rows, width] of one width, hold NaN, or belong to other flags; `k` is below 1 or above the
            number of rows; `chunk` or `rows` is below 1.
    """
    checks.check_features("bank", bank, valid=valid, fetch=fetch)
    checks.check_features("queries", queries, fetch=fetch)
    checks.check_width("queries", queries, "bank", bank)
    checks.check_counts(k=k, **{name: size for name, size in (("chunk", chunk), ("rows", rows)) if size is not None})
    if k > len(bank):
        raise ValueError(f"k is {k}, but the bank has {len(bank)} rows; choose k from 1 to {len(bank)}")


@checks.check_first(check_search)
def nearest(
    queries: Shaped[AnyArray, "queries width"],
    bank: Shaped[AnyArray, "bank width"],
    k: int,
    valid: Bool[AnyArray, "bank"] | None = None,
    chunk: int | None = None,
    rows: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Cosine similarity and index of the `k` nearest rows of the bank, nearest first; of equally near rows the lower index first.

    Exact: every similarity is computed in float32; `chunk`, `rows` and `mesh` change the order of computation only. Rows that are
    not `valid` have similarity -inf.

    Args:
        chunk: queries that a device searches at a time, at most; by default 256, on a GPU 1,024.
        rows: rows of the bank that it searches at a time (at least `k`), keeping a running list of the nearest; by default 65,536, on a
            GPU 262,144. Besides inputs and outputs a device needs memory for about 3 x chunk x rows + rows x width floats (by default
            0.2 GB, on a GPU 3.2 GB, and rows x width), and for the queries in float32.
        mesh: its devices share the queries, and each holds the whole bank. By default all stay where the inputs are.

    Raises:
        ValueError: see `check_search`.
    """
    chunk, rows = sizes(len(queries), chunk, rows)
    result: tuple[Array, Array] = by_query(search, queries, (bank, valid), (k, rows), chunk, mesh)
    return result


def by_query(
    function: Callable[..., Any],
    queries: Shaped[AnyArray, "queries width"],
    shared: tuple[Any, ...],
    settings: tuple[Hashable, ...],
    chunk: int,
    mesh: Mesh | None,
) -> Any:
    """`function(queries, *shared, *settings)` of all queries, `chunk` at a time: a module-level function that treats every query on its
    own. On a mesh every device computes its share of the queries.

    Queries are padded to whole chunks and placed before the program begins, so that a device's program and a query's place in a chunk
    are the same however many devices there are.
    """
    count, devices = len(queries), 1 if mesh is None else mesh.size
    padded = jnp.pad(jnp.asarray(queries), ((0, -count % (chunk * devices)), (0, 0)))
    chunks = padded.reshape(-1, chunk, padded.shape[1])
    if mesh is not None:
        chunks = jax.device_put(chunks, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
        shared = jax.device_put(shared, NamedSharding(mesh, PartitionSpec()))
    results = _on_shares(function, settings, mesh, chunks, shared, np.int32(len(chunks) // devices))
    results = results if mesh is None else on_host(results)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], results)


@functools.partial(jax.jit, static_argnames=("function", "settings", "mesh"))
def _on_shares(
    function: Callable[..., Any],
    settings: tuple[Hashable, ...],
    mesh: Mesh | None,
    chunks: Array,
    shared: tuple[Any, ...],
    count: Int[Array, ""],
) -> Any:
    """Results for chunks of queries [chunks, queries, width], of which every device takes `count`."""

    def share(chunks: Array, count: Array, *shared: Any) -> Any:
        return one_by_one(lambda queries: function(queries, *shared, *settings), chunks, count)

    if mesh is None:
        return share(chunks, count, *shared)
    split = PartitionSpec(mesh.axis_names)
    specs = (split, *[PartitionSpec()] * (1 + len(shared)))
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(chunks, count, *shared)


def sizes(queries: int, chunk: int | None, rows: int | None) -> tuple[int, int]:
    """Queries and rows of the bank that are searched together: of queries a power of two, at most `chunk` and about an eighth of all, so
    that devices share them."""
    backend = jax.default_backend()
    most = chunk or _CHUNK.get(backend, 256)
    return min(most, max(8, 1 << (max(queries - 1, 0) // 8).bit_length())), rows or _ROWS.get(backend, 65_536)


def search(
    queries: Shaped[Array, "queries width"],
    bank: Shaped[Array, "bank width"],
    valid: Bool[Array, "bank"] | None,
    k: int,
    rows: int,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """`nearest` of one chunk of queries; `jax.vmap` turns the product with one query into one matrix product with all of them."""
    rows = min(max(rows, k), len(bank))  # at least k, so that the first rows fill the list

    def among(query: Float[Array, "width"], start: int | Int[Array, ""], size: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
        part = unit(jax.lax.dynamic_slice_in_dim(bank, start, size))
        similarity = jnp.matmul(part, query, precision=jax.lax.Precision.HIGHEST)
        if valid is not None:
            similarity = jnp.where(jax.lax.dynamic_slice_in_dim(valid, start, size), similarity, -jnp.inf)
        values, index = _largest(similarity, min(k, size))
        return values, start + index

    def merge(best: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        # of equal values `top_k` takes the first, which has the lower index: `later` holds rows further down the bank
        values, position = jax.lax.top_k(jnp.concatenate([best[0], later[0]]), k)
        return values, jnp.concatenate([best[1], later[1]])[position]

    def search_one(query: Float[Array, "width"]) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
        parts = len(bank) // rows
        best = among(query, 0, rows)
        best = jax.lax.fori_loop(1, parts, lambda i, best: merge(best, among(query, i * rows, rows)), best)
        remainder = len(bank) - parts * rows
        return merge(best, among(query, parts * rows, remainder)) if remainder else best

    return jax.vmap(search_one)(unit(queries))


def _largest(values: Float[Array, "n"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`jax.lax.top_k`, faster: the k largest values lie in the k blocks with the largest maxima, so that it looks at less."""
    block = int((len(values) / k) ** 0.5)  # about as many blocks as values in the k best of them
    if block < 10:
        return _top_k(values, k)
    blocks = jnp.pad(values, (0, -len(values) % block), constant_values=-jnp.inf).reshape(-1, block)
    best = jnp.sort(_top_k(blocks.max(axis=1), min(k, len(blocks)))[1])  # in their order, so that of equals the first wins
    largest, position = _top_k(blocks[best].ravel(), k)
    return largest, best[position // block] * block + position % block


def _top_k(values: Float[Array, "n"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`jax.lax.top_k`. A CPU keeps a heap of the k largest so far and pays for what enters it, so values below a bound that k values
    reach become -inf there first."""

    def whole(values: Array) -> tuple[Array, Array]:
        largest, index = jax.lax.top_k(values, k)
        return largest, index

    def bounded(values: Array) -> tuple[Array, Array]:
        return whole(jnp.where(values < _reached_by(values, k), -jnp.inf, values))

    result: tuple[Array, Array] = jax.lax.platform_dependent(values, cpu=bounded if 1 < k <= len(values) // 8 else whole, default=whole)
    return result


def _reached_by(values: Float[Array, "n"], k: int) -> Float[Array, ""]:
    """A bound that at least k values reach, and few more: as many of 4 k groups have a maximum that reaches it."""
    groups = 4 * k
    maxima = values[: len(values) // groups * groups].reshape(-1, groups).max(axis=0)
    low, high = jnp.min(maxima, where=maxima > -jnp.inf, initial=jnp.inf), maxima.max()
    for _ in range(6):
        middle = (low + high) / 2
        enough = jnp.sum(maxima >= middle) >= k
        low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
    return jnp.where(jnp.sum(maxima >= low) >= k, low, -jnp.inf)  # where most rows are padding, few groups have a maximum
