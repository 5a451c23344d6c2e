"""`lower`: from an ablation to arrays, for one model and one image size; `stack`: several ablations for `jax.vmap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxvit.ablation import Ablation
from jaxvit.calls import as_config, as_image_size, check_ablation, check_several
from jaxvit.config import ViTConfig
from jaxvit.cut_lowering import lower_cuts, stack_cuts
from jaxvit.ops import EditOp, Edits, OpKind, columns_of, stacked
from jaxvit.sites import HEAD_SITES, SITES, width_at
from jaxvit.sources import with_function, with_partners, with_rows
from jaxvit.specs import Cut, Kind, Positions, RandomPatches, Replacement, blocks_of, check_count
from jaxvit.tokens import TokenLayout
from jaxvit.vit import ViT

_TABLE_STEP = 8
"""The number of rows of a table of values is padded to a multiple of this: conditions then have equal shapes and share a program."""

_TABLES = ("values", "deviations", "channels")
"""The tables of an op, of equally many rows."""

_EVERY_LAYER = 2**32 - 1
"""What a shuffle with one donor for all layers folds into its seed, instead of the number of a layer."""

_OP_KINDS: dict[Kind, OpKind] = {
    "zero": "fixed",
    "constant": "fixed",
    "mean": "fixed",
    "noise": "noise",
    "shuffle": "shuffle",
    "patch": "given",
    "add": "add",
    "scale": "scale",
    "swap": "swap",
    "custom": "custom",
}


def lower(ablation: Ablation, model: ViT | ViTConfig | str, image_size: int | tuple[int, int]) -> Edits:
    """The arrays of an ablation for a model (or its config, or a released model's name) and an image size in pixels: a side, or height and
    width.

    Zero, mean and constant conditions at the same sites have the same structure, whatever tokens they replace: they share a program.

    Conditions that choose heads or channels have a table of channel masks besides, and share another program; so do cuts of one count.

    Raises:
        ValueError: the model lacks the tokens, layers, heads or channels, or statistics or vectors do not fit it.
    """
    check_ablation(ablation, edits=False)
    config, (height, width) = as_config(model), as_image_size(image_size)
    layout = TokenLayout.of(config, (height, width))
    ops: dict[str, list[EditOp]] = {}
    for replacement in ablation.replacements:
        if isinstance(replacement, Cut):
            continue
        _check(replacement, config, layout, (height, width))
        site_ops = ops.setdefault(replacement.at, [])
        op = _lower_one(replacement, config, layout)
        if site_ops and op.merges and site_ops[-1].merges:
            site_ops[-1] = _merge(site_ops[-1], op)
        else:
            site_ops.append(op)
    cuts = lower_cuts([part for part in ablation.replacements if isinstance(part, Cut)], config, layout)
    return Edits({site: tuple(_compact_values(op) for op in ops[site]) for site in SITES if site in ops}, layout, cuts)


def stack(ablations: Iterable[Ablation | Edits], model: ViT | ViTConfig | str, image_size: int | tuple[int, int]) -> Edits:
    """Several ablations as one `Edits` with a leading condition axis, for `jax.vmap`; an empty `Ablation()` changes nothing.

    A condition that lacks an op of another one gets that op with a mask of 0, and one that replaces all channels a mask of ones where
    another one chooses channels: every condition pays for the sites of all.

    Raises:
        ValueError: no ablations, or as `lower`.
    """
    ablations = check_several(ablations)
    lowered = [a if isinstance(a, Edits) else lower(a, model, image_size) for a in ablations]
    layouts = [edits.layout for edits in lowered]
    if len(set(layouts)) > 1:
        raise ValueError(f"these edits are for different layouts: {', '.join(map(str, layouts))}; lower them for one size")
    ops = {}
    for site in SITES:
        columns = [_complete(column) for column in columns_of([edits.ops.get(site, ()) for edits in lowered])]
        if columns:
            ops[site] = tuple(jax.tree.map(stacked, *column) for column in columns)
    return Edits(ops, layouts[0], stack_cuts([edits.cuts for edits in lowered], as_config(model), layouts[0]))


def _check(replacement: Replacement, config: ViTConfig, layout: TokenLayout, size: tuple[int, int]) -> None:
    """Refuse a replacement that does not fit the model or the image size."""
    tokens, value, at = replacement.tokens, replacement.value, replacement.at
    blocks_of(replacement.layers, config.depth)
    check_count(tokens, layout.patches)
    for name, chosen, count in (("head", replacement.heads, config.heads), ("channel", replacement.channels, width_at(at, config))):
        if chosen and max(chosen) >= count:
            raise ValueError(f'{name} {max(chosen)} does not exist; this model has {name}s 0 to {count - 1} at "{at}"')
    if replacement.kind in ("mean", "noise"):
        assert value is not None
        _check_rotation(replacement, config, layout)
        expected = (config.depth, len(layout.groups), width_at(at, config))
        if value.array.shape != expected:
            raise ValueError(
                f'statistics of shape {value.array.shape} (layers, slots, width) do not fit this model, which needs {expected} at "{at}"; '
                "calibrate with this model"
            )
        calibrated = replacement.image_size
        if calibrated is not None and calibrated != size:
            raise ValueError(
                f"statistics were made at {calibrated[0]}x{calibrated[1]}, the images are {size[0]}x{size[1]}; "
                "calibrate at that size or pass any_size=True"
            )


def _check_rotation(replacement: Replacement, config: ViTConfig, layout: TokenLayout) -> None:
    """Refuse moments of what every patch has rotated by its own angles: they would be those of an average over rotations."""
    if config.position != "rope" or replacement.at not in ("query", "key"):
        return
    tokens = replacement.tokens
    if isinstance(tokens, (RandomPatches, Positions)) or max(layout.positions(tokens), default=0) >= layout.prefix:
        raise ValueError(
            f'{replacement.kind} of patches is not possible at "{replacement.at}" of a model with RoPE: patches share one mean, but each '
            'is rotated by its own angles; choose "cls" or "registers", at="value", or zero, constant or shuffle'
        )


def _lower_one(replacement: Replacement, config: ViTConfig, layout: TokenLayout) -> EditOp:
    """A replacement as an op of NumPy arrays."""
    depth, tokens = config.depth, replacement.tokens
    positions = _candidates(replacement, layout)
    mask = np.zeros((depth, layout.tokens), np.float32)
    for layer in blocks_of(replacement.layers, depth):
        mask[layer, positions] = 1
    op = EditOp(_OP_KINDS[replacement.kind], mask, own_norm=replacement.norm == "own")
    if isinstance(tokens, RandomPatches):
        patches, patch_seed = (np.full(depth, number, np.uint32) for number in (tokens.count, tokens.seed))
        op = dataclasses.replace(op, patches=patches, patch_seed=patch_seed)
    if isinstance(tokens, Positions):
        op = dataclasses.replace(op, positions=tokens)
    if replacement.kind in ("noise", "shuffle"):
        op = dataclasses.replace(op, seed=np.full(depth, replacement.seed, np.uint32))
    if replacement.kind == "shuffle":
        draw = np.full(depth, _EVERY_LAYER) if replacement.same_donor else np.arange(depth)
        op = dataclasses.replace(op, draw=draw.astype(np.uint32))
    elif replacement.kind == "patch":
        op = with_rows(op, replacement, layout)
    elif replacement.kind == "swap":
        op = with_partners(op, replacement, layout)
    elif replacement.kind == "custom":
        op = with_function(op, replacement, config.depth)
    else:
        index, values = _values(replacement, positions, config, layout)
        deviations = None if replacement.deviation is None else replacement.deviation.array
        op = dataclasses.replace(op, index=np.broadcast_to(index, mask.shape), values=values, deviations=deviations)
    chosen = _chosen_channels(replacement, config)
    return op if chosen is None else _with_channels(op, chosen)


def _candidates(replacement: Replacement, layout: TokenLayout) -> list[int]:
    """The positions of tokens that are replaced in any example."""
    tokens, partners = replacement.tokens, replacement.partners
    if isinstance(tokens, Positions):
        return list(range(layout.tokens))
    positions = layout.positions("patches" if isinstance(tokens, RandomPatches) else tokens)
    return list(positions if partners is None else positions + layout.positions(partners))


def _chosen_channels(replacement: Replacement, config: ViTConfig) -> Float[np.ndarray, "width"] | None:
    """1 for the channels that a replacement chooses, or None where it takes all."""
    if replacement.heads is None and replacement.channels is None:
        return None
    chosen = np.zeros(width_at(replacement.at, config), np.float32)
    if replacement.at in HEAD_SITES:
        chosen.reshape(config.heads, -1)[list(replacement.heads or ())] = 1
    else:
        chosen[list(replacement.channels or ())] = 1
    return chosen


def _with_channels(op: EditOp, chosen: np.ndarray | float, width: int | None = None) -> EditOp:
    """The op with a table of channel masks that has `chosen` in every row; one that has no table of values gets an index too."""
    if op.values is None:
        op = dataclasses.replace(op, index=np.zeros(op.mask.shape, np.int32))
    shape = (len(op.mask), 1, width or np.size(chosen)) if op.values is None else op.values.shape
    return dataclasses.replace(op, channels=np.broadcast_to(np.float32(chosen), shape))


def _values(
    replacement: Replacement, positions: list[int], config: ViTConfig, layout: TokenLayout
) -> tuple[Int[np.ndarray, "tokens"], Float[np.ndarray, "layers rows width"]]:
    """For every token the row of its value, and the table of values of each layer."""
    index, width = np.zeros(layout.tokens, np.int32), width_at(replacement.at, config)
    if replacement.kind in ("zero", "scale"):
        return index, np.full((config.depth, 1, width), 0 if replacement.kind == "zero" else replacement.factor, np.float32)
    assert replacement.value is not None
    if replacement.kind in ("mean", "noise"):
        return layout.group_of().astype(np.int32), replacement.value.array
    vectors = np.atleast_2d(replacement.value.array)
    allowed = (1,) if isinstance(replacement.tokens, (RandomPatches, Positions)) else (1, len(positions))
    layers = (config.depth,) if vectors.ndim == 3 else ()
    if vectors.shape not in [(*layers, rows, width) for rows in allowed]:
        what = "an added vector" if replacement.kind == "add" else "a constant"
        raise ValueError(
            f"{what} of shape {replacement.value.array.shape} does not fit {len(positions)} tokens of width {width} at "
            f'"{replacement.at}"; pass [{width}], [tokens, {width}] or [{config.depth} blocks, tokens, {width}]'
        )
    index[positions] = np.arange(len(positions)) if vectors.shape[-2] > 1 else 0
    vectors = vectors * np.float32(replacement.factor)
    return index, np.broadcast_to(vectors, (config.depth, *vectors.shape[-2:]))


def _merge(first: EditOp, second: EditOp) -> EditOp:
    """Two constant-valued ops as one, in which the second one's values win in the channels that it replaces."""
    index = np.where(second.mask > 0, second.index + first.values.shape[1], first.index)
    values = np.concatenate([first.values, second.values], axis=1)
    merged = dataclasses.replace(first, mask=np.maximum(first.mask, second.mask), index=index, values=values)
    if first.channels is None and second.channels is None:
        return merged
    first, second = (op if op.channels is not None else _with_channels(op, 1) for op in (first, second))
    merged = dataclasses.replace(merged, channels=np.concatenate([first.channels, second.channels], axis=1))
    return _with_rows_of_both(merged, first, second)


def _with_rows_of_both(merged: EditOp, first: EditOp, second: EditOp) -> EditOp:
    """The merged op, in which a token has a row of its own where both ops replace it and the second one not all of its channels: the
    second one's values in the channels that it replaces, else the first one's."""
    in_part = (second.channels == 0).any(axis=(0, 2))
    both = (first.mask > 0) & (second.mask > 0) & in_part[second.index]
    pairs, number = np.unique(np.stack([first.index[both], second.index[both]]), axis=1, return_inverse=True)
    old, new = pairs
    values = np.where(second.channels[:, new] > 0, second.values[:, new], first.values[:, old])
    channels = np.maximum(first.channels[:, old], second.channels[:, new])
    index = merged.index.copy()
    index[both] = merged.values.shape[1] + number.reshape(-1)
    tables = ((merged.values, values), (merged.channels, channels))
    values, channels = (np.concatenate(table, axis=1) for table in tables)
    return dataclasses.replace(merged, index=index, values=values, channels=channels)


def _compact_values(op: EditOp) -> EditOp:
    """The op on the device, its tables reduced to the rows in use and padded to a multiple of `_TABLE_STEP` rows."""
    if op.index is not None:
        used, index = np.unique(np.where(op.mask > 0, op.index, op.index.max()), return_inverse=True)
        rows = _TABLE_STEP * -(-len(used) // _TABLE_STEP)

        def compact(table: np.ndarray | None) -> np.ndarray | None:
            return None if table is None else np.pad(np.asarray(table)[:, used], ((0, 0), (0, rows - len(used)), (0, 0)))

        index = index.reshape(op.mask.shape).astype(np.int32)
        tables: dict[str, Any] = {name: compact(getattr(op, name)) for name in _TABLES}
        op = dataclasses.replace(op, index=index, **tables)
    on_device: EditOp = jax.tree.map(jnp.asarray, op)
    return on_device


def _complete(column: list[EditOp | None]) -> list[EditOp]:
    """Ops of one signature with tables of equal size, and a copy with a mask of 0 where one is missing."""
    present = [op for op in column if op is not None]
    width = next((op.channels.shape[-1] for op in present if op.channels is not None), None)
    if width is not None:
        column = [op if op is None or op.channels is not None else _with_channels(op, 1, width) for op in column]
    rows = max(0 if table is None else table.shape[1] for op in column if op is not None for table in (op.values, op.channels))

    def pad(table: Array | None) -> Array | None:
        return None if table is None else jnp.pad(table, ((0, 0), (0, rows - table.shape[1]), (0, 0)))

    def padded_op(op: EditOp) -> EditOp:
        tables: dict[str, Any] = {name: pad(getattr(op, name)) for name in _TABLES}
        return dataclasses.replace(op, **tables)

    padded = [None if op is None else padded_op(op) for op in column]
    no_op: EditOp = jax.tree.map(jnp.zeros_like, next(op for op in padded if op is not None))
    return [no_op if op is None else op for op in padded]
