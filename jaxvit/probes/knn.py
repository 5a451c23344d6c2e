"""Nearest-neighbour read-outs: k-NN classification with DINO's weighting, and retrieval of soft labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit.geometry import unit

CHUNK = 256  # queries searched at a time, ROWS rows of the bank at a time: memory is CHUNK x ROWS floats, not queries x bank
ROWS = 65_536

Found = TypeVar("Found")


@functools.partial(jax.jit, static_argnames=("k", "chunk", "rows", "mesh"))
def nearest(
    queries: Shaped[Array, "queries width"],
    bank: Shaped[Array, "bank width"],
    k: int,
    valid: Bool[Array, "bank"] | None = None,
    chunk: int = CHUNK,
    rows: int = ROWS,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Cosine similarity and index of the `k` nearest rows of the bank, nearest first; of equals the lower index first.

    Exact: every similarity is computed in float32, and what `chunk`, `rows` and the mesh change is order of computation only. Rows
    that are not `valid` are never nearer than one that is (similarity -inf).

    Args:
        chunk: queries that a device searches at a time.
        rows: of the bank at a time (k, where that is more), by a running list of the nearest so far. Beside inputs and outputs a
            device needs memory for about 3 x chunk x rows + rows x width floats, and for the queries in float32.
        mesh: its devices share the queries, each holds the whole bank. By default all stay where the inputs are.

    Raises:
        ValueError: `k` is below 1 or above the size of the bank; `chunk` or `rows` is below 1.
    """
    _check(k, len(bank), chunk, rows)
    return _by_query(functools.partial(_search, k=k, chunk=chunk, rows=rows), queries, (bank, valid), mesh)


@functools.partial(jax.jit, static_argnames=("classes", "ks", "chunk", "rows", "mesh"))
def classify(
    bank: Shaped[Array, "bank width"],
    labels: Int[Array, "bank"],
    queries: Shaped[Array, "queries width"],
    classes: int,
    ks: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float | Float[Array, ""] = 0.07,
    chunk: int = CHUNK,
    rows: int = ROWS,
    mesh: Mesh | None = None,
) -> Int[Array, "ks queries"]:
    """Predicted class for each k: the k nearest rows by cosine vote with weight exp(similarity / temperature).

    The weighting of DINO's `eval_knn.py` (Caron et al. 2021). One search serves all k. A bank row labelled -1 is padding.
    Equal votes go to the lower class. `chunk`, `rows` and `mesh` as for `nearest`.

    Raises:
        ValueError: a k is below 1 or above the size of the bank; `chunk` or `rows` is below 1.
    """
    if min(ks) < 1:
        raise ValueError(f"ks are {ks}; each must be at least 1")
    _check(max(ks), len(bank), chunk, rows)

    def winner(weight: Float[Array, "k"], voter: Int[Array, "k"]) -> Int[Array, ""]:
        return jnp.argmax(jnp.zeros(classes).at[voter].add(weight, mode="drop"))

    def winners(votes: tuple[Float[Array, "k"], Int[Array, "k"]]) -> Int[Array, "ks"]:
        return jnp.stack([winner(votes[0][:k], votes[1][:k]) for k in ks])

    def vote(queries: Shaped[Array, "queries width"], bank: Shaped[Array, "bank width"], labels: Int[Array, "bank"]) -> Array:
        similarity, index = _search(queries, bank, labels >= 0, max(ks), chunk, rows)
        return jax.lax.map(winners, (jnp.exp(similarity / temperature), labels[index]), batch_size=chunk)

    return _by_query(vote, queries, (bank, labels), mesh).T


def correct(predicted: Int[Array, "*ks queries"], labels: Int[Array, "queries"]) -> Float[Array, "*ks queries"]:
    """1 where the prediction is the label, else 0; a query labelled -1 is padding and gets 0."""
    return ((predicted == labels) & (labels >= 0)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("k", "chunk", "rows", "mesh"))
