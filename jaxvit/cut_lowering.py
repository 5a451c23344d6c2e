"""Attention cuts as arrays: from the cuts of an ablation to `CutOp`, for one model and image size, and several conditions' as one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvit.config import ViTConfig
from jaxvit.ops import CutOp, Drawn, columns_of, stacked
from jaxvit.specs import Cut, Positions, RandomPatches, Tokens, blocks_of, check_count
from jaxvit.tokens import TokenLayout
from jaxvit.vit import ViT


def lower_cuts(cuts: Sequence[Cut], config: ViTConfig, layout: TokenLayout) -> tuple[CutOp, ...]:
    """The cuts in their order, as arrays on the device. Neighbours that renormalise, or that lose weight, become one op: their product.

    All cuts of one count have one structure, whatever their tokens, layers, heads and mass: they share a program.

    Raises:
        ValueError: a receiver is among the keys that are cut, or a query is left without keys where the weight is to be kept.
    """
    ops = []
    for mass, group in itertools.groupby(cuts, key=lambda cut: cut.mass):
        together = list(group)
        kept_apart = mass not in ("renormalise", "lost") or any(
            isinstance(t, Positions) for cut in together for t in (cut.queries, cut.keys)
        )
        ops += [_lower(part, config, layout) for part in ([[cut] for cut in together] if kept_apart else [together])]
    _check_rows(ops)
    on_device: tuple[CutOp, ...] = jax.tree.map(jnp.asarray, tuple(ops))
    return on_device


def stack_cuts(conditions: Sequence[tuple[CutOp, ...]], model: ViT | ViTConfig, layout: TokenLayout) -> tuple[CutOp, ...]:
    """The cuts of several conditions with a leading condition axis; where one has fewer, its other ones cut nothing."""
    config = model.config if isinstance(model, ViT) else model
    nothing = _nothing(config.depth, config.heads, layout)
    together = []
    for column in columns_of(conditions):
        positions = next(op.positions for op in column if op is not None)
        filled = [dataclasses.replace(nothing, positions=positions) if op is None else op for op in column]
        together.append(jax.tree.map(stacked, *_alike(filled, layout)))
    return tuple(together)


def _alike(ops: Sequence[CutOp], layout: TokenLayout) -> list[CutOp]:
    """Ops with equally many factors and the same fields: what one lacks and another has gets values that change nothing."""
    count = max(op.queries.shape[-1] for op in ops)

    def padded(x: Any, value: int = 0) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count - x.shape[-1])], constant_values=value)

    def complete(op: CutOp) -> CutOp:
        none = np.zeros((len(op.queries), 0))
        op = dataclasses.replace(op, queries=padded(op.queries), keys=padded(op.keys))
        if any(o.spares is not None for o in ops):
            op = dataclasses.replace(op, spares=padded(np.float32(none) if op.spares is None else op.spares))
        for name in ("drawn_queries", "drawn_keys"):
            if any(getattr(o, name) is not None for o in ops):
                patches, seed = getattr(op, name) or (np.uint32(none), np.uint32(none))
                op = dataclasses.replace(op, **{name: Drawn(padded(patches, layout.patches), padded(seed))})
        return op

    return [complete(op) for op in ops]


def _nothing(depth: int, heads: int, layout: TokenLayout) -> CutOp:
    """A cut of nothing."""
    queries, keys = (np.zeros((depth, *axes, layout.tokens, 1), np.float32) for axes in ((), (heads,)))
    return CutOp(queries, keys, np.zeros((depth, layout.tokens), np.float32), np.zeros(depth, np.float32))


def _lower(cuts: Sequence[Cut], config: ViTConfig, layout: TokenLayout) -> CutOp:
    """Cuts of one mass as one op of NumPy arrays."""
    depth, first = config.depth, cuts[0]
    queries, keys = (np.zeros((depth, *axes, layout.tokens, len(cuts)), np.float32) for axes in ((), (config.heads,)))
    for factor, cut in enumerate(cuts):
        layers = np.isin(np.arange(depth), blocks_of(cut.layers, depth))
        _check(cut, config, layout)
        heads = np.ones(config.heads) if cut.heads is None else np.isin(np.arange(config.heads), cut.heads)
        queries[..., factor] = np.outer(layers, _tokens(cut.queries, layout))
        keys[..., factor] = np.outer(heads, _tokens(cut.keys, layout))
    op = dataclasses.replace(_nothing(depth, config.heads, layout), queries=queries, keys=keys)
    if first.mass == "renormalise":
        op = dataclasses.replace(op, renormalise=np.ones(depth, np.float32))
    elif first.mass != "lost":
        op = dataclasses.replace(op, receivers=np.broadcast_to(_shares(first, layout), op.receivers.shape))
    if not all(cut.itself for cut in cuts):
        op = dataclasses.replace(op, spares=np.broadcast_to(np.array([not cut.itself for cut in cuts], np.float32), (depth, len(cuts))))
    drawn: dict[str, Drawn | None] = {
        f"drawn_{side}": _drawn([getattr(cut, side) for cut in cuts], depth, layout) for side in ("queries", "keys")
    }
    positions = [tokens if isinstance(tokens, Positions) else None for tokens in (first.queries, first.keys)]
    return dataclasses.replace(op, **drawn, positions=(positions[0], positions[1]))


def _check(cut: Cut, config: ViTConfig, layout: TokenLayout) -> None:
    """Refuse heads and numbers of patches that the model does not have."""
    if cut.heads and max(cut.heads) >= config.heads:
        raise ValueError(f"head {max(cut.heads)} does not exist; this model has heads 0 to {config.heads - 1}")
    for selector in (cut.queries, cut.keys):
        if isinstance(selector, RandomPatches):
            check_count(selector, layout.patches)


def _tokens(selector: Tokens | Positions, layout: TokenLayout) -> Float[np.ndarray, "tokens"]:
    """1 on the tokens that a selector may choose: on all patches where it draws some of them, on all where a call says which."""
    if isinstance(selector, Positions):
        return np.ones(layout.tokens, np.float32)
    chosen = np.zeros(layout.tokens, np.float32)
    chosen[list(layout.positions("patches" if isinstance(selector, RandomPatches) else selector))] = 1
    return chosen


def _drawn(selectors: Sequence[Tokens | Positions], depth: int, layout: TokenLayout) -> Drawn | None:
    """The draws of the factors whose tokens are random patches; None where none are."""
    if not any(isinstance(selector, RandomPatches) for selector in selectors):
        return None
    pairs = [(s.count, s.seed) if isinstance(s, RandomPatches) else (layout.patches, 0) for s in selectors]
    patches, seeds = (np.broadcast_to(np.array(numbers, np.uint32), (depth, len(selectors))) for numbers in zip(*pairs, strict=True))
    return Drawn(patches, seeds)


def _shares(cut: Cut, layout: TokenLayout) -> Float[np.ndarray, "tokens"]:
    """What each key receives of the weight that is cut."""
    assert not isinstance(cut.mass, RandomPatches)
    shares, keys = _tokens(cut.mass, layout), _tokens(cut.keys, layout)
    if (shares * keys).any() and not isinstance(cut.keys, Positions):
        raise ValueError(
            f"cut gives the weight to {cut.mass!r}, which is among the keys {cut.keys!r} that it cuts; "
            'choose other receivers, or mass="renormalise" or "lost"'
        )
    divided: np.ndarray = shares / shares.sum()
    return divided


def _check_rows(ops: Sequence[CutOp]) -> None:
    """Refuse cuts after which a query has no key left to give its weight to, as far as that is known before there are images."""
    known, seen = [op for op in ops if op.is_known], set()
    for layer, head in np.ndindex(*known[0].keys.shape[:2]) if known else ():
        pattern = [(op.queries[layer], op.keys[layer, head], op.receivers[layer], op.renormalise[layer]) for op in known]
        key = b"".join(part.tobytes() for parts in pattern for part in parts)
        if key in seen:
            continue
        seen.add(key)
        left = np.ones((known[0].queries.shape[1],) * 2, bool)
        for op, (queries, keys, receivers, renormalise) in zip(known, pattern, strict=True):
            cut = (queries > 0)[:, None, :] & (keys > 0)[None, :, :]
            if op.spares is not None:
                cut &= ~((op.spares[layer] > 0) & np.eye(len(cut), dtype=bool)[..., None])
            left = (left & ~cut.any(axis=-1)) | (receivers > 0)
            empty = cut.any(axis=(1, 2)) & ~left.any(axis=-1)
            if renormalise and empty.any():
                raise ValueError(
                    f"no key is left for query {empty.argmax()} in head {head} of block {layer}: its weight has nowhere to go; cut fewer "
                    'keys, spare its own by itself=False, or let the weight be lost by mass="lost"'
                )
