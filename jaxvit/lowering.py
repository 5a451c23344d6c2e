"""`lower`: from an ablation to arrays, for one model and one image size; `stack`: several ablations for `jax.vmap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxvit.ablation import Ablation
from jaxvit.config import ViTConfig
from jaxvit.ops import EditOp, Edits
from jaxvit.sites import SITES
from jaxvit.specs import Kind, RandomPatches, Replacement
from jaxvit.tokens import TokenLayout
from jaxvit.vit import ViT

_TABLE_STEP = 8
"""The number of rows of a table of values is padded to a multiple of this: conditions then have equal shapes and share a program."""

_EVERY_LAYER = 2**32 - 1
"""What a shuffle with one donor for all layers folds into its seed, instead of the number of a layer."""

_OP_KINDS: dict[Kind, Literal["fixed", "noise", "shuffle"]] = {
    "zero": "fixed",
    "constant": "fixed",
    "mean": "fixed",
    "noise": "noise",
    "shuffle": "shuffle",
}


def lower(ablation: Ablation, model: ViT | ViTConfig, image_size: int | tuple[int, int]) -> Edits:
    """The arrays of an ablation for a model and an image size in pixels (a side, or height and width).

    Zero, mean and constant conditions at the same sites have the same structure, whatever tokens they replace: they share a program.

    Raises:
        ValueError: the model lacks the tokens or layers, or statistics or vectors do not fit it.
    """
    config = model.config if isinstance(model, ViT) else model
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    layout = TokenLayout.of(config, (height, width))
    ops: dict[str, list[EditOp]] = {}
    for replacement in ablation.replacements:
        _check(replacement, config, layout, (height, width))
        site_ops = ops.setdefault(replacement.at, [])
        op = _lower_one(replacement, config, layout)
        if site_ops and op.signature == site_ops[-1].signature == ("fixed", False):
            site_ops[-1] = _merge(site_ops[-1], op)
        else:
            site_ops.append(op)
    return Edits({site: tuple(_compact_values(op) for op in ops[site]) for site in SITES if site in ops}, layout)


def stack(ablations: Sequence[Ablation | Edits], model: ViT | ViTConfig, image_size: int | tuple[int, int]) -> Edits:
    """Several ablations as one `Edits` with a leading condition axis, for `jax.vmap`; an empty `Ablation()` changes nothing.

    A condition that lacks an op of another one gets that op with a mask of 0.

    Raises:
        ValueError: no ablations, or as `lower`.
    """
    if not ablations:
        raise ValueError("stack needs at least one ablation, got none")
    lowered = [a if isinstance(a, Edits) else lower(a, model, image_size) for a in ablations]
    layouts = [edits.layout for edits in lowered]
    if len(set(layouts)) > 1:
        raise ValueError(f"these edits are for different layouts: {', '.join(map(str, layouts))}; lower them for one size")
    ops = {}
    for site in SITES:
        columns = _align([edits.ops.get(site, ()) for edits in lowered])
        if columns:
            ops[site] = tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns)
    return Edits(ops, layouts[0])


def _check(replacement: Replacement, config: ViTConfig, layout: TokenLayout, size: tuple[int, int]) -> None:
    """Refuse a replacement that does not fit the model or the image size."""
    tokens, value, layers = replacement.tokens, replacement.value, replacement.layers
    missing = [layer for layer in layers if not 0 <= int(layer) < config.depth] if layers != "all" else []
    if missing:
        raise ValueError(f"layer {missing[0]} does not exist; this model has blocks 0 to {config.depth - 1}")
    if isinstance(tokens, RandomPatches) and tokens.count > layout.patches:
        raise ValueError(f"{tokens.count} random patches asked for, but an image of this size has {layout.patches}")
    if replacement.kind in ("mean", "noise"):
        assert value is not None
        expected = (config.depth, len(layout.groups), config.width)
        if value.array.shape != expected:
            raise ValueError(
                f"statistics of shape {value.array.shape} (layers, slots, width) do not fit this model, which needs {expected}; "
                "calibrate with this model"
            )
        calibrated = replacement.image_size
        if calibrated is not None and calibrated != size:
            raise ValueError(
                f"statistics were made at {calibrated[0]}x{calibrated[1]}, the images are {size[0]}x{size[1]}; "
                "calibrate at that size or pass any_size=True"
            )


def _lower_one(replacement: Replacement, config: ViTConfig, layout: TokenLayout) -> EditOp:
    """A replacement as an op of NumPy arrays."""
    depth, tokens = config.depth, replacement.tokens
    positions = list(layout.positions("patches" if isinstance(tokens, RandomPatches) else tokens))
    mask = np.zeros((depth, layout.tokens), np.float32)
    for layer in range(depth) if replacement.layers == "all" else replacement.layers:
        mask[layer, positions] = 1
    op = EditOp(_OP_KINDS[replacement.kind], mask)
    if isinstance(tokens, RandomPatches):
        patches, patch_seed = (np.full(depth, number, np.uint32) for number in (tokens.count, tokens.seed))
        op = dataclasses.replace(op, patches=patches, patch_seed=patch_seed)
    if replacement.kind in ("noise", "shuffle"):
        op = dataclasses.replace(op, seed=np.full(depth, replacement.seed, np.uint32))
    if replacement.kind == "shuffle":
        draw = np.full(depth, _EVERY_LAYER) if replacement.same_donor else np.arange(depth)
        return dataclasses.replace(op, draw=draw.astype(np.uint32))
    index, values = _values(replacement, positions, config, layout)
    deviations = None if replacement.deviation is None else replacement.deviation.array
    return dataclasses.replace(op, index=np.broadcast_to(index, mask.shape), values=values, deviations=deviations)


def _values(
    replacement: Replacement, positions: list[int], config: ViTConfig, layout: TokenLayout
) -> tuple[Int[np.ndarray, "tokens"], Float[np.ndarray, "layers rows width"]]:
    """For every token the row of its value, and the table of values of each layer."""
    index = np.zeros(layout.tokens, np.int32)
    if replacement.kind == "zero":
        return index, np.zeros((config.depth, 1, config.width), np.float32)
    assert replacement.value is not None
    if replacement.kind != "constant":
        return layout.group_of().astype(np.int32), replacement.value.array
    vectors = np.atleast_2d(replacement.value.array)
    allowed = (1,) if isinstance(replacement.tokens, RandomPatches) else (1, len(positions))
    if vectors.ndim != 2 or vectors.shape[0] not in allowed or vectors.shape[1] != config.width:
        raise ValueError(
            f"a constant of shape {replacement.value.array.shape} does not fit {len(positions)} tokens of width {config.width}; "
            f"pass [{config.width}] or [tokens, {config.width}]"
        )
    index[positions] = np.arange(len(positions)) if len(vectors) > 1 else 0
    return index, np.broadcast_to(vectors, (config.depth, *vectors.shape))


def _merge(first: EditOp, second: EditOp) -> EditOp:
    """Two constant-valued ops as one, in which the second one's values win."""
    index = np.where(second.mask > 0, second.index + first.values.shape[1], first.index)
    values = np.concatenate([first.values, second.values], axis=1)
    return dataclasses.replace(first, mask=np.maximum(first.mask, second.mask), index=index, values=values)


