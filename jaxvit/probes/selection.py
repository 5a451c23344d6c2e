"""What all probes with a path of regularisations share: choosing on a validation split, the result, and many problems at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit import checks
from jaxvit.metrics import top1
from jaxvit.sharding import on_host, one_by_one

Readout = TypeVar("Readout", bound="ReadoutPath")
Solution = TypeVar("Solution")


class ReadoutPath(Protocol):
    """Read-outs with a leading axis of regularisations."""

    def at(self: Readout, index: int | Int[Array, ""]) -> Readout:
        """The read-out of one regularisation."""


class Probe(NamedTuple, Generic[Readout]):
    """The result of a probe.

    Attributes:
        correct: 1 where the test example was classified right, else 0 (padding too).
        chosen: position of the chosen regularisation in the grid.
        edge: whether that is the smallest or largest of the grid, which may then be too narrow. Also True where the score does not
            depend on the regularisation (a constant feature).
        readout: the chosen read-out, for use on other conditions.
        unconverged: the number of regularisations whose fit did not converge. They are not chosen, unless none did.
    """

    correct: Float[Array, "test"]
    chosen: Int[Array, ""]
    edge: Bool[Array, ""]
    readout: Readout
    unconverged: Int[Array, ""] | int = 0


def check_splits(
    train: Any,
    train_labels: Any,
    validation: Any,
    validation_labels: Any,
    test: Any,
    test_labels: Any,
    classes: int,
    dims: str = "rows width",
) -> None:
    """Check the splits of a probe.

    Raises:
        ValueError: features or labels are no arrays of numbers, do not belong together, or hold NaN or labels that are no class; a split
            is empty, besides padding; or all training labels are one class.
    """
    splits = {"train": (train, train_labels), "validation": (validation, validation_labels), "test": (test, test_labels)}
    checks.check_splits(splits, classes, dims)


check_problems = functools.partial(check_splits, dims="problems rows width")
"""`check_splits` of many problems at once."""


def one_hot(labels: Int[Array, "rows"], classes: int) -> Float[Array, "rows classes"]:
    """One-hot targets; a row labelled -1 (padding) is all 0.

    Raises:
        ValueError: labels are no integers, or outside of -1 to `classes` - 1.
    """
    checks.check_class_map("labels", labels, "rows", classes, ignore=-1)
    return jax.nn.one_hot(labels, classes)


def normalised_weights(rows: int, weights: Shaped[Array, "rows"] | None) -> Float[Array, "rows"]:
    """Row weights that sum to 1, equal where `weights` is None."""
    weights = jnp.ones(rows) if weights is None else weights.astype(jnp.float32)
    return weights / weights.sum()


@checks.check_first(checks.check_targets)
def select(
    path: Readout,
    predict: Callable[[Readout, Array], Float[Array, "rows classes"]],
    penalties: Float[Array, "path"],
    features: Shaped[Array, "rows width"],
    targets: Float[Array, "rows classes"],
    weights: Shaped[Array, "rows"] | None = None,
    converged: Bool[Array, "path"] | None = None,
) -> Int[Array, ""]:
    """The index of the penalty with the best accuracy on these rows, which must not be the reported ones; of equals the largest.

    Accuracy is the (weighted) mean target at the predicted class: for one-hot targets the fraction of rows classified right,
    for soft ones the fraction of pixels. Of fits that are said to have converged or not only the former are chosen from, if there are any.

    Raises:
        ValueError: features, targets or weights do not belong together, or hold NaN; or the targets are of one class.
    """
    row_weights = normalised_weights(len(features), weights)
    targets = jnp.where(row_weights[:, None] > 0, targets, 0)

    def accuracy(index: Int[Array, ""]) -> Float[Array, ""]:
        predicted = jnp.argmax(predict(path.at(index), features), axis=-1)
        right = jnp.take_along_axis(targets, predicted[:, None], axis=-1)[:, 0]
        return jnp.sum(right if weights is None else right * weights)

    accuracies = jax.lax.map(accuracy, jnp.arange(len(penalties)))
    if converged is not None:
        accuracies = jnp.where(converged | ~converged.any(), accuracies, -1)
    return jnp.argmax(jnp.where(accuracies == accuracies.max(), penalties, -jnp.inf))


def _check_scored(validation: Any, validation_labels: Any, test: Any, test_labels: Any, classes: int) -> None:
    checks.check_classes(classes)
    checks.check_labelled("validation", validation, "validation_labels", validation_labels, classes)
    checks.check_labelled("test", test, "test_labels", test_labels, classes)
    checks.check_width("test", test, "validation", validation)


@checks.check_first(_check_scored)
def choose_and_score(
    path: Readout,
    predict: Callable[[Readout, Array], Float[Array, "rows classes"]],
    penalties: Float[Array, "path"],
    validation: Shaped[Array, "validation width"],
    validation_labels: Int[Array, "validation"],
    test: Shaped[Array, "test width"],
    test_labels: Int[Array, "test"],
    classes: int,
    converged: Bool[Array, "path"] | None = None,
) -> Probe[Readout]:
    """The probe whose penalty is chosen on validation and whose read-out is scored on test. Rows labelled -1 are padding.

    Raises:
        ValueError: features or labels do not belong together, or hold NaN or labels that are no class; or a split is empty.
    """
    chosen = select(path, predict, penalties, validation, one_hot(validation_labels, classes), validation_labels >= 0, converged)
    readout = path.at(chosen)
    edge = (penalties[chosen] == penalties.min()) | (penalties[chosen] == penalties.max())
    unconverged = jnp.int32(0) if converged is None else (~converged).sum()
    return Probe(top1(predict(readout, test), test_labels), chosen, edge, readout, unconverged)


_TABLE_ROWS = 4
"""Problems of every device that one program solves, at most: more are solved by running it again."""


def solve_many(
    solve: Callable[..., Solution], problems: Any, settings: tuple[Hashable, ...] = (), at_a_time: int = 1, mesh: Mesh | None = None
) -> Solution:
    """The solutions of many problems, stacked along a leading axis.

    Each problem is solved by a program of one shape, whose numbers depend neither on how many problems nor on how many devices there are.

    Args:
        solve: a module-level function of one problem and `settings`, to its solution.
        problems: arrays with a common leading axis, along which the problems are stacked.
        settings: further arguments of `solve`, the same for all problems.
        at_a_time: problems that a device solves together; it needs the memory for so many besides inputs and outputs. A CPU core is
            fastest with 1, because its cache holds one problem.
        mesh: its devices share the problems. Device d solves problems d, d + devices, ...: neighbouring problems (layers, say) take
            about as long, so that the work is balanced. By default all stay where the inputs are.

    Raises:
        ValueError: `at_a_time` is below 1, there is no problem, or the leading axes differ.
    """
    counts = {len(leaf) for leaf in jax.tree.leaves(problems)}
    if len(counts) != 1 or 0 in counts or at_a_time < 1:
        raise ValueError(f"arrays hold {sorted(counts)} problems, {at_a_time} at a time; give one count above 0, and 1 or more at a time")
    if mesh is None:
        solutions: Solution = _solve_each(solve, settings, at_a_time, problems, np.int32(counts.pop()))
        return solutions
    count, devices = counts.pop(), mesh.size
    per_device = -(-count // devices)
    rows = min(per_device, max(at_a_time, _TABLE_ROWS))  # a program of few problems serves any number of them
    tables = []
    for first in range(0, per_device, rows):
        # the last problem again where they do not divide evenly
        dealt = np.minimum(np.arange(first * devices, (first + rows) * devices), count - 1)
        # placed before the program begins: it then holds nothing but what one device does
        table = jax.device_put(
            jax.tree.map(lambda leaf, dealt=dealt: leaf[dealt].reshape(rows, devices, *leaf.shape[1:]), problems),
            NamedSharding(mesh, PartitionSpec(None, mesh.axis_names)),
        )
        tables.append(_solve_table(solve, settings, at_a_time, mesh, table, np.int32(min(rows, per_device - first))))

    def joined(*parts: Array) -> Array:
        rows = [part.reshape(-1, *part.shape[2:]) for part in parts]
        together: Array = (np if isinstance(rows[0], np.ndarray) else jnp).concatenate(rows)
        return together[:count]

    solutions = jax.tree.map(joined, *map(on_host, tables))
    return solutions


@functools.partial(jax.jit, static_argnames=("solve", "settings", "at_a_time"))
def _solve_each(solve: Callable[..., Any], settings: tuple[Hashable, ...], at_a_time: int, problems: Any, count: Array) -> Any:
    """The solutions of `count` problems that lie on one device."""
    solve_one = functools.partial(_apply, solve, settings)
    return one_by_one(solve_one, problems, count) if at_a_time == 1 else jax.lax.map(solve_one, problems, batch_size=at_a_time)


def _apply(solve: Callable[..., Any], settings: tuple[Hashable, ...], problem: Any) -> Any:
    return solve(problem, *settings)


@functools.partial(jax.jit, static_argnames=("solve", "settings", "at_a_time", "mesh"))
def _solve_table(solve: Callable[..., Any], settings: tuple[Hashable, ...], at_a_time: int, mesh: Mesh, table: Any, count: Array) -> Any:
    """The solutions of problems [per device, devices, ...], of which every device has a column."""

    def solve_column(problems: Any, count: Array) -> Any:
        solutions = _solve_each(solve, settings, at_a_time, jax.tree.map(lambda leaf: leaf[:, 0], problems), count)
        return jax.tree.map(lambda leaf: leaf[:, None], solutions)

    spec = PartitionSpec(None, mesh.axis_names)
    return jax.shard_map(solve_column, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False)(table, count)


def labels_by_problem(labels: Int[Array, "*problems rows"], problems: int) -> Int[Array, "problems rows"]:
    """The labels of every problem, from their own labels or from one set that they all share."""
    return labels if labels.ndim == 2 else jnp.broadcast_to(labels, (problems, len(labels)))
