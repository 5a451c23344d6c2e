"""Ablations lowered to arrays: `Edits`, a pytree whose leaves have a leading layer axis, and how a block applies them.

Every stage overwrites tokens by `(1 - mask) * stream + mask * target`: exact where the mask is 0 or 1, differentiable in
between. A mask and an index into a short table of values per layer cost tokens, not tokens x width, and make every
constant-valued condition the same program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvit.ablation import Ablation, RandomPatches, Replacement
from jaxvit.config import ViTConfig
from jaxvit.tokens import TokenLayout
from jaxvit.vit import SITES, ViT

_VALUE_ROWS = 8


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "seed", "patches", "patch_seed", "index", "values", "deviations"],
    meta_fields=["kind"],
)
@dataclass(frozen=True)
class Stage:
    """One overwrite. Leaves are arrays (numpy while lowering) that lead with the layer axis; None leaves are absent from
    the program.

    Attributes:
        kind: "fixed" (the target is a row of `values`), "noise" (that row plus a draw) or "shuffle" (another example).
        mask: [L, T] 1 where a token is overwritten.
        seed: [L] of noise and shuffle.
        patches, patch_seed: [L] number and seed of randomly drawn patches, which restrict the mask.
        index: [L, T] row of `values` for each token.
        values, deviations: [L, rows, D].
    """

    kind: Literal["fixed", "noise", "shuffle"]
    mask: Any
    seed: Any = None
    patches: Any = None
    patch_seed: Any = None
    index: Any = None
    values: Any = None
    deviations: Any = None

    @property
    def signature(self) -> tuple[str, bool]:
        return self.kind, self.patches is not None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["stages"], meta_fields=["layout"])
@dataclass(frozen=True)
class Edits:
    """What an ablation does to one model at one image size: stages in order, by site."""

    stages: dict[str, tuple[Stage, ...]]
    layout: TokenLayout

    @property
    def shuffles(self) -> bool:
        return any(s.kind == "shuffle" for stages in self.stages.values() for s in stages)

    @property
    def addresses_examples(self) -> bool:
        """Whether example ids are needed: for noise, shuffle and random patches."""
        return any(s.kind != "fixed" or s.patches is not None for stages in self.stages.values() for s in stages)


def lower(ablation: Ablation, model: ViT | ViTConfig, image_size: int | tuple[int, int]) -> Edits:
    """Arrays of an ablation for a model and an image size in pixels (a side, or height and width).

    Zero, mean and constant conditions of one site have one structure whatever tokens they touch, so they share a program.

    Raises:
        ValueError: the model lacks the tokens or layers, or statistics or vectors do not fit it.
    """
    config = model.config if isinstance(model, ViT) else model
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    layout = TokenLayout.of(config, (size[0], size[1]))
    stages: dict[str, list[Stage]] = {}
    for replacement in ablation.replacements:
        _check(replacement, config, layout, (size[0], size[1]))
        at_site = stages.setdefault(replacement.at, [])
        stage = _lower_one(replacement, config, layout)
        if at_site and stage.signature == at_site[-1].signature == ("fixed", False):
            at_site[-1] = _merge(at_site[-1], stage)
        else:
            at_site.append(stage)
    return Edits({site: tuple(_share_rows(s) for s in stages[site]) for site in SITES if site in stages}, layout)


def stack(ablations: Sequence[Ablation | Edits], model: ViT | ViTConfig, image_size: int | tuple[int, int]) -> Edits:
    """Several ablations as one `Edits` with a leading condition axis, for `jax.vmap`. An empty `Ablation()` is "full".

    Conditions that lack a stage which another has get one that touches no token.

    Raises:
        ValueError: no ablations, or as `lower`.
    """
    if not ablations:
        raise ValueError("stack needs at least one ablation, got none")
    lowered = [a if isinstance(a, Edits) else lower(a, model, image_size) for a in ablations]
    if len({e.layout for e in lowered}) > 1:
        raise ValueError(f"these edits are for different layouts: {', '.join(str(e.layout) for e in lowered)}; lower them for one size")
    stages = {}
    for site in SITES:
        columns = _align([e.stages.get(site, ()) for e in lowered])
        if columns:
            stages[site] = tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *column) for column in columns)
    return Edits(stages, lowered[0].layout)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["layer", "example_ids", "valid"], meta_fields=["layout"])
@dataclass(frozen=True)
class Place:
    """Where in the run a stage is applied: which block, which examples."""

    layer: Int[Array, ""]
    example_ids: Int[Array, "batch"] | None
    valid: Bool[Array, "batch"] | None
    layout: TokenLayout


def apply(stages: tuple[Stage, ...], x: Float[Array, "batch tokens width"], place: Place) -> Float[Array, "batch tokens width"]:
    """The stream after the stages of one site; stages are those of one layer (no layer axis)."""
    for stage in stages:
        mask = stage.mask[None, :, None]
        if stage.patches is not None:
            mask = mask * _drawn_patches(stage, place)[:, :, None]
        mask = mask.astype(x.dtype)
        x = (1 - mask) * x + mask * _target(stage, x, place)
    return x


def _target(stage: Stage, x: Array, place: Place) -> Array:
    """[1 or batch, T, D] what the chosen tokens become."""
    if stage.kind == "shuffle":
        return x[_donors(stage, x.shape[0], place)]
    target = stage.values[stage.index][None]
    if stage.kind == "noise":
        draws = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(_example_keys(stage.seed, place))
        target = target + stage.deviations[stage.index][None] * draws
    return target.astype(x.dtype)


def _example_keys(seed: Array, place: Place, per_layer: bool = True) -> Array:
    key = jax.random.key(seed)
    if per_layer:
        key = jax.random.fold_in(key, place.layer)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(place.example_ids)


def _donors(stage: Stage, batch: int, place: Place) -> Int[Array, "batch"]:
    """Index of each example's donor: the next in the random order of the valid examples. Padding keeps its own tokens."""
    uniform = jax.vmap(jax.random.uniform)(_example_keys(stage.seed, place))
    valid = jnp.ones(batch, bool) if place.valid is None else place.valid
    order = jnp.argsort(jnp.where(valid, uniform, jnp.inf))
    count = valid.sum()
    rank = jnp.arange(batch)
    donor = jnp.where(rank < count, order[(rank + 1) % jnp.maximum(count, 1)], order)
    return jnp.zeros(batch, order.dtype).at[order].set(donor)


