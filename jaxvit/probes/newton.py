"""The minimum of a softmax regression's objective by Newton's method, whose linear systems are solved by conjugate gradients.

Truncated Newton as in Nocedal & Wright, section 7.1, with the exact Hessian, whose diagonal is the preconditioner. Float32 throughout.
Where a plane separates the classes the loss goes to 1e-6 and probabilities to 0 and 1: entropies, residuals and curvatures are
therefore counted from the most probable class of a row, so that nowhere is the difference of two almost equal numbers needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvit.probes.ridge import matmul

Parameters = tuple[Float[Array, "classes width"], Float[Array, "classes 1"]]
"""Coefficients and intercepts. Classes come first: both products of a gradient then run along the rows of x, twice as fast on a CPU."""

ACCURACY = 0.1
"""Conjugate gradients end where as many more iterations as they have taken, each as good as the last, would lower the quadratic model by
less than this share of what they have (Nash & Sofer 1990), and by the preconditioner's measure the residual as well; far from the minimum
by less than the share of the loss that a step takes off, up to a half. With 0.3 gaps of 2e-4 were taken for 1e-5; 0.03 takes a third more
products."""

PRODUCTS = 2_000
"""The largest number of products with the Hessian in one step. A step that ends there does not count as converged."""

_NOISE = 1e-6
"""A step may raise the loss by so large a share of it: float32 does not tell such losses apart."""
_SHORTEST = 1e-6
_EXHAUSTED = 1e-9
"""Where the square of the residual is so small a share of what it was, the rest is rounding."""


class Problem(NamedTuple):
    """What is minimised: the weighted mean over rows of the cross-entropy, plus penalty / 2 |coefficients|^2.

    Attributes:
        targets: columns sum to 1, or are 0 for padding.
        row_weights: sum to 1.
    """

    x: Float[Array, "rows width"]
    targets: Float[Array, "classes rows"]
    row_weights: Float[Array, "rows"]
    penalty: Float[Array, ""]


class Minimum(NamedTuple):
    """Where a minimisation ended.

    Attributes:
        iterations: steps of Newton's method.
        loss: the objective.
        gap: how far above its minimum the objective is, estimated, as a share of the loss. The last step lowered the quadratic model
            by some share. What is left is that, times its ratio to the share of the step before (Newton's method converges
            quadratically) or times `ACCURACY`, the error of conjugate gradients, if that is more. Infinite where a step was cut short
            or did not lower the objective.
    """

    parameters: Parameters
    iterations: Int[Array, ""]
    loss: Float[Array, ""]
    gap: Float[Array, ""]


class _Point(NamedTuple):
    """Objective and gradient at some parameters; every row's probabilities, and which class is the most probable."""

    parameters: Parameters
    loss: Float[Array, ""]
    gradient: Parameters
    probabilities: Float[Array, "classes rows"]
    top: Bool[Array, "classes rows"]


def minimise(problem: Problem, start: Parameters, iterations: int, tolerance: float) -> Minimum:
    """Steps until the gap is at most the tolerance, there are as many as `iterations`, or none lowers the objective.

    Args:
        start: of which coefficients and intercepts sum to 0 over classes, as those of a minimum do (intercepts may always be
            chosen so); so do all that follow.
    """
    squares = problem.x**2

    def iterate(carry: tuple[Minimum, _Point, Array, Array]) -> tuple[Minimum, _Point, Array, Array]:
        minimum, point, _, last = carry
        step, decrease, exact = _newton_step(problem, point, squares)
        after, lower = _search(problem, point, step, decrease)
        share = decrease / point.loss
        point = jax.tree.map(lambda new, old: jnp.where(lower, new, old), after, point)
        gap = jnp.where(lower & exact, share * jnp.clip(share / last, ACCURACY, 1), jnp.inf)
        return Minimum(point.parameters, minimum.iterations + 1, point.loss, gap), point, lower, share

    def unfinished(carry: tuple[Minimum, _Point, Array, Array]) -> Array:
        minimum, _, lower, _ = carry
        return lower & (minimum.iterations < iterations) & ~(minimum.gap <= tolerance)

    point = _evaluate(problem, _centred(start))
    before = Minimum(point.parameters, jnp.int32(0), point.loss, jnp.float32(jnp.inf))
    minimum, *_ = jax.lax.while_loop(unfinished, iterate, (before, point, jnp.bool_(True), jnp.float32(1)))
    return minimum


def _evaluate(problem: Problem, parameters: Parameters) -> _Point:
    coefficients, intercept = parameters
    logits = matmul(coefficients, problem.x.T) + intercept
    logits = logits - (problem.targets * logits).sum(axis=0)  # exactly 0 for the class of a hard target
    largest = logits.max(axis=0)
    top = jnp.arange(len(logits))[:, None] == jnp.argmax(logits, axis=0)
    odds = jnp.where(top, 0, jnp.exp(logits - largest))
    others, total = odds.sum(axis=0), problem.targets.sum(axis=0)
    probabilities = jnp.where(top, 1, odds) * (1 / (1 + others))
    residuals = jnp.where(top, 0, total * probabilities - problem.targets)
    residuals = jnp.where(top, -residuals.sum(axis=0), residuals) * problem.row_weights
    loss = problem.row_weights @ (total * (largest + jnp.log1p(others))) + problem.penalty / 2 * (coefficients**2).sum()
    gradient = matmul(residuals, problem.x) + problem.penalty * coefficients, residuals.sum(axis=1, keepdims=True)
    return _Point(parameters, loss, gradient, probabilities, top)


