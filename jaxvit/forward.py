"""`forward`, `contrast` and `sweep_layers`: embedding, one `lax.scan` over blocks with their edits and captures, final norm."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvit.ablation import Ablation
from jaxvit.apply import apply
from jaxvit.attention import attention_with_divergence, attention_with_groups
from jaxvit.capture import CAPTURES, CONTRASTS, FUSED_DIVERGENCE, FUSED_GROUPS, BlockState, Capture, CaptureSpec, group_columns, resolve
from jaxvit.lowering import lower
from jaxvit.ops import BlockContext, EditOp, Edits
from jaxvit.tokens import TokenLayout
from jaxvit.vit import Block, Rope, ViT, attend_only

Captures = tuple[tuple[str, Capture], ...]
LayerOps = dict[str, tuple[EditOp, ...]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens", "prenorm", "captured"], meta_fields=["layout"])
@dataclass(frozen=True)
class Output:
    """The result of a run. Leading axes are arbitrary, so that it can be a result of `jax.vmap`.

    Attributes:
        tokens: [..., T, D] after the final norm, in the order CLS, registers, patches.
        prenorm: [..., T, D] output of the last block.
        layout: which of the tokens are CLS, registers and patches.
        captured: the results of each capture, stacked over layers on their first axis.
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
    """A clean and an ablated run of the same images; `captured` holds the results of captures of both, stacked over layers."""

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
    groups: Int[Array, "batch"] | None = None,
) -> Output:
    """Run a model, with tokens replaced by an ablation and activations read out by captures.

    Compiles once per (config, shapes, captures, structure of the edits). Pure: composes with jit, vmap, grad and shardings.

    Args:
        images: normalised pixels (`jaxvit.normalise`), any height and width that are multiples of the patch size.
        ablation: an ablation, or its edits for this model and image size; None runs the program without edits.
        capture: a name or names of `jaxvit.capture.CAPTURES`, or {key: name or function of the `BlockState`}.
        example_ids: one integer per image, from which its random draws are made; required by noise, shuffle and random patches.
        valid: which examples are not padding; padding never donates in a shuffle.
        groups: a number per image; a shuffle exchanges tokens among images of one number, by default in the whole batch.

    Raises:
        ValueError: images, ablation, captures or ids do not fit the model or one another.
    """
    edits = _prepare(model, images, ablation, example_ids, valid, groups)
    output: Output = _forward(model, images, edits, _ids(example_ids), valid, _ids(groups), resolve(capture, CAPTURES))
    return output


def contrast(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits,
    capture: CaptureSpec = (),
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
    groups: Int[Array, "batch"] | None = None,
) -> Pair:
    """Run the clean and the ablated model together in one scan; captures are functions of (clean state, ablated state) of each block.

    Arguments and errors as for `forward`; the named captures are those of `jaxvit.capture.CONTRASTS`.
    """
    edits = _prepare(model, images, ablation, example_ids, valid, groups)
    pair: Pair = _contrast(model, images, edits, _ids(example_ids), valid, _ids(groups), resolve(capture, CONTRASTS))
    return pair


def sweep_layers(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits,
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
    groups: Int[Array, "batch"] | None = None,
) -> Output:
    """Run an ablation at one block at a time, for every block.

    Entry l of `tokens` and `prenorm` [L, B, T, D] is what `forward` gives for the ablation at block l only (`layers=[l]`); where the
    ablation does not act at block l, it is the clean run. The clean run is computed once, and each entry continues it from block l
    (from block l + 1 where only block outputs are edited): about L (L + 1) / 2 blocks instead of L^2. One compiled program serves
    all l; its loops have no reverse-mode gradient. Arguments and errors as for `forward`.
    """
    edits = _prepare(model, images, ablation, example_ids, valid, groups)
    output: Output = _sweep_layers(model, images, edits, _ids(example_ids), valid, _ids(groups))
    return output


@functools.partial(jax.jit, static_argnames="captures")
def _forward(
    model: ViT,
    images: Array,
    edits: Edits | None,
    ids: Array | None,
    valid: Array | None,
    groups: Array | None,
    captures: Captures,
) -> Output:
    x, rope, layout = _embed(model, images)
    columns = group_columns(layout)

    def with_groups(q: Array, k: Array, v: Array, attention_mask: Array | None) -> tuple[Array, dict[str, Array]]:
        values, group_attention = attention_with_groups(q, k, v, columns, attention_mask)
        return values, {"group_attention": group_attention}

    attention = with_groups if FUSED_GROUPS.intersection(function for _, function in captures) else attend_only

    def step(x: Array, scanned: tuple[Block, LayerOps, Array]) -> tuple[Array, dict[str, Any]]:
        block, ops, layer = scanned
        context = BlockContext(layer, ids, valid, groups, layout)

        edit = functools.partial(_edited, ops, context)
        state = BlockState(block(x, rope, edit, attention=attention), context)
        return state.stream_out, {name: function(state) for name, function in captures}

    x, captured = jax.lax.scan(step, x, _scanned(model, edits))
    return Output(model.final_norm(x), x, layout, captured)


