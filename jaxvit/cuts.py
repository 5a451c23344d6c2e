"""The algebra of attention cuts: how softmax weights change where queries are kept from reading keys.

In the names of arrays H is heads, T query tokens, S key tokens, F factors.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LARGEST_EXPONENT = 60.0
"""Cut keys may have logits far above the others'; beyond this their exponentials could overflow. Weights are float32: beside a cut key so
far above it, a key that is left has no weight that could be told from 0. Two keys that are cut by different stages, both so far above all
that are left, count alike."""

_BELOW = 1e6
"""How far cut keys are moved below the others to find the largest logit that is left; beyond all logits."""


class Stage(NamedTuple):
    """Cuts that act together, as arrays with the batch axes of the attention that they edit.

    Attributes:
        queries: [*batch, 1 or H, T, F] how far each factor's cut acts on a query, 0 to 1.
        keys: [*batch, H, S, F] how far it takes a key away, for each head.
        receivers: [*batch, 1, 1, S] shares of the cut weight that keys receive; 0 everywhere where it is spread or lost.
        renormalise: [*batch, 1, 1, 1] 1 where a row is scaled to the sum it had, 0 where what is cut goes to receivers or is lost.
        numbers: [*batch, 1, T, 1] positions of the queries, or None where no factor spares a query's own key.
        spares: [*batch, 1, 1, F] 1 where a factor spares it, or None.
    """

    queries: Array
    keys: Array
    receivers: Array
    renormalise: Array
    numbers: Array | None = None
    spares: Array | None = None


Cuts = tuple[Stage, ...]
"""Stages in the order in which they act; none for attention as it is."""


def cut_weights(
    logits_HTS: Float[Array, "*batch heads queries keys"], cuts: Cuts
) -> tuple[Float[Array, "*batch heads queries keys"], Float[Array, "*batch heads queries 1"]]:
    """Weights after the cuts and the divisor of each row: attention is weights / divisors, float32.

    On exponentials W with divisor S, a stage of strength c is W' = W (1 - c) + g (sum of W c), g the shares of receivers, and S' = S, or
    S (sum of W') / (sum of W) where rows are renormalised. That is a softmax over the keys that are left, or the softmax without what is
    cut. Rows in which nothing is left are 0.

    W is taken against the largest logit that is not cut: against that of a cut key far above the others, these would vanish.
    """
    kept = [_kept(stage) for stage in cuts]
    largest = jnp.where(functools.reduce(jnp.multiply, kept) > 0, logits_HTS, logits_HTS - _BELOW).max(axis=-1, keepdims=True)
    largest = jnp.where(largest > -_BELOW / 2, largest, largest + _BELOW)  # where every key is cut, the largest of all
    weights = jnp.exp(jnp.minimum(logits_HTS - jax.lax.stop_gradient(largest), _LARGEST_EXPONENT))
    divisors: Array | None = None
    for stage, kept_HTS in zip(cuts, kept, strict=True):
        left = weights * kept_HTS
        taken, stays = (weights - left).sum(axis=-1, keepdims=True), left.sum(axis=-1, keepdims=True)
        before = taken + stays
        if divisors is None:  # of weights that nothing has happened to it is their sum
            divisors, scaled = before, stays
        else:
            scaled = divisors * (stays / jnp.where(before > 0, before, 1))
        divisors = jnp.where(stage.renormalise > 0, scaled, divisors)
        weights = left + taken * stage.receivers
    assert divisors is not None
    return weights, jnp.where(divisors > 0, divisors, 1)


def both_streams(stage: Stage) -> Stage:
    """A stage for two streams, on a first axis, of which it cuts the second one's attention alone."""
    two: Stage = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), stage)
    return two._replace(queries=two.queries.at[0].set(0))


def _kept(stage: Stage) -> Float[Array, "*batch heads queries keys"]:
    """The share of each weight that a stage leaves, the product over its factors."""
    factors = []
    for factor in range(stage.queries.shape[-1]):
        strength_HTS = stage.queries[..., factor][..., None] * stage.keys[..., factor][..., None, :]
        if stage.numbers is not None and stage.spares is not None:
            own = stage.numbers == jnp.arange(stage.keys.shape[-2])
            strength_HTS = strength_HTS * (1 - stage.spares[..., factor][..., None] * own)
        factors.append(1 - strength_HTS)
    return functools.reduce(jnp.multiply, factors)
