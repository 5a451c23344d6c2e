"""What all probes with a regularisation path share: choosing on rows that are not reported, and what a probe found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit.metrics import top1

Readout = TypeVar("Readout", bound="Path")


class Path(Protocol):
    """Read-outs with a leading axis of regularisations."""

    def at(self: Readout, index: int | Int[Array, ""]) -> Readout:
        """The read-out of one regularisation."""


class Probe(NamedTuple, Generic[Readout]):
    """What a probe found.

    Attributes:
        correct: 1 where the test example was classified right, else 0 (padding too).
        chosen: position of the chosen regularisation in the grid.
        edge: the chosen one is the smallest or largest of the grid: the grid may be too narrow. True as well where nothing
            depends on it (a constant feature).
        readout: the chosen read-out, for use on other conditions.
    """

    correct: Float[Array, "test"]
    chosen: Int[Array, ""]
    edge: Bool[Array, ""]
    readout: Readout


def one_hot(labels: Int[Array, "rows"], classes: int) -> Float[Array, "rows classes"]:
    """Targets of a classification; a row labelled -1 (padding) is all 0."""
    return jax.nn.one_hot(labels, classes)


def shares(rows: int, weights: Shaped[Array, "rows"] | None) -> Float[Array, "rows"]:
    """Row weights that sum to 1."""
    weights = jnp.ones(rows) if weights is None else weights.astype(jnp.float32)
    return weights / weights.sum()


def select(
    path: Readout,
    predict: Callable[[Readout, Array], Float[Array, "rows classes"]],
    penalties: Float[Array, "path"],
    features: Shaped[Array, "rows width"],
    targets: Float[Array, "rows classes"],
    weights: Shaped[Array, "rows"] | None = None,
) -> Int[Array, ""]:
    """Index of the penalty with the best accuracy on these rows, a split that is not reported; of equals the largest.

    Accuracy is the (weighted) mean target at the predicted class: for one-hot targets the share of rows classified right,
    for soft ones the share of pixels.
    """
    share = shares(len(features), weights)
    targets = jnp.where(share[:, None] > 0, targets, 0)

    def accuracy(index: Int[Array, ""]) -> Float[Array, ""]:
        predicted = jnp.argmax(predict(path.at(index), features), axis=-1)
        won = jnp.take_along_axis(targets, predicted[:, None], axis=-1)[:, 0]
        return jnp.sum(won if weights is None else won * weights)

    accuracies = jax.lax.map(accuracy, jnp.arange(len(penalties)))
    return jnp.argmax(jnp.where(accuracies == accuracies.max(), penalties, -jnp.inf))


def choose_and_score(
    path: Readout,
    predict: Callable[[Readout, Array], Float[Array, "rows classes"]],
    penalties: Float[Array, "path"],
    validation: Shaped[Array, "validation width"],
    validation_labels: Int[Array, "validation"],
    test: Shaped[Array, "test width"],
    test_labels: Int[Array, "test"],
    classes: int,
) -> Probe[Readout]:
    """Choose the penalty on validation, score its read-out on test. Rows labelled -1 are padding."""
    chosen = select(path, predict, penalties, validation, one_hot(validation_labels, classes), validation_labels >= 0)
    readout = path.at(chosen)
    edge = (penalties[chosen] == penalties.min()) | (penalties[chosen] == penalties.max())
    return Probe(top1(predict(readout, test), test_labels), chosen, edge, readout)