def _drawn_patches(stage: Stage, place: Place) -> Float[Array, "batch tokens"]:
    """1 on the patches with the `patches` smallest uniforms of each example; the draw does not depend on the layer."""
    keys = _example_keys(stage.patch_seed, place, per_layer=False)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (place.layout.patches,)))(keys)
    rank = jnp.argsort(jnp.argsort(uniform, axis=-1), axis=-1)
    chosen = (rank < stage.patches).astype(jnp.float32)
    return jnp.pad(chosen, ((0, 0), (place.layout.prefix, 0)))


def _check(r: Replacement, config: ViTConfig, layout: TokenLayout, size: tuple[int, int]) -> None:
    wrong = [layer for layer in r.layers if not 0 <= int(layer) < config.depth] if r.layers != "all" else []
    if wrong:
        raise ValueError(f"layer {wrong[0]} does not exist; this model has blocks 0 to {config.depth - 1}")
    if isinstance(r.tokens, RandomPatches) and r.tokens.count > layout.patches:
        raise ValueError(f"{r.tokens.count} random patches asked for, but an image of this size has {layout.patches}")
    if r.kind in ("mean", "noise"):
        assert r.value is not None
        need = (config.depth, len(layout.groups), config.width)
        if r.value.array.shape != need:
            raise ValueError(
                f"statistics of shape {r.value.array.shape} (layers, slots, width) do not fit this model, which needs {need}; "
                "calibrate with this model"
            )
        if r.image_size is not None and r.image_size != size:
            raise ValueError(
                f"statistics were made at {r.image_size[0]}x{r.image_size[1]}, the images are {size[0]}x{size[1]}; "
                "calibrate at that size or pass any_size=True"
            )