def _search(problem: Problem, point: _Point, step: Parameters, decrease: Array) -> tuple[_Point, Array]:
    """The first point that is enough lower, after the whole step, half of it, and so on; and whether there is one."""

    def shorten(trial: tuple[Array, _Point]) -> tuple[Array, _Point]:
        length = trial[0] / 2
        return length, _evaluate(problem, jax.tree.map(lambda p, s: p + length * s, point.parameters, step))

    def lower(trial: tuple[Array, _Point]) -> Array:
        length, after = trial
        return after.loss <= point.loss - 1e-4 * length * decrease + _NOISE * point.loss

    trial = shorten((jnp.float32(2), point))
    trial = jax.lax.while_loop(lambda trial: ~lower(trial) & (trial[0] > _SHORTEST), shorten, trial)
    return trial[1], lower(trial)


def _newton_step(problem: Problem, point: _Point, squares: Float[Array, "rows width"]) -> tuple[Parameters, Array, Array]:
    """The step, how much it lowers the quadratic model, and whether it is as accurate as `ACCURACY` says."""
    p, weights = point.probabilities, problem.row_weights * problem.targets.sum(axis=0)
    rest = jnp.where(point.top, jnp.where(point.top, 0, p).sum(axis=0), 1 - p)
    curvature = p * rest * weights
    tiny = np.finfo(np.float32).tiny
    diagonal = matmul(curvature, squares) + problem.penalty, jnp.maximum(curvature.sum(axis=1, keepdims=True), 1e-20)

    def product(direction: Parameters) -> Parameters:
        coefficients, intercept = direction
        change = matmul(coefficients, problem.x.T) + intercept
        change = p * (change - jnp.where(point.top, change, 0).sum(axis=0))
        change = (change - p * change.sum(axis=0)) * weights
        penalised = problem.penalty * (coefficients - coefficients.mean(axis=0))
        return matmul(change, problem.x) + penalised, change.sum(axis=1, keepdims=True)

    def precondition(residual: Parameters) -> Parameters:
        # Residuals sum to 0 over classes, but for rounding. Where a class has far less curvature than the others (it is absent, or
        # lies apart), their rounding is a large step for it, unless each class takes its share by curvature.
        preconditioned: Parameters = jax.tree.map(lambda r, d: r / d - r.sum(axis=0) / d.sum(axis=0), residual, diagonal)
        return preconditioned

    def iterate(state: _Conjugate) -> _Conjugate:
        image = product(state.direction)
        length = state.scalar / jnp.maximum(_dot(state.direction, image), tiny)
        step = jax.tree.map(lambda s, d: s + length * d, state.step, state.direction)
        residual = jax.tree.map(lambda r, i: r - length * i, state.residual, image)
        preconditioned = precondition(residual)
        scalar, gain = _dot(residual, preconditioned), length * state.scalar / 2
        direction = jax.tree.map(lambda p, d: p + scalar / jnp.maximum(state.scalar, tiny) * d, preconditioned, state.direction)
        return _Conjugate(step, residual, direction, scalar, state.decrease + gain, gain, state.products + 1)

    def unfinished(state: _Conjugate) -> Array:
        share = jnp.clip(state.decrease / point.loss, ACCURACY, 0.5)
        inexact = jnp.maximum(state.products * state.gain, state.scalar / 2) > share * state.decrease
        return (state.products == 0) | (state.products < PRODUCTS) & (state.scalar > _EXHAUSTED * start.scalar) & inexact

    residual = jax.tree.map(jnp.negative, point.gradient)
    direction = precondition(residual)
    nothing = jax.tree.map(jnp.zeros_like, residual)
    zero = jnp.float32(0)
    start = _Conjugate(nothing, residual, direction, _dot(residual, direction), zero, zero, jnp.int32(0))
    end = jax.lax.while_loop(unfinished, iterate, start)
    return _centred(end.step), end.decrease, end.products < PRODUCTS


class _Conjugate(NamedTuple):
    """Conjugate gradients: the step so far, what is left of the right side, the next direction, the preconditioned square of the
    residual, by how much the quadratic model is lowered, and was last, and the number of iterations."""

    step: Parameters
    residual: Parameters
    direction: Parameters
    scalar: Float[Array, ""]
    decrease: Float[Array, ""]
    gain: Float[Array, ""]
    products: Int[Array, ""]


def _centred(parameters: Parameters) -> Parameters:
    """Without the mean over classes, which softmax does not depend on."""
    coefficients, intercept = parameters
    return coefficients - coefficients.mean(axis=0), intercept - intercept.mean(axis=0)


def _dot(left: Parameters, right: Parameters) -> Array:
    return (left[0] * right[0]).sum() + (left[1] * right[1]).sum()
