"""Ops applied to the tokens at a site: `(1 - mask) * tokens + mask * target`.

That is exact where the mask is 0 or 1, and differentiable in between. It also keeps what is not finite and not used away from results
and gradients; only whole-token edits of the stream by what an ablation stores are the bare expression.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvit.cuts import Cuts, Stage
from jaxvit.given import rows_at_positions, selected_by_head
from jaxvit.ops import BlockContext, CutOp, Drawn, EditOp
from jaxvit.sites import HEAD_SITES, NOISE_NUMBERS, STREAM_SITES


def apply(
    ops: tuple[EditOp, ...],
    x: Float[Array, "batch tokens *width"],
    context: BlockContext,
    site: str = "block_output",
    clean: Float[Array, "batch tokens *width"] | None = None,
) -> Float[Array, "batch tokens *width"]:
    """The tokens after the ops of one site, which are those of one layer (without the layer axis).

    At a site where heads are apart `x` is [B, T, heads, head width], and its last two axes count as one axis of channels.

    Args:
        clean: the same tokens in a run without edits, where one goes along.
    """
    shape = x.shape
    heads = shape[2] if site in HEAD_SITES else 1
    if site in HEAD_SITES:
        x = x.reshape(*shape[:2], -1)
        clean = None if clean is None else clean.reshape(x.shape)
    for op in ops:
        if op.kind == "custom":
            x = _custom(op, x.reshape(shape), context, site).reshape(x.shape)
            continue
        mask = op.mask[None, :, None]
        if op.strength is not None:
            mask = mask * _by_channel(op.strength, x)
        if op.patches is not None:
            mask = mask * _drawn_patches(op.patches, op.patch_seed, context)[:, :, None]
        if op.positions is not None:
            mask = mask * _at_positions(op, x, context)
        if op.channels is not None:
            mask = mask * op.channels[op.index][None]
        mask = mask.astype(x.dtype)
        if site in STREAM_SITES and op.is_plain and op.channels is None:
            x = (1 - mask) * x + mask * _target(op, x, context, site, clean)
        else:
            target = _finite_where(mask == 0, _target(op, x, context, site, clean))
            if op.own_norm:
                target = _with_own_norm(target, x, mask, op, heads)
            x = (1 - mask) * _finite_where(mask == 1, x) + mask * target
    return x.reshape(shape)


def cuts_of(ops: tuple[CutOp, ...], context: BlockContext, batch: int) -> Cuts:
    """The cuts of one layer (without the layer axis), for the attention of `batch` examples."""
    return tuple(_stage(op, context, batch) for op in ops)


def _stage(op: CutOp, context: BlockContext, batch: int) -> Stage:
    queries_BTF, keys_BHSF = (jnp.broadcast_to(x, (batch, *x.shape)) for x in (op.queries, op.keys))
    if op.drawn_queries is not None:
        queries_BTF = queries_BTF * _restriction(op.drawn_queries, context)
    queries_BHTF = queries_BTF[:, None]  # the same for all heads
    of_queries, of_keys = (None if p is None else selected_by_head(p, context.given, context.layout.tokens) for p in op.positions)
    queries_BHTF = queries_BHTF if of_queries is None else queries_BHTF * of_queries[..., None]
    keys_BHSF = keys_BHSF if of_keys is None else keys_BHSF * of_keys[..., None]
    if op.strength is not None:
        by_head_BHT = op.strength[:, None] if op.strength.ndim == 2 else jnp.moveaxis(op.strength, -1, 1)
        queries_BHTF = queries_BHTF * by_head_BHT[..., None]
    if op.drawn_keys is not None:
        keys_BHSF = keys_BHSF * _restriction(op.drawn_keys, context)[:, None]
    ones = (batch, 1, 1)
    receivers, renormalise = jnp.broadcast_to(op.receivers, (*ones, *op.receivers.shape)), jnp.broadcast_to(op.renormalise, (*ones, 1))
    stage = Stage(queries_BHTF, keys_BHSF, receivers, renormalise)
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


def _target(op: EditOp, x: Array, context: BlockContext, site: str, clean: Array | None) -> Array:
    """What tokens are replaced by where the mask is 1, [1 or batch, T, C]."""
    if op.kind == "shuffle":
        return x[_donors(op, x.shape[0], context)]
    if op.kind == "swap":
        return x[:, op.partner]
    if op.kind == "clean":
        assert clean is not None
        return clean
    if op.kind == "given":
        return _given(op, x, context)
    target: Array = op.values[op.index][None]
    if op.kind == "noise":
        keys = _example_keys(op.seed, context, context.layer, NOISE_NUMBERS.get(site))
        draws = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        target = target + op.deviations[op.index][None] * draws
    if op.kind in ("add", "scale"):
        target = x + target if op.kind == "add" else x * target
    return target.astype(x.dtype)


def _custom(op: EditOp, x: Float[Array, "batch tokens *width"], context: BlockContext, site: str) -> Float[Array, "batch tokens *width"]:
    """The tokens after the op's function, which is run where it is active alone: of a result that is not used, gradients may be NaN."""
    assert op.function is not None
    function = op.function

    def changed(x: Array) -> Array:
        result = function(x, context, op.arrays)
        if jnp.shape(result) != x.shape:
            raise ValueError(
                f'{getattr(function, "__qualname__", function)} returned shape {list(jnp.shape(result))} at "{site}", where x has '
                f"{list(x.shape)}; a custom function returns tokens of the shape that it is given"
            )
        mask = op.mask.reshape(1, -1, *[1] * (x.ndim - 2)).astype(x.dtype)
        if op.strength is not None:
            mask = mask * op.strength.reshape(*op.strength.shape, *[1] * (x.ndim - op.strength.ndim))
        target = _finite_where(mask == 0, jnp.asarray(result).astype(x.dtype))
        mixed: Array = (1 - mask) * _finite_where(mask == 1, x) + mask * target
        return mixed

    edited: Array = jax.lax.cond(op.active > 0, changed, lambda x: x, x)
    return edited