def retrieve(
    bank: Shaped[Array, "bank width"],
    targets: Float[Array, "bank classes"],
    queries: Shaped[Array, "queries width"],
    k: int = 30,
    temperature: float | Float[Array, ""] = 0.02,
    valid: Bool[Array, "bank"] | None = None,
    chunk: int = CHUNK,
    rows: int = ROWS,
    mesh: Mesh | None = None,
) -> Float[Array, "queries classes"]:
    """Soft labels of the k nearest rows by cosine, averaged with weights softmax(similarity / temperature).

    The training-free dense read-out of Balazevic et al. 2023 ("hummingbird"): rows and queries are patches, targets the
    class shares of their pixels. `chunk`, `rows` and `mesh` as for `nearest`.

    Raises:
        ValueError: `k` is below 1 or above the size of the bank; `chunk` or `rows` is below 1.
    """
    _check(k, len(bank), chunk, rows)
    average = functools.partial(jnp.einsum, "k,kc->c", precision=jax.lax.Precision.HIGHEST)

    def read(queries: Shaped[Array, "queries width"], bank: Array, targets: Array, valid: Array | None) -> Array:
        similarity, index = _search(queries, bank, valid, k, chunk, rows)
        weight = jax.nn.softmax(similarity / temperature, axis=-1)
        return jax.lax.map(lambda row: average(row[0], targets[row[1]]), (weight, index), batch_size=chunk)

    return _by_query(read, queries, (bank, targets, valid), mesh)


def _check(k: int, bank: int, chunk: int, rows: int) -> None:
    if not 1 <= k <= bank:
        raise ValueError(f"k is {k}, but the bank has {bank} rows; choose k from 1 to {bank}")
    if chunk < 1 or rows < 1:
        raise ValueError(f"chunks are {chunk} queries and {rows} rows of the bank; each must be at least 1")


def _by_query(
    function: Callable[..., Found], queries: Shaped[Array, "queries width"], shared: tuple[Array | None, ...], mesh: Mesh | None
) -> Found:
    """A function of many queries, each on its own, and of arrays that all need; on a mesh every device takes its share of queries.

    What is shared is an argument, for an array that is on the mesh already cannot be closed over inside of it.
    """
    if mesh is None:
        return function(queries, *shared)
    spec = PartitionSpec(mesh.axis_names)
    specs = (spec, *[PartitionSpec()] * len(shared))
    split = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)
    filled = jnp.pad(queries, ((0, -len(queries) % mesh.size), (0, 0)))
    return jax.tree.map(lambda leaf: leaf[: len(queries)], split(filled, *shared))


def _search(
    queries: Shaped[Array, "queries width"],
    bank: Shaped[Array, "bank width"],
    valid: Bool[Array, "bank"] | None,
    k: int,
    chunk: int,
    rows: int,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """`nearest` on one device. Under the map's batching a product with one query is one matrix product with a chunk of them."""
    rows = min(max(rows, k), len(bank))  # the first rows then fill the list

    def among(query: Float[Array, "width"], start: int | Int[Array, ""], size: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
        part = unit(jax.lax.dynamic_slice_in_dim(bank, start, size))
        similarity = jnp.matmul(part, query, precision=jax.lax.Precision.HIGHEST)
        if valid is not None:
            similarity = jnp.where(jax.lax.dynamic_slice_in_dim(valid, start, size), similarity, -jnp.inf)
        values, index = _largest(similarity, min(k, size))
        return values, start + index

    def merge(best: tuple[Array, Array], found: tuple[Array, Array]) -> tuple[Array, Array]:
        values, place = jax.lax.top_k(jnp.concatenate([best[0], found[0]]), k)  # equals: the best so far have the lower indices
        return values, jnp.concatenate([best[1], found[1]])[place]

    def search(query: Float[Array, "width"]) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
        whole = len(bank) // rows
        best = among(query, 0, rows)
        best = jax.lax.fori_loop(1, whole, lambda i, best: merge(best, among(query, i * rows, rows)), best)
        rest = len(bank) - whole * rows
        return merge(best, among(query, whole * rows, rest)) if rest else best

    return jax.lax.map(search, unit(queries), batch_size=chunk)


def _largest(values: Float[Array, "n"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`jax.lax.top_k`, which sorts, with less to sort: the k largest lie in the k blocks with the largest maxima."""
    block = int((len(values) / k) ** 0.5)  # maxima and candidates are about as many
    if block < 4:
        return jax.lax.top_k(values, k)
    blocks = jnp.pad(values, (0, -len(values) % block), constant_values=-jnp.inf).reshape(-1, block)
    best = jnp.sort(jax.lax.top_k(blocks.max(axis=1), min(k, len(blocks)))[1])  # in their order, so that of equals the first wins
    found, place = jax.lax.top_k(blocks[best].ravel(), k)
    return found, best[place // block] * block + place % block
