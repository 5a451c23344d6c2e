"""Ops applied to the tokens at a site: `(1 - mask) * tokens + mask * target`.

That is exact where the mask is 0 or 1, and differentiable in between.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvit.ops import BlockContext, EditOp


def apply(ops: tuple[EditOp, ...], x: Float[Array, "batch tokens width"], context: BlockContext) -> Float[Array, "batch tokens width"]:
    """The tokens after the ops of one site, which are those of one layer (without the layer axis)."""
    for op in ops:
        mask = op.mask[None, :, None]
        if op.patches is not None:
            mask = mask * _drawn_patches(op, context)[:, :, None]
        mask = mask.astype(x.dtype)
        x = (1 - mask) * x + mask * _target(op, x, context)
    return x


def _target(op: EditOp, x: Array, context: BlockContext) -> Array:
    """What tokens are replaced by where the mask is 1, [1 or batch, T, D]."""
    if op.kind == "shuffle":
        return x[_donors(op, x.shape[0], context)]
    target: Array = op.values[op.index][None]
    if op.kind == "noise":
        draws = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(_example_keys(op.seed, context, context.layer))
        target = target + op.deviations[op.index][None] * draws
    return target.astype(x.dtype)


def _example_keys(seed: Array, context: BlockContext, draw: Array | None = None) -> Array:
    """A random key for every example, from (seed, number of a draw, example id), or from (seed, example id)."""
    key = jax.random.key(seed)
    if draw is not None:
        key = jax.random.fold_in(key, draw)
    return jax.vmap(lambda example_id: jax.random.fold_in(key, example_id))(context.example_ids)


def _donors(op: EditOp, batch: int, context: BlockContext) -> Int[Array, "batch"]:
    """The index of each example's donor: the next in the random order of the valid examples of its group. Padding is its own donor."""
    uniform = jax.vmap(jax.random.uniform)(_example_keys(op.seed, context, op.draw))
    valid = jnp.ones(batch, bool) if context.valid is None else context.valid
    group = jnp.zeros(batch, jnp.int32) if context.groups is None else context.groups
    order = jnp.lexsort((uniform, group, ~valid))  # padding last
    group, valid, rank = group[order], valid[order], jnp.arange(batch)
    continues = (group[1:] == group[:-1]) & (valid[1:] == valid[:-1])
    first = jax.lax.cummax(jnp.where(jnp.append(False, continues), 0, rank))  # of the group
    following = jnp.where(jnp.append(continues, False), rank + 1, first)
    donor = jnp.where(valid, order[following], order)
    return jnp.zeros(batch, order.dtype).at[order].set(donor)


def _drawn_patches(op: EditOp, context: BlockContext) -> Float[Array, "batch tokens"]:
    """1 on the patches with the `op.patches` smallest uniform draws of each example, the same in all layers."""
    keys = _example_keys(op.patch_seed, context)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (context.layout.patches,)))(keys)
    rank = jnp.argsort(jnp.argsort(uniform, axis=-1), axis=-1)
    drawn = (rank < op.patches).astype(jnp.float32)
    return jnp.pad(drawn, ((0, 0), (context.layout.prefix, 0)))