def _with_own_norm(target: Array, x: Float[Array, "batch tokens channels"], mask: Array, op: EditOp, heads: int) -> Array:
    """The target rescaled to the norm of x, over the channels that the op replaces, in each head; 0 where either is 0."""
    chosen = True if op.channels is None else op.channels[op.index][None] > 0

    def by_head(x: Array) -> Float[Array, "batch tokens heads width"]:
        return jnp.where(chosen, x, 0).astype(jnp.float32).reshape(*x.shape[:2], heads, -1)

    old, new = _norm(by_head(_finite_where(mask == 0, x))), _norm(by_head(target))
    rescaled = by_head(target) / jnp.where(new > 0, new, 1) * old
    return rescaled.reshape(x.shape).astype(x.dtype)


def _norm(x: Float[Array, "*batch width"]) -> Float[Array, "*batch 1"]:
    """The Euclidean norm, with a gradient of 0 where it is 0. Squares neither overflow nor vanish: they are those of shares of the
    largest channel."""
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=-1, keepdims=True))
    largest = jnp.where(largest > 0, largest, 1)
    squares = ((x / largest) ** 2).sum(axis=-1, keepdims=True)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) * largest


def _given(op: EditOp, x: Float[Array, "batch tokens channels"], context: BlockContext) -> Array:
    """The row of the op's given array for each token."""
    assert op.given is not None
    batch, tokens, width = x.shape
    given = context.given[op.given]
    if op.positions is None:
        return given.reshape(*given.shape[:2], width)[:, op.row].astype(x.dtype)
    rows = jnp.swapaxes(rows_at_positions(op, context.given, tokens), 1, 2)
    by_head = given.reshape(*given.shape[:2], rows.shape[-1], -1)
    return jnp.take_along_axis(by_head, rows[..., None], axis=1).reshape(batch, tokens, width).astype(x.dtype)


def _at_positions(op: EditOp, x: Float[Array, "batch tokens channels"], context: BlockContext) -> Bool[Array, "batch tokens #channels"]:
    """True on the tokens that the op's positions select; where they differ between heads, on the channels of those heads."""
    assert op.positions is not None
    by_head = jnp.swapaxes(selected_by_head(op.positions, context.given, x.shape[1]), 1, 2)
    return by_head if by_head.shape[-1] == 1 else jnp.repeat(by_head, x.shape[-1] // by_head.shape[-1], axis=-1)


def _by_channel(strength: Float[Array, "batch tokens *heads"], x: Float[Array, "batch tokens channels"]) -> Array:
    """The strength of an edit on every channel, or on all of a token together."""
    return strength[..., None] if strength.ndim == 2 else jnp.repeat(strength, x.shape[-1] // strength.shape[-1], axis=-1)


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
