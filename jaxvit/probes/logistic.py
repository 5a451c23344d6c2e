"""Softmax regression with a squared-norm penalty, by L-BFGS, for one penalty or warm-started along a path of them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from jaxvit.probes.ridge import matmul, standardisation
from jaxvit.probes.selection import Probe, choose_and_score, labels_of_each, many, one_hot, shares

DINOV2_CS = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))
"""The 45 inverse penalties, from 1e-6 to 1e5, of DINOv2's logistic-regression evaluation (`dinov2/eval/log_regression.py`)."""


class Logistic(NamedTuple):
    """A linear read-out of standardised features whose scores are logits; with a leading axis of penalties (a path), or without.

    Attributes:
        weights: [*path, width, classes], for (features - mean) / scale.
        intercept: [*path, classes].
        mean, scale: [width], of the rows fitted.
        penalty: [*path].
        iterations: [*path], of L-BFGS.
        gradient_norm: [*path], at the end; the gradient is of the mean loss per row, for decorrelated features of about unit variance.
        loss: [*path], the minimised objective at the end.
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
        return jax.tree.map(lambda leaf: leaf[index], self)._replace(mean=self.mean, scale=self.scale)


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
    """Softmax regression (Hastie, Tibshirani & Friedman, 2nd ed., section 4.4).

    Minimises, over W and b, the (weighted) mean over rows of the cross-entropy between targets and softmax(z W + b), plus
    penalty / 2 |W|^2, with z the standardised features: `sklearn.linear_model.LogisticRegression` has C = 1 / (penalty * rows).
    L-BFGS (Nocedal & Wright, section 7.2) runs on decorrelated features, where few iterations do; float32 throughout.

    Args:
        targets: rows that sum to 1: one-hot labels, or soft ones such as the class shares of a patch's pixels.
        penalty: positive.
        weights: of the rows, non-negative; 0 or False for padding.
        iterations: at most so many.
        tolerance: stop where the norm of the gradient is below tolerance * sqrt(min(loss, 1)). How far the loss is from its
            minimum goes with the square of the gradient, so that this is about a relative distance: measured with the
            default: 1e-6 at losses about 1, 3e-5 at 0.05, 3e-4 at 0.01. scikit-learn stops at a gradient whatever the loss, and by
            default 2 % above the minimum at 0.05.
        standardised: see `fit_path`.
    """
    return fit_path(features, targets, jnp.asarray(penalty, jnp.float32)[None], weights, iterations, tolerance, standardised).at(0)


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
    """`fit` for every penalty, in the order given, each started from the solution of the one before: give the largest first.

    One decomposition of the features serves the whole path.

    Args:
        standardised: divide channels by their standard deviation; otherwise features are centred only, which the intercept makes as
            good as raw.
    """
    share = shares(len(features), weights)
    mean, scale = standardisation(features, weights)
    scale = scale if standardised else jnp.ones_like(scale)
    z = jnp.where(share[:, None] > 0, (features.astype(jnp.float32) - mean) / scale, 0)
    targets = jnp.where(share[:, None] > 0, targets, 0)
    values, vectors = _principal_axes(z, share)
    rotated = matmul(z, vectors)
    prior = matmul(share, targets)
    # Classes come first from here on: both products of a gradient then run along the rows of x, twice as fast on a CPU.
    start = jnp.zeros((targets.shape[1], len(values))), jnp.log(jnp.maximum(prior, 1e-6))[:, None]

    def step(before: tuple[Array, Array], penalty: Float[Array, ""]) -> tuple[tuple[Array, Array], tuple]:
        # The curvature of the loss along an eigenvector is about its eigenvalue times a share of p (1 - p), plus the penalty.
        # The share is what took fewest iterations of 0.3, 1, 3 and 10; 1 takes about a tenth more.
        p = jax.nn.softmax(matmul(before[0], rotated.T) + before[1], axis=0)
        spread = jnp.maximum(0.3 * matmul(p * (1 - p), share).mean(), 1e-6)
        width = jnp.sqrt(jnp.maximum(values, 0) + penalty / spread)
        scaled = before[0] * width, before[1]
        (coefficients, intercept), *rest = _minimise(rotated / width, width, targets.T, share, penalty, scaled, iterations, tolerance)
        after = coefficients / width, intercept
        return after, (*after, *rest)

    penalties = jnp.asarray(penalties, jnp.float32)
    _, (coefficients, intercepts, *rest) = jax.lax.scan(step, start, penalties)
    return Logistic(matmul(vectors, coefficients.swapaxes(1, 2)), intercepts[..., 0], mean, scale, penalties, *rest)


@jax.jit
def predict(logistic: Logistic, features: Shaped[Array, "rows width"]) -> Float[Array, "rows classes"]:
    """Logits of the classes, for the read-out of one penalty."""
    return matmul((features.astype(jnp.float32) - logistic.mean) / logistic.scale, logistic.weights) + logistic.intercept


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
    """Fit on train along the path, choose C on validation, score on test. Rows labelled -1 are padding in any of them.

    Args:
        cs: inverse penalties as scikit-learn counts them, C = 1 / (penalty * rows); of equally good ones the smallest is chosen.

    Raises:
        ValueError: no C is given, or one is not positive.
    """
    if not cs or min(cs) <= 0:
        raise ValueError(f"cs are {cs}; give at least one, all positive")
    rows = jnp.maximum((train_labels >= 0).sum(), 1)
    order = np.argsort(cs, kind="stable")  # the path starts from the largest penalty
    penalties = 1 / (jnp.asarray([cs[i] for i in order], jnp.float32) * rows)
    path = fit_path(train, one_hot(train_labels, classes), penalties, train_labels >= 0, iterations, tolerance, standardised)
    found = choose_and_score(path, predict, path.penalty, validation, validation_labels, test, test_labels, classes)
    return found._replace(chosen=jnp.asarray(order)[found.chosen])


@functools.partial(jax.jit, static_argnames=("classes", "cs", "standardised", "iterations", "tolerance", "together", "mesh"))
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
    together: int = 1,
    mesh: Mesh | None = None,
) -> Probe[Logistic]:
    """`probe` of many problems (layers, features, conditions) in one program; everything found has their axis in front.

    Labels are the problems' own or, without that axis, those of all. On a mesh the problems are shared out, see
    `selection.many`. Beside inputs and outputs a device needs memory for `together` problems: about 3 train x width floats
    each, and (cs + 20) x width x classes for the path and the memory of L-BFGS.

    Raises:
        ValueError: see `probe` and `selection.many`.
    """
    labels = (labels_of_each(part, len(train)) for part in (train_labels, validation_labels, test_labels))
    arrays = tuple(array for part in zip((train, validation, test), labels, strict=True) for array in part)
    return many(lambda problem: probe(*problem, classes, cs, standardised, iterations, tolerance), arrays, together, mesh)


def _principal_axes(z: Float[Array, "rows width"], share: Float[Array, "rows"]) -> tuple[Float[Array, "side"], Float[Array, "width side"]]:
    """Eigenvalues and eigenvectors of the products of channels. Where there are fewer rows than channels, only of the space that the
    rows span: a penalised optimum has no weight outside of it."""
    if z.shape[0] >= z.shape[1]:
        values, vectors = jnp.linalg.eigh(matmul((share[:, None] * z).T, z))
        return values, vectors
    basis = jnp.linalg.qr(z.T)[0]
    values, vectors = _principal_axes(matmul(z, basis), share)
    return values, matmul(basis, vectors)


def _minimise(
    x: Float[Array, "rows width"],
    width: Float[Array, "width"],
    targets: Float[Array, "classes rows"],
    share: Float[Array, "rows"],
    penalty: Float[Array, ""],
    start: tuple[Array, Array],
    iterations: int,
    tolerance: float,
) -> tuple[tuple[Array, Array], Int[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """L-BFGS on features divided by `width`: coefficients and intercept, iterations, norm of the gradient, loss."""

    def loss(parameters: tuple[Array, Array]) -> Array:
        coefficients, intercept = parameters
        entropy = -(targets * jax.nn.log_softmax(matmul(coefficients, x.T) + intercept, axis=0)).sum(axis=0)
        return share @ entropy + penalty / 2 * ((coefficients / width) ** 2).sum()

    solver = optax.lbfgs()
    step = optax.value_and_grad_from_state(loss)

    def improve(carry: tuple) -> tuple:
        parameters, state, count, *_ = carry
        value, gradient = step(parameters, state=state)
        updates, state = solver.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
        parameters = optax.apply_updates(parameters, updates)
        return parameters, state, count + 1, optax.tree.norm(optax.tree.get(state, "grad")), optax.tree.get(state, "value")

    def unfinished(carry: tuple) -> Array:
        *_, count, norm, value = carry
        return (count < iterations) & (norm > tolerance * jnp.sqrt(jnp.minimum(value, 1)))

    begin = start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf), jnp.float32(jnp.inf)
    found, _, *rest = jax.lax.while_loop(unfinished, improve, begin)
    return found, *rest
