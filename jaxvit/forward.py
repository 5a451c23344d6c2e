"""`forward`, `contrast` and `sweep_layers`: embedding, one `lax.scan` over blocks with their edits and captures, final norm."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvit.ablation import Ablation
from jaxvit.attention import attention_with_divergence, attention_with_groups
from jaxvit.calls import checked_run
from jaxvit.capture import CAPTURES, CONTRASTS, FUSED_DIVERGENCE, FUSED_GROUPS, Capture, CaptureSpec, group_columns, resolve
from jaxvit.cuts import Cuts
from jaxvit.given import Given
from jaxvit.ops import Edits
from jaxvit.printing import captured_in_words, layout_in_words, shape_in_words
from jaxvit.run import LayerEdits, Run, begin, by_layer, prepare
from jaxvit.sharding import keeping_shares
from jaxvit.tokens import TokenLayout
from jaxvit.vit import Block, ViT, attend_only

Captures = tuple[tuple[str, Capture], ...]


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

    def __repr__(self) -> str:
        return f"Output(tokens {shape_in_words(self.tokens)}: {layout_in_words(self.layout)}{captured_in_words(self.captured)})"

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

    def __repr__(self) -> str:
        return f"Pair(clean {self.clean!r}, ablated {self.ablated!r}{captured_in_words(self.captured)})"


@checked_run
def forward(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits | None = None,
    capture: CaptureSpec = (),
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
    groups: Int[Array, "batch"] | None = None,
    given: Given | None = None,
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
        given: the arrays that the ablation names (`jaxvit.patch`, `jaxvit.Positions`), each led by the batch; by the blocks and the
            batch in `jaxvit.per_layer(array)`.

    Raises:
        ValueError: images, ablation, captures, ids or given arrays do not fit the model or one another.
    """
    edits, arrays = prepare(model, images.shape, ablation, example_ids, valid, groups, given)
    output: Output = _forward(model, images, edits, _ids(example_ids), valid, _ids(groups), resolve(capture, CAPTURES), arrays)
    return output


@checked_run
def contrast(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits,
    capture: CaptureSpec = (),
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
    groups: Int[Array, "batch"] | None = None,
    given: Given | None = None,
) -> Pair:
    """Run the clean and the ablated model together in one scan; captures are functions of (clean state, ablated state) of each block.

    Arguments and errors as for `forward`; the named captures are those of `jaxvit.capture.CONTRASTS`. Here `jaxvit.patch(tokens, "clean")`
    takes the clean stream's tokens: at "query" and "key" of all tokens it holds attention while the streams differ.
    """
    edits, arrays = prepare(model, images.shape, ablation, example_ids, valid, groups, given, has_clean=True)
    pair: Pair = _contrast(model, images, edits, _ids(example_ids), valid, _ids(groups), resolve(capture, CONTRASTS), arrays)
    return pair


@checked_run
def sweep_layers(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    ablation: Ablation | Edits,
    example_ids: Int[Array, "batch"] | None = None,
    valid: Bool[Array, "batch"] | None = None,
    groups: Int[Array, "batch"] | None = None,
    given: Given | None = None,
) -> Output:
    """Run an ablation at one block at a time, for every block.

    Entry l of `tokens` and `prenorm` [L, B, T, D] is what `forward` gives for the ablation at block l only (`layers=[l]`); where the
    ablation does not act at block l, it is the clean run. The clean run is computed once, and each entry continues it from block l
    (from block l + 1 where only block outputs are edited): about L (L + 1) / 2 blocks instead of L^2. One compiled program serves
    all l; its loops have no reverse-mode gradient. Arguments and errors as for `forward`.
    """
    edits, arrays = prepare(model, images.shape, ablation, example_ids, valid, groups, given)
    output: Output = _sweep_layers(model, images, edits, _ids(example_ids), valid, _ids(groups), arrays)
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
    given: dict[str, Any] | None = None,
) -> Output:
    x, run = begin(model, images, ids, valid, groups, given)
    return through(model, x, run, edits, given, captures)


