"""Ridge regression on standardised features, in closed form: one eigendecomposition serves every regularisation.

Functions take one problem; leading axes (layers, features, conditions) are mapped by `jax.vmap`, or by `jax.lax.map` where memory
is short.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from jaxvit import checks
from jaxvit.probes.selection import (
    Probe,
    check_problems,
    check_splits,
    choose_and_score,
    labels_by_problem,
    normalised_weights,
    one_hot,
    solve_many,
)

LAMBDAS = tuple(10.0**e for e in range(-4, 3))
"""Default regularisations, per example."""

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
"""Matrix product in full float32 on every device."""


class Ridge(NamedTuple):
    """Linear read-outs of standardised features, with a leading axis of lambdas (a path), or of one lambda (`at`).

    Attributes:
        weights: [*lambdas, width, classes], for (features - mean) / scale.
        intercept: [classes], the mean target; it does not depend on lambda, because the features are centred.
        mean, scale: [width], of the training rows.
        lambdas: [*lambdas], per example.
    """

    weights: Float[Array, "*lambdas width classes"]
    intercept: Float[Array, "classes"]
    mean: Float[Array, "width"]
    scale: Float[Array, "width"]
    lambdas: Float[Array, "*lambdas"]

    def at(self, index: int | Int[Array, ""]) -> Ridge:
        """The read-out of one lambda of a path."""
        return self._replace(weights=self.weights[index], lambdas=self.lambdas[index])


@checks.check_first(checks.check_weighted)
@jax.jit
def standardisation(
    features: Shaped[Array, "rows width"], weights: Shaped[Array, "rows"] | None = None
) -> tuple[Float[Array, "width"], Float[Array, "width"]]:
    """Weighted mean and population standard deviation of every channel; 1 in place of the deviation of a constant channel.

    A channel is constant if its deviation is below 1e-6 of its mean: that is rounding, and dividing by it would turn noise into a
    feature.

    Raises:
        ValueError: features hold NaN or infinity, or weights are not of their rows, negative or all 0.
    """
    row_weights = normalised_weights(len(features), weights)
    # Relative to one row, and in two passes: a float32 sum over many rows of a channel with a large mean is too inaccurate.
    origin = features[jnp.argmax(row_weights > 0)].astype(jnp.float32)
    offset = jnp.where(row_weights[:, None] > 0, features.astype(jnp.float32) - origin, 0)
    mean = matmul(row_weights, offset)
    mean = mean + matmul(row_weights, offset - mean)
    deviation = jnp.sqrt(matmul(row_weights, (offset - mean) ** 2))
    return origin + mean, jnp.where(deviation > 1e-6 * jnp.abs(origin + mean), deviation, 1.0)


@checks.check_first(checks.check_targets)
@functools.partial(jax.jit, static_argnames=("lambdas", "epsilon", "standardised"))
def fit(
    features: Shaped[Array, "rows width"],
    targets: Float[Array, "rows classes"],
    lambdas: tuple[float, ...] = LAMBDAS,
    weights: Shaped[Array, "rows"] | None = None,
    epsilon: float = 0.0,
    standardised: bool = True,
) -> Ridge:
    """Ridge regression, least squares with a squared-norm penalty, for every lambda (Hoerl & Kennard 1970).

    Minimises, over W and b, sum_i w_i |targets_i - z_i W - b|^2 + lambda (sum_i w_i) |W|^2 with z the standardised
    features: lambda is per example, so that one grid suits any number of rows (`sklearn.linear_model.Ridge` has
    alpha = lambda * rows). The intercept is not penalised. Computed in float32: the relative error of the correlation matrix C is
    1e-7, and that of the weights about 1e-7 |C| / (lambda + smallest eigenvalue of C). With fewer rows than channels the Gram
    matrix of the rows is decomposed instead, and there is no such eigenvalue.

    Args:
        targets: one-hot labels, or soft ones such as the class fractions of a patch's pixels.
        lambdas: regularisations, positive.
        weights: of the rows, non-negative; 0 or False for padding.
        epsilon: added to the standard deviation of every channel.
        standardised: divide by the standard deviation; otherwise features are only centred, which with an intercept is the same as
            raw features.

    Raises:
        ValueError: no lambda is given, or one is not positive; features, targets or weights do not belong together, or hold NaN; or the
            targets are of one class.
    """
    checks.check_listed(lambdas=lambdas)
    checks.check_positive("lambdas", lambdas)
    row_weights = normalised_weights(len(features), weights)
    mean, scale = standardisation(features, weights)
    scale = scale + epsilon if standardised else jnp.ones_like(scale)
    z = jnp.where(row_weights[:, None] > 0, (features.astype(jnp.float32) - mean) * (1 / scale), 0)
    targets = jnp.where(row_weights[:, None] > 0, targets, 0)
    intercept = matmul(row_weights, targets)
    root = jnp.sqrt(row_weights)[:, None]
    rows, right_side = root * z, root * (targets - intercept)
    dual = features.shape[0] < features.shape[1]  # with fewer rows than channels W = rows' A, and A is solved for
    gram, right_side = (matmul(rows, rows.T), right_side) if dual else (matmul(rows.T, rows), matmul(rows.T, right_side))
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, 0)

    def solve(penalty: Float[Array, ""]) -> Float[Array, "width classes"]:
        def inverse(right_side: Float[Array, "side classes"]) -> Float[Array, "side classes"]:
            return matmul(vectors, matmul(vectors.T, right_side) * (1 / (values + penalty))[:, None])

        solution = inverse(right_side)
        # One step of iterative refinement: rounding in the eigenvectors of eigenvalues near 0 would be divided by lambda.
        solution = solution + inverse(right_side - matmul(gram, solution) - penalty * solution)
        return matmul(rows.T, solution) if dual else solution

    grid = jnp.asarray(lambdas, jnp.float32)
    # one lambda at a time: no intermediate is then larger than the result
    return Ridge(jax.lax.map(solve, grid), intercept, mean, scale, grid)


def _check_read(ridge: Ridge, features: Any) -> None:
    checks.check_read(ridge.mean, features)


@checks.check_first(_check_read)
@jax.jit
def predict(ridge: Ridge, features: Shaped[Array, "rows width"]) -> Float[Array, "*lambdas rows classes"]:
    """Scores of the classes, with a leading axis of lambdas for a path, without for a single read-out.

    Raises:
        ValueError: features are of another width than those of the fit, or hold NaN.
    """
    return matmul((features.astype(jnp.float32) - ridge.mean) * (1 / ridge.scale), ridge.weights) + ridge.intercept


@checks.check_first(check_splits)
@functools.partial(jax.jit, static_argnames=("classes", "lambdas", "standardised"))
def probe(
    train: Shaped[Array, "train width"],
    train_labels: Int[Array, "train"],
    validation: Shaped[Array, "validation width"],
    validation_labels: Int[Array, "validation"],
    test: Shaped[Array, "test width"],
    test_labels: Int[Array, "test"],
    classes: int,
    lambdas: tuple[float, ...] = LAMBDAS,
    standardised: bool = True,
) -> Probe[Ridge]:
    """The ridge probe: fitted on train, lambda chosen on validation, scored on test. Rows labelled -1 are padding in any of them.

    A constant feature gives the majority class of the training rows.

    Raises:
        ValueError: see `fit` and `selection.check_splits`.
    """
    path = fit(train, one_hot(train_labels, classes), lambdas, train_labels >= 0, standardised=standardised)
    return choose_and_score(path, predict, path.lambdas, validation, validation_labels, test, test_labels, classes)


@checks.check_first(check_problems)
def probe_many(
    train: Shaped[Array, "problems train width"],
    train_labels: Int[Array, "*problems train"],
    validation: Shaped[Array, "problems validation width"],
    validation_labels: Int[Array, "*problems validation"],
    test: Shaped[Array, "problems test width"],
    test_labels: Int[Array, "*problems test"],
    classes: int,
    lambdas: tuple[float, ...] = LAMBDAS,
    standardised: bool = True,
    at_a_time: int = 1,
    mesh: Mesh | None = None,
) -> Probe[Ridge]:
    """`probe` of many problems (layers, features, conditions) in one program; results have an axis of problems in front.

    Args:
        train_labels, validation_labels, test_labels: of every problem or, without that axis, shared by all.
        at_a_time, mesh: see `selection.solve_many`. Besides inputs and outputs a device needs memory for `at_a_time` problems, about
            (2 train + 3 width) width floats each.

    Raises:
        ValueError: see `probe` and `selection.solve_many`.
    """
    labels = (labels_by_problem(part, len(train)) for part in (train_labels, validation_labels, test_labels))
    arrays = tuple(array for part in zip((train, validation, test), labels, strict=True) for array in part)
    return solve_many(_probe_one, arrays, (classes, tuple(lambdas), standardised), at_a_time, mesh)


def _probe_one(problem: tuple[Array, ...], *settings: Any) -> Probe[Ridge]:
    result: Probe[Ridge] = probe(*problem, *settings)
    return result