def _lower_one(r: Replacement, config: ViTConfig, layout: TokenLayout) -> Stage:
    depth, drawn = config.depth, isinstance(r.tokens, RandomPatches)
    positions = list(layout.positions("patches" if isinstance(r.tokens, RandomPatches) else r.tokens))
    mask = np.zeros((depth, layout.tokens), np.float32)
    for layer in range(depth) if r.layers == "all" else r.layers:
        mask[layer, positions] = 1
    stage = Stage("noise" if r.kind == "noise" else "shuffle" if r.kind == "shuffle" else "fixed", mask)
    if isinstance(r.tokens, RandomPatches):
        patches, patch_seed = (np.full(depth, v, np.uint32) for v in (r.tokens.count, r.tokens.seed))
        stage = dataclasses.replace(stage, patches=patches, patch_seed=patch_seed)
    if r.kind in ("noise", "shuffle"):
        stage = dataclasses.replace(stage, seed=np.full(depth, r.seed, np.uint32))
    if r.kind == "shuffle":
        return stage
    index = np.zeros(layout.tokens, np.int32)
    if r.kind == "zero":
        values = np.zeros((depth, 1, config.width), np.float32)
    elif r.kind == "constant":
        assert r.value is not None
        vectors = np.atleast_2d(r.value.array)
        allowed = (1,) if drawn else (1, len(positions))
        if vectors.ndim != 2 or vectors.shape[0] not in allowed or vectors.shape[1] != config.width:
            raise ValueError(
                f"a constant of shape {r.value.array.shape} does not fit {len(positions)} tokens of width {config.width}; "
                f"pass [{config.width}] or [tokens, {config.width}]"
            )
        index[positions] = np.arange(len(positions)) if len(vectors) > 1 else 0
        values = np.broadcast_to(vectors, (depth, *vectors.shape))
    else:
        assert r.value is not None
        index, values = layout.group_of().astype(np.int32), r.value.array
    deviations = r.deviation.array if r.deviation is not None else None
    return dataclasses.replace(stage, index=np.broadcast_to(index, mask.shape), values=values, deviations=deviations)


def _merge(first: Stage, second: Stage) -> Stage:
    """Two constant-valued stages as one: the later value wins."""
    index = np.where(second.mask > 0, second.index + first.values.shape[1], first.index)
    values = np.concatenate([first.values, second.values], axis=1)
    return dataclasses.replace(first, mask=np.maximum(first.mask, second.mask), index=index, values=values)


def _share_rows(stage: Stage) -> Stage:
    """Keep the distinct rows that are used, then pad their number, so that different conditions have equal shapes."""
    if stage.values is None or stage.index is None:
        return jax.tree.map(jnp.asarray, stage)
    used, index = np.unique(np.where(stage.mask > 0, stage.index, stage.index.max()), return_inverse=True)
    rows = _VALUE_ROWS * -(-len(used) // _VALUE_ROWS)

    def table(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.pad(np.asarray(values)[:, used], ((0, 0), (0, rows - len(used)), (0, 0)))

    index = index.reshape(stage.mask.shape).astype(np.int32)
    stage = dataclasses.replace(stage, index=index, values=table(stage.values), deviations=table(stage.deviations))
    return jax.tree.map(jnp.asarray, stage)


def _align(conditions: list[tuple[Stage, ...]]) -> list[list[Stage]]:
    """Stages of several conditions as columns of one signature; a condition without the stage gets one that does nothing."""
    order: list[tuple[str, bool]] = []
    for stages in conditions:
        at = 0
        for stage in stages:
            if stage.signature in order[at:]:
                at = order.index(stage.signature, at) + 1
            else:
                order.insert(at, stage.signature)
                at += 1
    columns: list[list[Stage | None]] = [[] for _ in order]
    for stages in conditions:
        waiting = list(stages)
        for column, signature in zip(columns, order, strict=True):
            column.append(waiting.pop(0) if waiting and waiting[0].signature == signature else None)
        assert not waiting
    return [_fill(column) for column in columns]


def _fill(column: list[Stage | None]) -> list[Stage]:
    rows = max(s.values.shape[1] if s is not None and s.values is not None else 0 for s in column)

    def widen(stage: Stage) -> Stage:
        def pad(table: Array | None) -> Array | None:
            return None if table is None else jnp.pad(table, ((0, 0), (0, rows - table.shape[1]), (0, 0)))

        return dataclasses.replace(stage, values=pad(stage.values), deviations=pad(stage.deviations))

    present = [widen(s) for s in column if s is not None]
    nothing = jax.tree.map(jnp.zeros_like, present[0])
    return [nothing if s is None else widen(s) for s in column]
