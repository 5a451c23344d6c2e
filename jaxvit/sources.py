"""Lowering of edits whose new tokens are no stored value: a row of an array of the call, another token, or what a
function makes of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvit.ops import EditOp
from jaxvit.specs import CLEAN, Positions, RandomPatches, Replacement, blocks_of
from jaxvit.tokens import TokenLayout


def with_rows(op: EditOp, replacement: Replacement, layout: TokenLayout) -> EditOp:
    """The op of a patch, with the row of the given array for each token.

    Raises:
        ValueError: a token is selected twice, or none is.
    """
    if replacement.given == CLEAN:
        return dataclasses.replace(op, kind="clean")
    op = dataclasses.replace(op, given=replacement.given)
    if isinstance(replacement.tokens, Positions):
        return op
    assert not isinstance(replacement.tokens, RandomPatches)
    positions = list(layout.in_order(replacement.tokens))
    if not positions:
        raise ValueError(f'patch of no tokens reads nothing of given["{replacement.given}"]; select at least one token')
    row = np.zeros(layout.tokens, np.int32)
    row[positions] = np.arange(len(positions))
    return dataclasses.replace(op, row=np.broadcast_to(row, op.mask.shape), count=len(positions))


def with_partners(op: EditOp, replacement: Replacement, layout: TokenLayout) -> EditOp:
    """The op of a swap, with the token that each token becomes.

    Raises:
        ValueError: the two lists of tokens differ in length, share a token, or name one twice.
    """
    tokens, partners = replacement.tokens, replacement.partners
    assert partners is not None
    assert not isinstance(tokens, (RandomPatches, Positions))
    first, second = layout.in_order(tokens), layout.in_order(partners)
    if len(first) != len(second):
        raise ValueError(f"swap takes as many tokens as partners, got {len(first)} and {len(second)}; select one partner for each token")
    if shared := sorted(set(first) & set(second)):
        raise ValueError(f"position {shared[0]} is on both sides of a swap; select tokens that are not among their partners")
    partner = np.arange(layout.tokens, dtype=np.int32)
    partner[[*first, *second]] = [*second, *first]
    return dataclasses.replace(op, partner=np.broadcast_to(partner, op.mask.shape))


def with_function(op: EditOp, replacement: Replacement, depth: int) -> EditOp:
    """The op of a custom edit, which is of all tokens in its layers.

    Raises:
        ValueError: an array does not lead with the layer axis.
    """
    assert replacement.function is not None
    arrays = {name: stored.array for name, stored in replacement.arrays}
    for name, array in arrays.items():
        if array.shape[:1] != (depth,):
            raise ValueError(
                f'array "{name}" of {replacement.function.name} has shape {list(array.shape)}, but this model has {depth} blocks; pass one '
                f"[{depth}, ...] that leads with the blocks"
            )
    active = np.zeros(depth, np.int32)
    active[list(blocks_of(replacement.layers, depth))] = 1
    mask = np.broadcast_to(active[:, None], op.mask.shape).astype(np.float32)
    return dataclasses.replace(op, mask=mask, active=active, arrays=arrays, function=replacement.function.function)
