"""Nearest-neighbour probes, without training: k-NN classification with DINO's weighting, and retrieval of soft labels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit import checks
from jaxvit.neighbours import AnyArray, by_query, check_search, search, sizes


def _check_bank(
    bank: Any, labels: Any, queries: Any, classes: int, ks: tuple[int, ...], temperature: Any, chunk: int | None, rows: int | None
) -> None:
    if not isinstance(ks, tuple) or not ks:
        raise ValueError(f"ks are {ks!r}; give a tuple of at least one number of neighbours, such as (10, 20)")
    checks.check_counts(**{f"ks[{i}]": k for i, k in enumerate(ks)})
    checks.check_positive("temperature", temperature)
    checks.check_classes(classes)
    checks.check_labelled("bank", bank, "labels", labels, classes)
    labelled = None if (numbers := checks.values(labels)) is None else numbers >= 0
    _check_neighbours(queries, bank, max(ks), labelled, chunk, rows)
    checks.check_several_classes("labels", labels)


def _check_neighbours(queries: Any, bank: Any, k: int, valid: Any, chunk: int | None, rows: int | None) -> None:
    """Padding has no vote: that a search fills up with it must not go unnoticed."""
    check_search(queries, bank, k, valid, chunk, rows, fetch=True)
    if (flags := checks.values(valid)) is not None and k > (count := int(flags.sum())):
        raise ValueError(f"k is {k}, but the bank has {count} rows that are no padding; choose k from 1 to {count}")


@checks.check_first(_check_bank)
def classify(
    bank: Shaped[AnyArray, "bank width"],
    labels: Int[AnyArray, "bank"],
    queries: Shaped[AnyArray, "queries width"],
    classes: int,
    ks: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float | Float[Array, ""] = 0.07,
    chunk: int | None = None,
    rows: int | None = None,
    mesh: Mesh | None = None,
) -> Int[Array, "ks queries"]:
    """The predicted classes for each k: the k nearest rows by cosine vote with weight exp(similarity / temperature).

    The weighting is that of DINO's `eval_knn.py` (Caron et al. 2021). One search serves all k. A row of the bank labelled -1 is
    padding. Of classes with equal votes the lowest is predicted. `chunk`, `rows` and `mesh` as for `jaxvit.neighbours.nearest`.

    Raises:
        ValueError: labels are no integers, outside of -1 to `classes` - 1 or all of one class; no k is given; `temperature` is not
            positive; or see `neighbours.check_search`.
    """
    chunk, rows = sizes(len(queries), chunk, rows)
    shared = (jnp.asarray(bank), jnp.asarray(labels), jnp.float32(temperature))
    predicted: Array = by_query(_vote, queries, shared, (classes, tuple(ks), rows), chunk, mesh)
    return predicted.T


def _vote(
    queries: Array, bank: Array, labels: Array, temperature: Array, classes: int, ks: tuple[int, ...], rows: int
) -> Int[Array, "queries ks"]:
    """`classify` of one chunk of queries."""

    def winner(weights: Float[Array, "k"], votes: Int[Array, "k"]) -> Int[Array, ""]:
        return jnp.argmax(jnp.zeros(classes).at[votes].add(weights, mode="drop"))

    def winners(neighbours: tuple[Float[Array, "k"], Int[Array, "k"]]) -> Int[Array, "ks"]:
        weights, votes = neighbours
        return jnp.stack([winner(weights[:k], votes[:k]) for k in ks])

    similarity, index = search(queries, bank, labels >= 0, max(ks), rows)
    return jax.vmap(lambda *neighbours: winners(neighbours))(jnp.exp(similarity / temperature), labels[index])


def _check_predicted(predicted: Any, labels: Any) -> None:
    checks.check_integers("predicted", predicted)
    checks.check_integers("labels", labels)
    if labels.ndim != 1 or predicted.shape[-1:] != labels.shape or not labels.size:
        raise ValueError(f"predicted has the shape {predicted.shape} and labels {labels.shape}; give one label for each query")


@checks.check_first(_check_predicted)
@jax.jit
def correct(predicted: Int[Array, "*ks queries"], labels: Int[Array, "queries"]) -> Float[Array, "*ks queries"]:
    """1 where the prediction is the label, else 0; also 0 for a query labelled -1, which is padding.

    Raises:
        ValueError: predictions and labels are no integers, or not of the same queries.
    """
    return ((predicted == labels) & (labels >= 0)).astype(jnp.float32)


def _check_memory(bank: Any, targets: Any, queries: Any, k: int, temperature: Any, valid: Any, chunk: int | None, rows: int | None) -> None:
    checks.check_positive("temperature", temperature)
    _check_neighbours(queries, bank, k, valid, chunk, rows)
    checks.check_features("targets", targets, "bank classes")
    checks.check_same_rows("targets", targets, "bank", bank)


@checks.check_first(_check_memory)
def retrieve(
    bank: Shaped[AnyArray, "bank width"],
    targets: Float[AnyArray, "bank classes"],
    queries: Shaped[AnyArray, "queries width"],
    k: int = 30,
    temperature: float | Float[Array, ""] = 0.02,
    valid: Bool[AnyArray, "bank"] | None = None,
    chunk: int | None = None,
    rows: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "queries classes"]:
    """The soft labels of the k nearest rows by cosine, averaged with weights softmax(similarity / temperature).

    The training-free dense probe of Balazevic et al. 2023 ("hummingbird"), where rows and queries are patches and targets the class
    fractions of their pixels. `chunk`, `rows` and `mesh` as for `jaxvit.neighbours.nearest`.

    Raises:
        ValueError: targets hold NaN or are not those of the bank; `temperature` is not positive; or see `neighbours.check_search`.
    """
    chunk, rows = sizes(len(queries), chunk, rows)
    shared = (jnp.asarray(bank), jnp.asarray(targets), valid, jnp.float32(temperature))
    averages: Array = by_query(_average, queries, shared, (k, rows), chunk, mesh)
    return averages


def _average(
    queries: Array, bank: Array, targets: Array, valid: Array | None, temperature: Array, k: int, rows: int
) -> Float[Array, "queries classes"]:
    """`retrieve` of one chunk of queries."""
    average = functools.partial(jnp.einsum, "k,kc->c", precision=jax.lax.Precision.HIGHEST)
    similarity, index = search(queries, bank, valid, k, rows)
    weights = jax.nn.softmax(similarity / temperature, axis=-1)
    return jax.vmap(lambda row_weights, rows: average(row_weights, targets[rows]))(weights, index)
