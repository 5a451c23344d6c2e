"""Softmax regression with a squared-norm penalty, by L-BFGS."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from jaxvit.probes.ridge import matmul, standardisation


class Logistic(NamedTuple):
    """A linear read-out of standardised features whose scores are logits.

    Attributes:
        weights: [width, classes], for (features - mean) / scale.
        intercept: [classes].
        mean, scale: [width], of the rows fitted.
        iterations: of L-BFGS.
        gradient_norm: at the end; the gradient is of the mean loss per row, for decorrelated features.
    """

    weights: Float[Array, "width classes"]
    intercept: Float[Array, "classes"]
    mean: Float[Array, "width"]
    scale: Float[Array, "width"]
    iterations: Int[Array, ""]
    gradient_norm: Float[Array, ""]


@functools.partial(jax.jit, static_argnames=("iterations", "tolerance"))
def fit(
    features: Shaped[Array, "rows width"],
    targets: Float[Array, "rows classes"],
    penalty: float | Float[Array, ""] = 1e-4,
    weights: Shaped[Array, "rows"] | None = None,
    iterations: int = 200,
    tolerance: float = 1e-4,
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
        tolerance: stop where the norm of the gradient is below.
    """
    share = jnp.ones(len(features)) if weights is None else weights.astype(jnp.float32)
    share = share / share.sum()
    mean, scale = standardisation(features, weights)
    z = jnp.where(share[:, None] > 0, (features.astype(jnp.float32) - mean) / scale, 0)
    targets = jnp.where(share[:, None] > 0, targets, 0)
    values, vectors = jnp.linalg.eigh(matmul((share[:, None] * z).T, z))
    # The curvature of the loss along an eigenvector is about a tenth of its eigenvalue (p (1 - p)), plus the penalty.
    basis = vectors / jnp.sqrt(jnp.maximum(values, 0) + 10 * penalty)
    x = matmul(z, basis)

    def loss(parameters: tuple[Array, Array]) -> Array:
        coefficients, intercept = parameters
        entropy = -(targets * jax.nn.log_softmax(matmul(x, coefficients) + intercept)).sum(axis=-1)
        return share @ entropy + penalty / 2 * (matmul(basis, coefficients) ** 2).sum()

    solver = optax.lbfgs()
    step = optax.value_and_grad_from_state(loss)

    def improve(carry: tuple) -> tuple:
        parameters, state, count, _ = carry
        value, gradient = step(parameters, state=state)
        updates, state = solver.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
        parameters = optax.apply_updates(parameters, updates)
        return parameters, state, count + 1, optax.tree.norm(optax.tree.get(state, "grad"))

    prior = matmul(share, targets)
    start = jnp.zeros((x.shape[1], targets.shape[1])), jnp.log(jnp.maximum(prior, 1e-6))
    begin = start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf)
    (coefficients, intercept), _, count, norm = jax.lax.while_loop(
        lambda carry: (carry[2] < iterations) & (carry[3] > tolerance), improve, begin
    )
    return Logistic(matmul(basis, coefficients), intercept, mean, scale, count, norm)


@jax.jit
def predict(logistic: Logistic, features: Shaped[Array, "rows width"]) -> Float[Array, "rows classes"]:
    """Logits of the classes."""
    return matmul((features.astype(jnp.float32) - logistic.mean) / logistic.scale, logistic.weights) + logistic.intercept
