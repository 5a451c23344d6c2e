"""Running a model: embed, one `lax.scan` over blocks with their edits, captures coming out of it, final norm."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvit import edits as editing
from jaxvit.ablation import Ablation
from jaxvit.attention import attend_and_diverge, attend_and_share
from jaxvit.capture import CAPTURES, CONTRASTS, DIVERGING, SHARING, BlockState, Capture, CaptureSpec, group_columns, resolve
from jaxvit.edits import Edits, Place, Stage, lower
from jaxvit.tokens import TokenLayout
from jaxvit.vit import Block, Rope, ViT, only_attend

Captures = tuple[tuple[str, Capture], ...]
LayerStages = dict[str, tuple[Stage, ...]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens", "prenorm", "captured"], meta_fields=["layout"])
@dataclass(frozen=True)
class Output:
    """What a run returns; leading axes are free, so that it survives `jax.vmap`.

    Attributes:
        tokens: [..., T, D] after the final norm, in the order CLS, registers, patches.
        prenorm: [..., T, D] output of the last block.
        captured: what each capture returned, stacked over layers on its first axis.
    """

    tokens: Float[Array, "*batch tokens width"]
    prenorm: Float[Array, "*batch tokens width"]
    layout: TokenLayout
    captured: dict[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> Float[Array, "*batch width"]:
        return self.tokens[..., 0, :]

    @property
    def registers(self) -> Float[Array, "*batch registers width"]:
        return self.tokens[..., 1 : self.layout.prefix, :]

    @property
    def patches(self) -> Float[Array, "*batch patches width"]:
        return self.tokens[..., self.layout.prefix :, :]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["clean", "ablated", "captured"], meta_fields=[])
@dataclass(frozen=True)
class Pair:
    """A clean and an ablated run of the same images; `captured` holds what saw both, stacked over layers."""

    clean: Output
    ablated: Output
    captured: dict[str, Any]


def forward(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits | None = None,
    capture: CaptureSpec = (),
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
) -> Output:
    """Run a model, with tokens replaced and activations read out as asked.

    Compiles once per (config, shapes, captures, structure of the edits). Pure: composes with jit, vmap, grad and shardings.

    Args:
        images: normalised pixels (`jaxvit.normalise`), any height and width that are multiples of the patch size.
        ablation: what to replace; None runs the program without edits.
        capture: names (see `jaxvit.capture.CAPTURES`), or {name: name or function of the `BlockState`}.
        example_ids: numbers that address the random draws of each example; needed by noise, shuffle and random patches.
        valid: which examples are no padding; padding never donates in a shuffle.

    Raises:
        ValueError: images, ablation, captures or ids do not fit; the message says what would.
    """
    edits = _prepare(model, images, ablation, example_ids, valid)
    return _forward(model, images, edits, _ids(example_ids), valid, resolve(capture, CAPTURES))


def contrast(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits,
    capture: CaptureSpec = (),
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
) -> Pair:
    """Run the clean and the ablated stream together in one scan; captures get (clean state, ablated state) of each block.

    Arguments and errors as for `forward`; the named captures are those of `jaxvit.capture.CONTRASTS`.
    """
    edits = _prepare(model, images, ablation, example_ids, valid)
    return _contrast(model, images, edits, _ids(example_ids), valid, resolve(capture, CONTRASTS))


def sweep_layers(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits,
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
) -> Output:
    """Run an ablation at one block at a time: entry l of `tokens` and `prenorm` [L, B, T, D] is the run whose block l alone is
    edited, as `forward` gives it for the same ablation with `layers=[l]`.

    The clean run is computed once; each entry starts from it at block l, or behind it where only block outputs are edited:
    L (L + 1) / 2 blocks in the place of L^2. One program serves all l; its loops have no reverse-mode gradient. Arguments and
    errors as for `forward`; an ablation that leaves out a block gives the clean run there.
    """
    edits = _prepare(model, images, ablation, example_ids, valid)
    return _sweep_layers(model, images, edits, _ids(example_ids), valid)


@functools.partial(jax.jit, static_argnames="captures")
def _forward(model: ViT, images: Array, edits: Edits | None, ids: Array | None, valid: Array | None, captures: Captures) -> Output:
    x, rope, layout = _embed(model, images)
    groups = group_columns(layout)

    def sharing(q: Array, k: Array, v: Array, hidden: Array | None) -> tuple[Array, dict[str, Array]]:
        mixed, shares = attend_and_share(q, k, v, groups, hidden)
        return mixed, {"shares": shares}

    attention = sharing if SHARING.intersection(function for _, function in captures) else only_attend

    def step(x: Array, scanned: tuple[Block, LayerStages, Array]) -> tuple[Array, dict[str, Any]]:
        block, stages, layer = scanned
        place = Place(layer, ids, valid, layout)

        def edit(site: str, stream: Array) -> Array:
            return editing.apply(stages[site], stream, place) if site in stages else stream

        state = BlockState(block(x, rope, edit, attention=attention), place)
        return state.stream_out, {name: function(state) for name, function in captures}

    x, captured = jax.lax.scan(step, x, _scanned(model, edits))
    return Output(model.final_norm(x), x, layout, captured)


@functools.partial(jax.jit, static_argnames="captures")
def _contrast(model: ViT, images: Array, edits: Edits, ids: Array | None, valid: Array | None, captures: Captures) -> Pair:
    x, rope, layout = _embed(model, images)

    def diverging(q: Array, k: Array, v: Array, hidden: Array | None) -> tuple[Array, dict[str, Array]]:
        mixed, divergence = attend_and_diverge(q, k, v, hidden)
        return mixed, {"divergence": divergence}

    attention = diverging if DIVERGING.intersection(function for _, function in captures) else only_attend

    def step(streams: Array, scanned: tuple[Block, LayerStages, Array]) -> tuple[Array, dict[str, Any]]:
        block, stages, layer = scanned
        place = Place(layer, ids, valid, layout)

        def edit(site: str, both: Array) -> Array:
            return jnp.stack([both[0], editing.apply(stages[site], both[1], place)]) if site in stages else both

        trace = block(streams, rope, edit, attention=attention)
        clean, ablated = (BlockState(jax.tree.map(lambda leaf, i=i: leaf[i], trace), place) for i in range(2))
        return trace.block_output, {name: function(clean, ablated) for name, function in captures}

    # the two streams are one batch through the same kernels, so they differ by the ablation and by no rounding
    streams, captured = jax.lax.scan(step, jnp.stack([x, x]), _scanned(model, edits))
    tokens = model.final_norm(streams)
    return Pair(Output(tokens[0], streams[0], layout), Output(tokens[1], streams[1], layout), captured)


@jax.jit
def _sweep_layers(model: ViT, images: Array, edits: Edits, ids: Array | None, valid: Array | None) -> Output:
    x, rope, layout = _embed(model, images)
    behind = set(edits.stages) <= {"block_output"}

    def clean(x: Array, block: Block) -> tuple[Array, Array]:
        out = block(x, rope).block_output
        return out, out if behind else x

    def block_at(layer: Array) -> Block:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), model.blocks)

    def edited_at(scanned: tuple[Array, LayerStages, Array]) -> Array:
        x, stages, layer = scanned
        place = Place(layer, ids, valid, layout)

        def edit(site: str, stream: Array) -> Array:
            return editing.apply(stages[site], stream, place) if site in stages else stream

        x = edit("block_output", x) if behind else block_at(layer)(x, rope, edit).block_output
        return jax.lax.fori_loop(layer + 1, model.config.depth, lambda later, x: block_at(later)(x, rope).block_output, x)

    _, starts = jax.lax.scan(clean, x, model.blocks)
    last = jax.lax.map(edited_at, (starts, edits.stages, jnp.arange(model.config.depth)))
    return Output(model.final_norm(last), last, layout)


def _embed(model: ViT, images: Array) -> tuple[Array, Rope | None, TokenLayout]:
    grid = model.config.grid(images.shape[-3], images.shape[-2])
    return model.add_prefix(model.embed_patches(images), grid), model.rope(grid), TokenLayout(model.config.registers, *grid)


def _scanned(model: ViT, edits: Edits | None) -> tuple[Block, LayerStages, Array]:
    return model.blocks, {} if edits is None else edits.stages, jnp.arange(model.config.depth)


def _prepare(model: ViT, images: Array, ablation: Ablation | Edits | None, ids: Any, valid: Any) -> Edits | None:
    """Check what can be checked without looking at traced values; lower the ablation."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [batch, height, width, 3], got {tuple(images.shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, got {images.dtype}; use jaxvit.normalise(images, model.config)")
    batch, size = images.shape[0], (images.shape[1], images.shape[2])
    layout = TokenLayout.of(model.config, size)
    for name, given in (("example_ids", ids), ("valid", valid)):
        if given is not None and tuple(given.shape) != (batch,):
            raise ValueError(f"{name} must have one entry per image ({batch}), got shape {tuple(given.shape)}")
    if ablation is None:
        return None
    edits = lower(ablation, model, size) if isinstance(ablation, Ablation) else ablation
    if edits.layout != layout:
        raise ValueError(
            f"these edits are for {edits.layout.registers} registers and a grid of {edits.layout.rows}x{edits.layout.columns} patches, "
            f"the images give {layout.registers} and {layout.rows}x{layout.columns}; lower the ablation for this model and size"
        )
    if edits.addresses_examples and ids is None:
        raise ValueError("noise, shuffle and random patches are drawn per example: pass example_ids, one integer per image")
    if edits.shuffles:
        known = None if valid is None or isinstance(valid, jax.core.Tracer) else int(np.sum(np.asarray(valid)))
        if (batch if known is None else known) < 2:
            raise ValueError(f"shuffle needs at least 2 valid examples in a batch, got {batch if known is None else known}")
    return edits


def _ids(example_ids: Any) -> Array | None:
    return None if example_ids is None else jnp.asarray(example_ids)
