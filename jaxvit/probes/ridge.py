"""Closed-form ridge read-outs on standardised features: one eigendecomposition serves every regularisation.

Everything takes one problem and maps over leading axes (layers, features, conditions) under `jax.vmap`, or under
`jax.lax.map` where memory is short.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from jaxvit.probes.selection import Probe, choose_and_score, labels_of_each, many, one_hot, shares

LAMBDAS = tuple(10.0**e for e in range(-4, 3))
"""Default regularisations, per example, on standardised features."""

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Ridge(NamedTuple):
    """Linear read-outs of standardised features; with a leading axis of lambdas (a path), or without (`at`).

    Attributes:
        weights: [*lambdas, width, classes], for (features - mean) / scale.
        intercept: [classes], the mean target: standardised features are centred, so it does not depend on lambda.
        mean, scale: [width], of the rows fitted.
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


@jax.jit
def standardisation(
    features: Shaped[Array, "rows width"], weights: Shaped[Array, "rows"] | None = None
) -> tuple[Float[Array, "width"], Float[Array, "width"]]:
    """Mean and standard deviation (population) of every channel over the rows, weighted; a channel with no variance gets scale 1.

    No variance means a deviation below 1e-6 of the mean: a few units in the last place of a constant are rounding, and
    dividing by them would make noise a feature.
    """
    share = shares(len(features), weights)
    # Relative to a row, and in two passes: a float32 sum over many rows of a channel with a large mean is too coarse.
    origin = features[jnp.argmax(share > 0)].astype(jnp.float32)
    offset = jnp.where(share[:, None] > 0, features.astype(jnp.float32) - origin, 0)
    mean = matmul(share, offset)
    mean = mean + matmul(share, offset - mean)
    deviation = jnp.sqrt(matmul(share, (offset - mean) ** 2))
    return origin + mean, jnp.where(deviation > 1e-6 * jnp.abs(origin + mean), deviation, 1.0)


@functools.partial(jax.jit, static_argnames=("lambdas", "epsilon", "standardised"))
def fit(
    features: Shaped[Array, "rows width"],
    targets: Float[Array, "rows classes"],
    lambdas: tuple[float, ...] = LAMBDAS,
    weights: Shaped[Array, "rows"] | None = None,
    epsilon: float = 0.0,
    standardised: bool = True,
) -> Ridge:
    """Least squares with a squared-norm penalty, for every lambda (Hoerl & Kennard 1970).

    Minimises, over W and b, sum_i w_i |targets_i - z_i W - b|^2 + lambda (sum_i w_i) |W|^2 with z the standardised
    features: lambda is per example, so that a grid fits any number of rows (`sklearn.linear_model.Ridge` has
    alpha = lambda * rows). The intercept is not penalised. Float32: the correlation matrix C is exact to 1e-7, so the weights
    are exact to about 1e-7 |C| / (lambda + smallest eigenvalue of C), relative; with fewer rows than channels, where the
    products of rows are decomposed instead, there is no such eigenvalue.

    Args:
        targets: one-hot labels, or soft ones such as the class shares of a patch's pixels.
        lambdas: regularisations, positive.
        weights: of the rows, non-negative; 0 or False for padding.
        epsilon: added to the standard deviation of every channel.
        standardised: divide by it; otherwise features are centred only, which the intercept makes as good as raw.

    Raises:
        ValueError: no lambda is given, or one is not positive.
    """
    if not lambdas or min(lambdas) <= 0:
        raise ValueError(f"lambdas are {lambdas}; give at least one, all positive")
    share = shares(len(features), weights)
    mean, scale = standardisation(features, weights)
    scale = scale + epsilon if standardised else jnp.ones_like(scale)
    z = jnp.where(share[:, None] > 0, (features.astype(jnp.float32) - mean) / scale, 0)
    targets = jnp.where(share[:, None] > 0, targets, 0)
    intercept = matmul(share, targets)
    root = jnp.sqrt(share)[:, None]
    rows, right = root * z, root * (targets - intercept)
    dual = features.shape[0] < features.shape[1]  # W = rows' A, with A of the rows, where those are fewer than channels
    gram, right = (matmul(rows, rows.T), right) if dual else (matmul(rows.T, rows), matmul(rows.T, right))
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, 0)

    def solve(penalty: Float[Array, ""]) -> Float[Array, "width classes"]:
        def inverse(right: Float[Array, "side classes"]) -> Float[Array, "side classes"]:
            return matmul(vectors, matmul(vectors.T, right) / (values + penalty)[:, None])

        solution = inverse(right)
        # One step of iterative refinement: rounding in the eigenvectors of eigenvalues near 0 would be divided by lambda.
        solution = solution + inverse(right - matmul(gram, solution) - penalty * solution)
        return matmul(rows.T, solution) if dual else solution

    grid = jnp.asarray(lambdas, jnp.float32)
    # One lambda at a time: the largest intermediate then is what is returned.
    return Ridge(jax.lax.map(solve, grid), intercept, mean, scale, grid)


@jax.jit
def predict(ridge: Ridge, features: Shaped[Array, "rows width"]) -> Float[Array, "*lambdas rows classes"]:
    """Scores of the classes, for every lambda of a path or for the one of a single read-out."""
    return matmul((features.astype(jnp.float32) - ridge.mean) / ridge.scale, ridge.weights) + ridge.intercept


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
    """Fit on train, choose lambda on validation, score on test. Rows labelled -1 are padding in any of them.

    A constant feature gives the majority class of the training rows.

    Raises:
        ValueError: see `fit`.
    """
    path = fit(train, one_hot(train_labels, classes), lambdas, train_labels >= 0, standardised=standardised)
    return choose_and_score(path, predict, path.lambdas, validation, validation_labels, test, test_labels, classes)


@functools.partial(jax.jit, static_argnames=("classes", "lambdas", "standardised", "together", "mesh"))
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
    together: int = 1,
    mesh: Mesh | None = None,
) -> Probe[Ridge]:
    """`probe` of many problems (layers, features, conditions) in one program; everything found has their axis in front.

    Labels are the problems' own or, without that axis, those of all. On a mesh the problems are shared out, see
    `selection.many`. Beside inputs and outputs a device needs memory for `together` problems: about (2 train + 3 width) width
    floats each.

    Raises:
        ValueError: see `fit` and `selection.many`.
    """
    labels = (labels_of_each(part, len(train)) for part in (train_labels, validation_labels, test_labels))
    arrays = tuple(array for part in zip((train, validation, test), labels, strict=True) for array in part)
    return many(lambda problem: probe(*problem, classes, lambdas, standardised), arrays, together, mesh)