def _compact_values(op: EditOp) -> EditOp:
    """The op on the device, its tables reduced to the rows in use and padded to a multiple of `_TABLE_STEP` rows."""
    if op.values is not None and op.index is not None:
        used, index = np.unique(np.where(op.mask > 0, op.index, op.index.max()), return_inverse=True)
        rows = _TABLE_STEP * -(-len(used) // _TABLE_STEP)

        def compact(table: np.ndarray | None) -> np.ndarray | None:
            return None if table is None else np.pad(np.asarray(table)[:, used], ((0, 0), (0, rows - len(used)), (0, 0)))

        index = index.reshape(op.mask.shape).astype(np.int32)
        op = dataclasses.replace(op, index=index, values=compact(op.values), deviations=compact(op.deviations))
    on_device: EditOp = jax.tree.map(jnp.asarray, op)
    return on_device


def _align(conditions: list[tuple[EditOp, ...]]) -> list[list[EditOp]]:
    """The ops of several conditions as columns, one op per condition and all of one signature; missing ops get a mask of 0."""
    signatures: list[tuple[str, bool]] = []
    for ops in conditions:  # signatures in an order that is also that of every condition's ops
        position = 0
        for op in ops:
            if op.signature in signatures[position:]:
                position = signatures.index(op.signature, position) + 1
            else:
                signatures.insert(position, op.signature)
                position += 1
    columns: list[list[EditOp | None]] = [[] for _ in signatures]
    for ops in conditions:
        remaining = list(ops)
        for column, signature in zip(columns, signatures, strict=True):
            column.append(remaining.pop(0) if remaining and remaining[0].signature == signature else None)
        assert not remaining
    return [_complete(column) for column in columns]


def _complete(column: list[EditOp | None]) -> list[EditOp]:
    """Ops of one signature with tables of equal size, and a copy with a mask of 0 where one is missing."""
    rows = max(0 if op is None or op.values is None else op.values.shape[1] for op in column)

    def pad(table: Array | None) -> Array | None:
        return None if table is None else jnp.pad(table, ((0, 0), (0, rows - table.shape[1]), (0, 0)))

    padded = [None if op is None else dataclasses.replace(op, values=pad(op.values), deviations=pad(op.deviations)) for op in column]
    no_op: EditOp = jax.tree.map(jnp.zeros_like, next(op for op in padded if op is not None))
    return [no_op if op is None else op for op in padded]
