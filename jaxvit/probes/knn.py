"""Nearest-neighbour read-outs: k-NN classification with DINO's weighting, and retrieval of soft labels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit.geometry import unit

CHUNK = 256  # queries searched at a time: memory is CHUNK x bank, not queries x bank


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def nearest(
    queries: Shaped[Array, "queries width"],
    bank: Shaped[Array, "bank width"],
    k: int,
    valid: Bool[Array, "bank"] | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Cosine similarity and index of the `k` nearest rows of the bank, nearest first; of equals the lower index first.

    Rows that are not `valid` are never nearer than one that is (similarity -inf).

    Raises:
        ValueError: `k` is below 1 or above the size of the bank.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}, but the bank has {len(bank)} rows; choose k from 1 to {len(bank)}")
    bank = unit(bank)

    def search(query: Float[Array, "width"]) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
        similarity = jnp.matmul(bank, query, precision=jax.lax.Precision.HIGHEST)
        values, index = jax.lax.top_k(similarity if valid is None else jnp.where(valid, similarity, -jnp.inf), k)
        return values, index

    return jax.lax.map(search, unit(queries), batch_size=chunk)


@functools.partial(jax.jit, static_argnames=("classes", "ks", "chunk"))
def classify(
    bank: Shaped[Array, "bank width"],
    labels: Int[Array, "bank"],
    queries: Shaped[Array, "queries width"],
    classes: int,
    ks: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float | Float[Array, ""] = 0.07,
    chunk: int = CHUNK,
) -> Int[Array, "ks queries"]:
    """Predicted class for each k: the k nearest rows by cosine vote with weight exp(similarity / temperature).

    The weighting of DINO's `eval_knn.py` (Caron et al. 2021). One search serves all k. A bank row labelled -1 is padding.
    Equal votes go to the lower class.

    Raises:
        ValueError: a k is below 1 or above the size of the bank.
    """
    if min(ks) < 1:
        raise ValueError(f"ks are {ks}; each must be at least 1")
    similarity, index = nearest(queries, bank, max(ks), labels >= 0, chunk)
    weight = jnp.exp(similarity / temperature)
    voter = labels[index]

    def winner(weight: Float[Array, "k"], voter: Int[Array, "k"]) -> Int[Array, ""]:
        return jnp.argmax(jnp.zeros(classes).at[voter].add(weight, mode="drop"))

    def winners(votes: tuple[Float[Array, "k"], Int[Array, "k"]]) -> Int[Array, "ks"]:
        return jnp.stack([winner(votes[0][:k], votes[1][:k]) for k in ks])

    return jax.lax.map(winners, (weight, voter), batch_size=chunk).T


def correct(predicted: Int[Array, "*ks queries"], labels: Int[Array, "queries"]) -> Float[Array, "*ks queries"]:
    """1 where the prediction is the label, else 0; a query labelled -1 is padding and gets 0."""
    return ((predicted == labels) & (labels >= 0)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def retrieve(
    bank: Shaped[Array, "bank width"],
    targets: Float[Array, "bank classes"],
    queries: Shaped[Array, "queries width"],
    k: int = 30,
    temperature: float | Float[Array, ""] = 0.02,
    valid: Bool[Array, "bank"] | None = None,
    chunk: int = CHUNK,
) -> Float[Array, "queries classes"]:
    """Soft labels of the k nearest rows by cosine, averaged with weights softmax(similarity / temperature).

    The training-free dense read-out of Balazevic et al. 2023 ("hummingbird"): rows and queries are patches, targets the
    class shares of their pixels.

    Raises:
        ValueError: `k` is below 1 or above the size of the bank.
    """
    similarity, index = nearest(queries, bank, k, valid, chunk)
    weight = jax.nn.softmax(similarity / temperature, axis=-1)
    average = functools.partial(jnp.einsum, "k,kc->c", precision=jax.lax.Precision.HIGHEST)
    return jax.lax.map(lambda row: average(row[0], targets[row[1]]), (weight, index), batch_size=chunk)
