"""Softmax regression with a squared-norm penalty, by Newton's method: for one penalty, or for a path of them with warm starts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxvit import checks
from jaxvit.metrics import top1
from jaxvit.probes import newton
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
        iterations: [*path], steps of Newton's method.
        loss: [*path], the objective after the last step.
        gap: [*path], the estimated distance of the objective from its minimum, as a share of the loss; infinite where it is unknown.
        converged: [*path], whether the gap is at most the tolerance.
    """

    weights: Float[Array, "*path width classes"]
    intercept: Float[Array, "*path classes"]
    mean: Float[Array, "width"]
    scale: Float[Array, "width"]
    penalty: Float[Array, "*path"]
    iterations: Int[Array, "*path"]
    loss: Float[Array, "*path"]
    gap: Float[Array, "*path"]
    converged: Bool[Array, "*path"]

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
    checks.check_listed(penalties=penalties)
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
    iterations: int = 100,
    tolerance: float = 1e-6,
    standardised: bool = True,
) -> Logistic:
    """Softmax regression for one penalty (Hastie, Tibshirani & Friedman, 2nd ed., section 4.4).

    Minimises, over W and b, the (weighted) mean over rows of the cross-entropy between targets and softmax(z W + b), plus
    penalty / 2 |W|^2, with z the standardised features: `sklearn.linear_model.LogisticRegression` has C = 1 / (penalty * rows), and
    for two classes, of which it penalises one vector, C = 2 / (penalty * rows).
    Newton's method with conjugate gradients (`newton.minimise`) runs on decorrelated features; float32 throughout.

    What is promised where `converged` is True: the objective of the read-out, evaluated in float64, is at most 1e-4 of itself above its
    minimum. Measured against Newton's method in float64, at the 45 values of `DINOV2_CS` on scikit-learn's digits, digits under noise,
    wine, breast cancer, two classes that are nearly separable, a class that lies apart, one that is absent, a row of 1,000 standard
    deviations, and channels about 1e4 or of size 1e-4 or 1e4, most of them standardised and raw: at most 4e-5.

    Args:
        targets: rows that sum to 1: one-hot labels, or soft ones such as the class fractions of a patch's pixels.
        penalty: positive.
        weights: of the rows, non-negative; 0 or False for padding.
        iterations: the largest number of Newton steps.
        tolerance: steps end where the gap, the estimated relative distance of the objective from its minimum, is at most this.
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
    iterations: int = 100,
    tolerance: float = 1e-6,
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
    z = jnp.where(row_weights[:, None] > 0, (features.astype(jnp.float32) - mean) * (1 / scale), 0)
    targets = jnp.where(row_weights[:, None] > 0, targets, 0)
    values, vectors = _principal_axes(z, row_weights)
    rotated = matmul(z, vectors)
    prior = matmul(row_weights, targets)
    start = jnp.zeros((targets.shape[1], len(values))), jnp.log(jnp.maximum(prior, 1e-12))[:, None]

    def step(start: newton.Parameters, penalty: Float[Array, ""]) -> tuple[newton.Parameters, newton.Minimum]:
        minimum = newton.minimise(newton.Problem(rotated, targets.T, row_weights, penalty), start, iterations, tolerance)
        return minimum.parameters, minimum

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
        loss=path.loss,
        gap=path.gap,
        converged=path.gap <= tolerance,
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
    return matmul((features.astype(jnp.float32) - logistic.mean) * (1 / logistic.scale), logistic.weights) + logistic.intercept


@checks.check_first(check_splits)
@functools.partial(jax.jit, static_argnames=("classes", "cs", "standardised", "iterations", "tolerance", "refit"))
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
    iterations: int = 100,
    tolerance: float = 1e-6,
    refit: bool = False,
) -> Probe[Logistic]:
    """The logistic probe: a path fitted on train, C chosen on validation, scored on test. Rows labelled -1 are padding in any of them.

    With `standardised=False`, `refit=True` and the default `cs` it is DINOv2's logistic-regression evaluation with a held-out part
    (`dinov2/eval/log_regression.py`, `eval_log_regression`), whose cuML solver has the same objective. There the held-out part is by
    default a random tenth of train.

    Args:
        cs: inverse penalties as scikit-learn (and cuML) defines them, see `fit`; of equally good ones the smallest is chosen. One whose
            fit does not converge is not chosen, unless none converges.
        refit: the read-out is fitted once more, with the chosen C, on train and validation together. It may be that this fit does not
            converge: `readout.converged`.

    Raises:
        ValueError: no C is given, or one is not positive; or see `fit` and `selection.check_splits`.
    """
    checks.check_listed(cs=cs)
    checks.check_positive("cs", cs)
    rows = jnp.maximum((train_labels >= 0).sum(), 1)
    order = np.argsort(cs, kind="stable")  # the largest penalty first
    # of two classes scikit-learn penalises one vector w, where softmax has -w / 2 and w / 2, of half its squared norm
    penalties = (2 if classes == 2 else 1) / (jnp.asarray([cs[i] for i in order], jnp.float32) * rows)
    path = fit_path(train, one_hot(train_labels, classes), penalties, train_labels >= 0, iterations, tolerance, standardised)
    result = choose_and_score(path, predict, path.penalty, validation, validation_labels, test, test_labels, classes, path.converged)
    result = result._replace(chosen=jnp.asarray(order)[result.chosen])
    if not refit:
        return result
    features, labels = jnp.concatenate([train, validation]), jnp.concatenate([train_labels, validation_labels])
    penalty = result.readout.penalty * rows / jnp.maximum((labels >= 0).sum(), 1)
    readout = fit(features, one_hot(labels, classes), penalty, labels >= 0, iterations, tolerance, standardised)
    return result._replace(correct=top1(predict(readout, test), test_labels), readout=readout)


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
    iterations: int = 100,
    tolerance: float = 1e-6,
    refit: bool = False,
    at_a_time: int = 1,
    mesh: Mesh | None = None,
) -> Probe[Logistic]:
    """`probe` of many problems (layers, features, conditions) in one program; results have an axis of problems in front.

    Args:
        train_labels, validation_labels, test_labels: of every problem or, without that axis, shared by all.
        at_a_time, mesh: see `selection.solve_many`. Besides inputs and outputs a device needs memory for `at_a_time` problems, about
            4 train x width floats each, and (cs + 20) x width x classes for the path and the steps.

    Raises:
        ValueError: see `probe` and `selection.solve_many`.
    """
    labels = (labels_by_problem(part, len(train)) for part in (train_labels, validation_labels, test_labels))
    arrays = tuple(array for part in zip((train, validation, test), labels, strict=True) for array in part)
    return solve_many(_probe_one, arrays, (classes, tuple(cs), standardised, iterations, tolerance, refit), at_a_time, mesh)


def _probe_one(problem: tuple[Array, ...], *settings: Any) -> Probe[Logistic]:
    result: Probe[Logistic] = probe(*problem, *settings)
    return result


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
