"""Softmax regression with a squared-norm penalty, by L-BFGS: for one penalty, or for a path of them with warm starts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from jaxvit import checks
from jaxvit.probes.ridge import matmul, standardisation
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

DINOV2_CS = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))
"""The 45 inverse penalties, 1e-6 to 1e5, of DINOv2's logistic-regression evaluation (`dinov2/eval/log_regression.py`)."""


class Logistic(NamedTuple):
    """Linear read-outs of standardised features whose scores are logits, with a leading axis of penalties (a path) or of one (`at`).

    Attributes:
        weights: [*path, width, classes], for (features - mean) / scale.
        intercept: [*path, classes].
        mean, scale: [width], of the training rows.
        penalty: [*path].
        iterations: [*path], of L-BFGS.
        gradient_norm: [*path], after the last iteration: of the mean loss per row, for decorrelated features of about unit variance.
        loss: [*path], the objective after the last iteration.
    """

    weights: Float[Array, "*path width classes"]
    intercept: Float[Array, "*path classes"]
    mean: Float[Array, "width"]
    scale: Float[Array, "width"]
    penalty: Float[Array, "*path"]
    iterations: Int[Array, "*path"]
    gradient_norm: Float[Array, "*path"]
    loss: Float[Array, "*path"]

    def at(self, index: int | Int[Array, ""]) -> Logistic:
        """The read-out of one penalty of a path."""
        readout: Logistic = jax.tree.map(lambda leaf: leaf[index], self)
        return readout._replace(mean=self.mean, scale=self.scale)


def _check_fit(features: Any, targets: Any, penalty: Any, weights: Any, iterations: int, tolerance: float) -> None:
    checks.check_targets(features, targets, weights)
    checks.check_positive("penalty", penalty)
    _check_iteration(iterations, tolerance)


def _check_fit_path(features: Any, targets: Any, penalties: Any, weights: Any, iterations: int, tolerance: float) -> None:
    checks.check_targets(features, targets, weights)
    checks.check_positive("penalties", penalties)
    _check_iteration(iterations, tolerance)


def _check_iteration(iterations: int, tolerance: float) -> None:
    checks.check_counts(iterations=iterations)
    checks.check_positive("tolerance", tolerance)


@checks.check_first(_check_fit)
@functools.partial(jax.jit, static_argnames=("iterations", "tolerance", "standardised"))
def fit(
    features: Shaped[Array, "rows width"],
    targets: Float[Array, "rows classes"],
    penalty: float | Float[Array, ""] = 1e-4,
    weights: Shaped[Array, "rows"] | None = None,
    iterations: int = 200,
    tolerance: float = 1e-4,
    standardised: bool = True,
) -> Logistic:
    """Softmax regression for one penalty (Hastie, Tibshirani & Friedman, 2nd ed., section 4.4).

    Minimises, over W and b, the (weighted) mean over rows of the cross-entropy between targets and softmax(z W + b), plus
    penalty / 2 |W|^2, with z the standardised features: `sklearn.linear_model.LogisticRegression` has C = 1 / (penalty * rows).
    L-BFGS (Nocedal & Wright, section 7.2) runs on decorrelated features, for which few iterations suffice; float32 throughout.

    Args:
        targets: rows that sum to 1: one-hot labels, or soft ones such as the class fractions of a patch's pixels.
        penalty: positive.
        weights: of the rows, non-negative; 0 or False for padding.
        iterations: the largest number of iterations.
        tolerance: iteration stops where the norm of the gradient is below tolerance * sqrt(min(loss, 1)). The distance of the loss
            from its minimum is proportional to the square of the gradient, so that the criterion bounds a relative distance.
            Measured with the default: 1e-6 at losses about 1, 3e-5 at 0.05, 3e-4 at 0.01. scikit-learn's criterion does not depend
            on the loss; by default it stops 2 % above a minimum of 0.05.
        standardised: see `fit_path`.

    Raises:
        ValueError: features, targets or weights do not belong together, or hold NaN; the targets are of one class; a penalty, the
            tolerance or the number of iterations is not positive.
    """
    path: Logistic = fit_path(features, targets, jnp.asarray(penalty, jnp.float32)[None], weights, iterations, tolerance, standardised)
    return path.at(0)