@functools.partial(jax.jit, static_argnames="captures")
def _contrast(
    model: ViT, images: Array, edits: Edits, ids: Array | None, valid: Array | None, groups: Array | None, captures: Captures
) -> Pair:
    x, rope, layout = _embed(model, images)

    def with_divergence(q: Array, k: Array, v: Array, attention_mask: Array | None) -> tuple[Array, dict[str, Array]]:
        values, divergence = attention_with_divergence(q, k, v, attention_mask)
        return values, {"divergence": divergence}

    attention = with_divergence if FUSED_DIVERGENCE.intersection(function for _, function in captures) else attend_only

    def step(streams: Array, scanned: tuple[Block, LayerOps, Array]) -> tuple[Array, dict[str, Any]]:
        block, ops, layer = scanned
        context = BlockContext(layer, ids, valid, groups, layout)

        def edit(site: str, pair: Array) -> Array:
            return jnp.stack([pair[0], _edited(ops, context, site, pair[1])]) if site in ops else pair

        trace = block(streams, rope, edit, attention=attention)
        clean, ablated = (BlockState(jax.tree.map(lambda leaf, i=i: leaf[i], trace), context) for i in range(2))
        return trace.block_output, {name: function(clean, ablated) for name, function in captures}

    # Both streams go through the same kernels as one batch: they differ by the ablation alone, not by rounding.
    streams, captured = jax.lax.scan(step, jnp.stack([x, x]), _scanned(model, edits))
    tokens = model.final_norm(streams)
    return Pair(Output(tokens[0], streams[0], layout), Output(tokens[1], streams[1], layout), captured)


@jax.jit
def _sweep_layers(model: ViT, images: Array, edits: Edits, ids: Array | None, valid: Array | None, groups: Array | None) -> Output:
    x, rope, layout = _embed(model, images)
    outputs_only = set(edits.ops) <= {"block_output"}

    def clean(x: Array, block: Block) -> tuple[Array, Array]:
        output = block(x, rope).block_output
        return output, output if outputs_only else x

    def block_at(layer: Array) -> Block:
        block: Block = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), model.blocks)
        return block

    def edited_at(scanned: tuple[Array, LayerOps, Array]) -> Array:
        x, ops, layer = scanned
        context = BlockContext(layer, ids, valid, groups, layout)

        edit = functools.partial(_edited, ops, context)
        x = edit("block_output", x) if outputs_only else block_at(layer)(x, rope, edit).block_output
        last: Array = jax.lax.fori_loop(layer + 1, model.config.depth, lambda later, x: block_at(later)(x, rope).block_output, x)
        return last

    _, starts = jax.lax.scan(clean, x, model.blocks)
    last = jax.lax.map(edited_at, (starts, edits.ops, jnp.arange(model.config.depth)))
    return Output(model.final_norm(last), last, layout)


def _edited(ops: LayerOps, context: BlockContext, site: str, x: Array) -> Array:
    """The tokens at a site after its ops; where it has none, the program has none."""
    return apply(ops[site], x, context, site) if site in ops else x


def _embed(model: ViT, images: Array) -> tuple[Array, Rope | None, TokenLayout]:
    """The input of block 0, the rotary angles, and the token layout."""
    grid = model.config.grid(images.shape[-3], images.shape[-2])
    return model.add_prefix(model.embed_patches(images), grid), model.rope(grid), TokenLayout(model.config.registers, *grid)


def _scanned(model: ViT, edits: Edits | None) -> tuple[Block, LayerOps, Array]:
    """What the scan takes apart along the leading axis: blocks, their ops, their numbers."""
    return model.blocks, {} if edits is None else edits.ops, jnp.arange(model.config.depth)


def _prepare(model: ViT, images: Array, ablation: Ablation | Edits | None, ids: Any, valid: Any, groups: Any) -> Edits | None:
    """The edits of the ablation, after all checks that need no traced values."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [batch, height, width, 3], got {tuple(images.shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, got {images.dtype}; use jaxvit.normalise(images, model.config)")
    batch, size = images.shape[0], (images.shape[1], images.shape[2])
    layout = TokenLayout.of(model.config, size)
    for name, array in (("example_ids", ids), ("valid", valid), ("groups", groups)):
        if array is not None and tuple(array.shape) != (batch,):
            raise ValueError(f"{name} must have one entry per image ({batch}), got shape {tuple(array.shape)}")
    if ablation is None:
        return None
    edits = lower(ablation, model, size) if isinstance(ablation, Ablation) else ablation
    if edits.layout != layout:
        raise ValueError(
            f"these edits are for {edits.layout.registers} registers and a grid of {edits.layout.rows}x{edits.layout.columns} patches, "
            f"the images give {layout.registers} and {layout.rows}x{layout.columns}; lower the ablation for this model and size"
        )
    if edits.needs_example_ids and ids is None:
        raise ValueError("noise, shuffle and random patches are drawn per example: pass example_ids, one integer per image")
    if edits.shuffles:
        _check_donors(batch, valid, groups)
    return edits


def _check_donors(batch: int, valid: Any, groups: Any) -> None:
    """Refuse a shuffle in which an example has nobody to take tokens from, as far as that can be known: traced values cannot be counted."""
    known = not any(isinstance(array, jax.core.Tracer) for array in (valid, groups))
    present = np.asarray(valid, bool) if known and valid is not None else np.ones(batch, bool)
    numbers = np.asarray(groups)[present] if known and groups is not None else np.zeros(present.sum(), int)
    names, counts = np.unique(numbers, return_counts=True)
    if counts.min(initial=batch) < 2 or not len(counts):
        count, where = (counts.min(), f" in group {names[counts.argmin()]}" if groups is not None else "") if len(counts) else (0, "")
        raise ValueError(f"shuffle needs at least 2 valid examples in a batch, and in each of its groups, got {count}{where}")


def _ids(example_ids: Any) -> Array | None:
    return None if example_ids is None else jnp.asarray(example_ids)
