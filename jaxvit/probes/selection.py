"""What all probes with a regularisation path share: choosing on rows that are not reported, and what a probe found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit.metrics import top1

Readout = TypeVar("Readout", bound="Path")
Found = TypeVar("Found")


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


def many(one: Callable[[Any], Found], problems: Any, together: int = 1, mesh: Mesh | None = None) -> Found:
    """`one` of every problem along the leading axis of the arrays, stacked.

    Args:
        problems: arrays with the same leading axis.
        together: problems that a device solves at a time: what one needs beside its inputs and outputs is needed so often. A CPU
            core is fastest with 1, its cache holds one problem.
        mesh: its devices share the problems, device d gets problems d, d + devices, ..., so that neighbours (layers, say), which
            take about as long, fall to different ones. By default all stay where the inputs are.

    Raises:
        ValueError: `together` is below 1, there is no problem, or the leading axes differ.
    """
    counts = {len(leaf) for leaf in jax.tree.leaves(problems)}
    if len(counts) != 1 or 0 in counts or together < 1:
        raise ValueError(f"arrays hold {sorted(counts)} problems, {together} at a time; give one count above 0, and 1 or more at a time")

    def share(problems: Any) -> Found:
        return jax.lax.map(one, problems) if together == 1 else jax.lax.map(one, problems, batch_size=together)

    if mesh is None:
        return share(problems)
    count, devices = counts.pop(), mesh.size
    each = -(-count // devices)

    def deal(leaf: Array) -> Array:  # the last problem once more where they do not divide evenly
        filled = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], each * devices - count, axis=0)])
        return filled.reshape(each, devices, *leaf.shape[1:])

    def column(problems: Any) -> Found:
        return jax.tree.map(lambda leaf: leaf[:, None], share(jax.tree.map(lambda leaf: leaf[:, 0], problems)))

    spec = PartitionSpec(None, mesh.axis_names)
    found = jax.shard_map(column, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(jax.tree.map(deal, problems))
    return jax.tree.map(lambda leaf: leaf.reshape(each * devices, *leaf.shape[2:])[:count], found)


def labels_of_each(labels: Int[Array, "*problems rows"], problems: int) -> Int[Array, "problems rows"]:
    """Labels of every problem, where all share theirs or each has its own."""
    return labels if labels.ndim == 2 else jnp.broadcast_to(labels, (problems, len(labels)))