@checks.check_first(_check_fit_path)
@functools.partial(jax.jit, static_argnames=("iterations", "tolerance", "standardised"))
def fit_path(
    features: Shaped[Array, "rows width"],
    targets: Float[Array, "rows classes"],
    penalties: Float[Array, "path"],
    weights: Shaped[Array, "rows"] | None = None,
    iterations: int = 200,
    tolerance: float = 1e-4,
    standardised: bool = True,
) -> Logistic:
    """`fit` for every penalty in turn, each started from the solution of the one before: pass the largest first.

    One decomposition of the features serves the whole path.

    Args:
        standardised: divide channels by their standard deviation; otherwise features are only centred, which with an intercept is
            the same as raw features.

    Raises:
        ValueError: see `fit`.
    """
    row_weights = normalised_weights(len(features), weights)
    mean, scale = standardisation(features, weights)
    scale = scale if standardised else jnp.ones_like(scale)
    z = jnp.where(row_weights[:, None] > 0, (features.astype(jnp.float32) - mean) / scale, 0)
    targets = jnp.where(row_weights[:, None] > 0, targets, 0)
    values, vectors = _principal_axes(z, row_weights)
    rotated = matmul(z, vectors)
    prior = matmul(row_weights, targets)
    # Classes come first from here on: both products of a gradient then run along the rows of x, twice as fast on a CPU.
    start = jnp.zeros((targets.shape[1], len(values))), jnp.log(jnp.maximum(prior, 1e-6))[:, None]

    def step(start: _Parameters, penalty: Float[Array, ""]) -> tuple[_Parameters, _Descent]:
        # The curvature of the loss along an eigenvector is about its eigenvalue times a fraction of p (1 - p), plus the penalty.
        # Of the fractions 0.3, 1, 3 and 10 the first took fewest iterations; 1 takes about a tenth more.
        coefficients, intercept = start
        p = jax.nn.softmax(matmul(coefficients, rotated.T) + intercept, axis=0)
        curvature = jnp.maximum(0.3 * matmul(p * (1 - p), row_weights).mean(), 1e-6)
        scaling = jnp.sqrt(jnp.maximum(values, 0) + penalty / curvature)
        scaled = coefficients * scaling, intercept
        descent = _minimise(rotated / scaling, scaling, targets.T, row_weights, penalty, scaled, iterations, tolerance)
        coefficients, intercept = descent.parameters
        solution = coefficients / scaling, intercept
        return solution, descent._replace(parameters=solution)

    penalties = jnp.asarray(penalties, jnp.float32)
    _, path = jax.lax.scan(step, start, penalties)
    coefficients, intercepts = path.parameters
    return Logistic(
        weights=matmul(vectors, coefficients.swapaxes(1, 2)),
        intercept=intercepts[..., 0],
        mean=mean,
        scale=scale,
        penalty=penalties,
        iterations=path.iterations,
        gradient_norm=path.gradient_norm,
        loss=path.loss,
    )


def _check_read(logistic: Logistic, features: Any) -> None:
    checks.check_read(logistic.mean, features)


@checks.check_first(_check_read)
@jax.jit
def predict(logistic: Logistic, features: Shaped[Array, "rows width"]) -> Float[Array, "rows classes"]:
    """Logits of the classes, from the read-out of one penalty.

    Raises:
        ValueError: features are of another width than those of the fit, or hold NaN.
    """
    return matmul((features.astype(jnp.float32) - logistic.mean) / logistic.scale, logistic.weights) + logistic.intercept


@checks.check_first(check_splits)
@functools.partial(jax.jit, static_argnames=("classes", "cs", "standardised", "iterations", "tolerance"))
def probe(
    train: Shaped[Array, "train width"],
    train_labels: Int[Array, "train"],
    validation: Shaped[Array, "validation width"],
    validation_labels: Int[Array, "validation"],
    test: Shaped[Array, "test width"],
    test_labels: Int[Array, "test"],
    classes: int,
    cs: tuple[float, ...] = DINOV2_CS,
    standardised: bool = True,
    iterations: int = 200,
    tolerance: float = 1e-4,
) -> Probe[Logistic]:
    """The logistic probe: a path fitted on train, C chosen on validation, scored on test. Rows labelled -1 are padding in any of them.

    Args:
        cs: inverse penalties as scikit-learn defines them, C = 1 / (penalty * rows); of equally good ones the smallest is chosen.

    Raises:
        ValueError: no C is given, or one is not positive; or see `fit` and `selection.check_splits`.
    """
    checks.check_positive("cs", cs)
    rows = jnp.maximum((train_labels >= 0).sum(), 1)
    order = np.argsort(cs, kind="stable")  # the largest penalty first
    penalties = 1 / (jnp.asarray([cs[i] for i in order], jnp.float32) * rows)
    path = fit_path(train, one_hot(train_labels, classes), penalties, train_labels >= 0, iterations, tolerance, standardised)
    result = choose_and_score(path, predict, path.penalty, validation, validation_labels, test, test_labels, classes)
    return result._replace(chosen=jnp.asarray(order)[result.chosen])