def through(
    model: ViT,
    x: Float[Array, "batch tokens width"],
    run: Run,
    edits: Edits | None,
    given: dict[str, Any] | None,
    captures: Captures,
    start: int = 0,
    keep_inputs_only: bool = False,
) -> Output:
    """The residual stream through the blocks from `start` on with their edits, and the final norm.

    Args:
        keep_inputs_only: a gradient computes what happens inside a block again, rather than keep it.
    """
    columns = group_columns(run.layout)

    def with_groups(q: Array, k: Array, v: Array, attention_mask: Array | None, cuts: Cuts) -> tuple[Array, dict[str, Array]]:
        values, group_attention = attention_with_groups(q, k, v, columns, attention_mask, cuts)
        return values, {"group_attention": group_attention}

    attention = with_groups if FUSED_GROUPS.intersection(function for _, function in captures) else attend_only

    def step(x: Array, scanned: tuple[Block, LayerEdits]) -> tuple[Array, dict[str, Any]]:
        state = run.step(x, *scanned, attention)
        return state.stream_out, {name: function(state) for name, function in captures}

    blocks = model.blocks, by_layer(model, edits, given)
    if start:
        blocks = jax.tree.map(lambda leaf: leaf[start:], blocks)
    step = jax.checkpoint(step) if keep_inputs_only else keeping_shares(step, run.weight_shards)
    x, captured = jax.lax.scan(step, x, blocks)
    return Output(model.final_norm(x), x, run.layout, captured)


@functools.partial(jax.jit, static_argnames="captures")
def _contrast(
    model: ViT,
    images: Array,
    edits: Edits,
    ids: Array | None,
    valid: Array | None,
    groups: Array | None,
    captures: Captures,
    given: dict[str, Any] | None = None,
) -> Pair:
    x, run = begin(model, images, ids, valid, groups, given)

    def with_divergence(q: Array, k: Array, v: Array, attention_mask: Array | None, cuts: Cuts) -> tuple[Array, dict[str, Array]]:
        values, divergence = attention_with_divergence(q, k, v, attention_mask, cuts)
        return values, {"divergence": divergence}

    attention = with_divergence if FUSED_DIVERGENCE.intersection(function for _, function in captures) else attend_only

    def step(streams: Array, scanned: tuple[Block, LayerEdits]) -> tuple[Array, dict[str, Any]]:
        both = run.step(streams, *scanned, attention, clean_first=True)
        clean, ablated = (both.of_stream(i) for i in range(2))
        return both.stream_out, {name: function(clean, ablated) for name, function in captures}

    # Both streams go through the same kernels as one batch: they differ by the ablation alone, not by rounding.
    step = keeping_shares(step, run.weight_shards)
    streams, captured = jax.lax.scan(step, jnp.stack([x, x]), (model.blocks, by_layer(model, edits, given)))
    tokens = model.final_norm(streams)
    return Pair(Output(tokens[0], streams[0], run.layout), Output(tokens[1], streams[1], run.layout), captured)


@jax.jit
def _sweep_layers(
    model: ViT,
    images: Array,
    edits: Edits,
    ids: Array | None,
    valid: Array | None,
    groups: Array | None,
    given: dict[str, Any] | None = None,
) -> Output:
    x, run = begin(model, images, ids, valid, groups, given)
    outputs_only = set(edits.ops) <= {"block_output"} and not edits.cuts

    def clean(x: Array, block: Block) -> tuple[Array, Array]:
        output = run.step(x, block).stream_out
        return output, output if outputs_only else x

    def block_at(number: Array) -> Block:
        block: Block = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), model.blocks)
        return block

    def edited_at(start: tuple[Array, LayerEdits]) -> Array:
        x, at = start
        x = run.edited("block_output", x, at) if outputs_only else run.step(x, block_at(at.layer), at).stream_out
        last: Array = jax.lax.fori_loop(at.layer + 1, model.config.depth, lambda later, x: run.step(x, block_at(later)).stream_out, x)
        return last

    _, starts = jax.lax.scan(clean, x, model.blocks)
    last = jax.lax.map(edited_at, (starts, by_layer(model, edits, given)))
    return Output(model.final_norm(last), last, run.layout)


def _ids(example_ids: Any) -> Array | None:
    return None if example_ids is None else jnp.asarray(example_ids)
