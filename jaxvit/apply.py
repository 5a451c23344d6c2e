"""Ops applied to the tokens at a site: `(1 - mask) * tokens + mask * target`.

That is exact where the mask is 0 or 1, and differentiable in between. Where heads are apart, at neurons, and where some channels of a
token are replaced, it also keeps what is not finite and not used away from results and gradients; whole-token edits of the stream are the
bare expression.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvit.cuts import Cuts, Stage
from jaxvit.ops import BlockContext, CutOp, Drawn, EditOp
from jaxvit.sites import HEAD_SITES, NOISE_NUMBERS, STREAM_SITES


def apply(
    ops: tuple[EditOp, ...], x: Float[Array, "batch tokens *width"], context: BlockContext, site: str = "block_output"
) -> Float[Array, "batch tokens *width"]:
    """The tokens after the ops of one site, which are those of one layer (without the layer axis).

    At a site where heads are apart `x` is [B, T, heads, head width], and its last two axes count as one axis of channels.
    """
    shape = x.shape
    if site in HEAD_SITES:
        x = x.reshape(*shape[:2], -1)
    for op in ops:
        mask = op.mask[None, :, None]
        if op.patches is not None:
            mask = mask * _drawn_patches(op.patches, op.patch_seed, context)[:, :, None]
        if op.channels is not None:
            mask = mask * op.channels[op.index][None]
        mask = mask.astype(x.dtype)
        if site in STREAM_SITES and op.channels is None:
            x = (1 - mask) * x + mask * _target(op, x, context, site)
        else:
            target = _finite_where(mask == 0, _target(op, x, context, site))
            x = (1 - mask) * _finite_where(mask == 1, x) + mask * target
    return x.reshape(shape)


def cuts_of(ops: tuple[CutOp, ...], context: BlockContext, batch: int) -> Cuts:
    """The cuts of one layer (without the layer axis), for the attention of `batch` examples."""
    return tuple(_stage(op, context, batch) for op in ops)


def _stage(op: CutOp, context: BlockContext, batch: int) -> Stage:
    queries_BTF, keys_BHSF = (jnp.broadcast_to(x, (batch, *x.shape)) for x in (op.queries, op.keys))
    if op.drawn_queries is not None:
        queries_BTF = queries_BTF * _restriction(op.drawn_queries, context)
    if op.drawn_keys is not None:
        keys_BHSF = keys_BHSF * _restriction(op.drawn_keys, context)[:, None]
    ones = (batch, 1, 1)
    receivers, renormalise = jnp.broadcast_to(op.receivers, (*ones, *op.receivers.shape)), jnp.broadcast_to(op.renormalise, (*ones, 1))
    stage = Stage(queries_BTF[:, None], keys_BHSF, receivers, renormalise)
    if op.spares is None:
        return stage
    numbers = jnp.arange(context.layout.tokens)[:, None]
    return stage._replace(
        numbers=jnp.broadcast_to(numbers, (batch, 1, *numbers.shape)), spares=jnp.broadcast_to(op.spares, (*ones, *op.spares.shape))
    )


def _restriction(drawn: Drawn, context: BlockContext) -> Float[Array, "batch tokens factors"]:
    """1 on CLS, registers and the drawn patches of each example, for every factor of a cut."""
    patches = jax.vmap(lambda count, seed: _drawn_patches(count, seed, context), out_axes=-1)(*drawn)
    return patches.at[:, : context.layout.prefix].set(1)


def _finite_where(unused: Bool[Array, "..."], x: Array) -> Array:
    """Zero in place of what is unused and not finite: 0 times it would be NaN, in results and in gradients."""
    return jnp.where(unused & ~jnp.isfinite(x), 0, x)


def _target(op: EditOp, x: Array, context: BlockContext, site: str) -> Array:
    """What tokens are replaced by where the mask is 1, [1 or batch, T, C]."""
    if op.kind == "shuffle":
        return x[_donors(op, x.shape[0], context)]
    target: Array = op.values[op.index][None]
    if op.kind == "noise":
        keys = _example_keys(op.seed, context, context.layer, NOISE_NUMBERS.get(site))
        draws = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        target = target + op.deviations[op.index][None] * draws
    return target.astype(x.dtype)


def _example_keys(seed: Array, context: BlockContext, draw: Array | None = None, site: int | None = None) -> Array:
    """A random key for every example, from (seed, number of a site, number of a draw, example id), or from fewer of them."""
    key = jax.random.key(seed)
    if site is not None:
        key = jax.random.fold_in(key, site)
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


def _drawn_patches(patches: Array, seed: Array, context: BlockContext) -> Float[Array, "batch tokens"]:
    """1 on the patches with the smallest uniform draws of each example, `patches` of them, the same in all layers."""
    keys = _example_keys(seed, context)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (context.layout.patches,)))(keys)
    rank = jnp.argsort(jnp.argsort(uniform, axis=-1), axis=-1)
    drawn = (rank < patches).astype(jnp.float32)
    return jnp.pad(drawn, ((0, 0), (context.layout.prefix, 0)))