@checks.check_first(check_problems)
def probe_many(
    train: Shaped[Array, "problems train width"],
    train_labels: Int[Array, "*problems train"],
    validation: Shaped[Array, "problems validation width"],
    validation_labels: Int[Array, "*problems validation"],
    test: Shaped[Array, "problems test width"],
    test_labels: Int[Array, "*problems test"],
    classes: int,
    cs: tuple[float, ...] = DINOV2_CS,
    standardised: bool = True,
    iterations: int = 200,
    tolerance: float = 1e-4,
    at_a_time: int = 1,
    mesh: Mesh | None = None,
) -> Probe[Logistic]:
    """`probe` of many problems (layers, features, conditions) in one program; results have an axis of problems in front.

    Args:
        train_labels, validation_labels, test_labels: of every problem or, without that axis, shared by all.
        at_a_time, mesh: see `selection.solve_many`. Besides inputs and outputs a device needs memory for `at_a_time` problems, about
            3 train x width floats each, and (cs + 20) x width x classes for the path and the history of L-BFGS.

    Raises:
        ValueError: see `probe` and `selection.solve_many`.
    """
    labels = (labels_by_problem(part, len(train)) for part in (train_labels, validation_labels, test_labels))
    arrays = tuple(array for part in zip((train, validation, test), labels, strict=True) for array in part)
    return solve_many(_probe_one, arrays, (classes, tuple(cs), standardised, iterations, tolerance), at_a_time, mesh)


def _probe_one(problem: tuple[Array, ...], *settings: Any) -> Probe[Logistic]:
    result: Probe[Logistic] = probe(*problem, *settings)
    return result


_Parameters = tuple[Float[Array, "classes width"], Float[Array, "classes 1"]]
"""Coefficients of decorrelated features, and intercepts."""


class _Descent(NamedTuple):
    """Parameters after some iterations of L-BFGS, the norm of the gradient and the loss there."""

    parameters: _Parameters
    iterations: Int[Array, ""]
    gradient_norm: Float[Array, ""]
    loss: Float[Array, ""]


def _principal_axes(
    z: Float[Array, "rows width"], row_weights: Float[Array, "rows"]
) -> tuple[Float[Array, "side"], Float[Array, "width side"]]:
    """Eigenvalues and eigenvectors of the channels' covariance.

    With fewer rows than channels only those of the space that the rows span: a penalised optimum has no weight outside of it.
    """
    if z.shape[0] >= z.shape[1]:
        values, vectors = jnp.linalg.eigh(matmul((row_weights[:, None] * z).T, z))
        return values, vectors
    basis = jnp.linalg.qr(z.T)[0]
    values, vectors = _principal_axes(matmul(z, basis), row_weights)
    return values, matmul(basis, vectors)


def _minimise(
    x: Float[Array, "rows width"],
    scaling: Float[Array, "width"],
    targets: Float[Array, "classes rows"],
    row_weights: Float[Array, "rows"],
    penalty: Float[Array, ""],
    start: _Parameters,
    iterations: int,
    tolerance: float,
) -> _Descent:
    """The minimum of the loss on features divided by `scaling`, by L-BFGS."""

    def loss(parameters: _Parameters) -> Array:
        coefficients, intercept = parameters
        entropy = -(targets * jax.nn.log_softmax(matmul(coefficients, x.T) + intercept, axis=0)).sum(axis=0)
        return row_weights @ entropy + penalty / 2 * ((coefficients / scaling) ** 2).sum()

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def iterate(carry: tuple[_Descent, Any]) -> tuple[_Descent, Any]:
        descent, state = carry
        value, gradient = value_and_gradient(descent.parameters, state=state)
        updates, state = solver.update(gradient, state, descent.parameters, value=value, grad=gradient, value_fn=loss)
        parameters = optax.apply_updates(descent.parameters, updates)
        norm = optax.tree.norm(optax.tree.get(state, "grad"))
        return _Descent(parameters, descent.iterations + 1, norm, optax.tree.get(state, "value")), state

    def unfinished(carry: tuple[_Descent, Any]) -> Array:
        descent, _ = carry
        return (descent.iterations < iterations) & (descent.gradient_norm > tolerance * jnp.sqrt(jnp.minimum(descent.loss, 1)))

    before = _Descent(start, jnp.int32(0), jnp.float32(jnp.inf), jnp.float32(jnp.inf))
    descent, _ = jax.lax.while_loop(unfinished, iterate, (before, solver.init(start)))
    return descent
