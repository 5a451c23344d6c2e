"""Captures: pure functions of a block's state, called inside the scan over blocks, so that only their results are kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvit.attention import attention_with_divergence, attention_with_groups, probabilities
from jaxvit.calls import described
from jaxvit.geometry import unit
from jaxvit.ops import BlockContext
from jaxvit.sites import SITES
from jaxvit.tokens import TokenLayout
from jaxvit.vit import BlockTrace


@functools.partial(jax.tree_util.register_dataclass, data_fields=["trace", "context"], meta_fields=[])
@dataclass(frozen=True)
class BlockState:
    """The argument of a capture function: one block's intermediate results.

    `trace` has every site of `jaxvit.sites` by its name. Shapes: streams [B, T, D]; q, k (after RoPE) and v [B, T, heads, head_width].
    """

    trace: BlockTrace
    context: BlockContext

    def of_stream(self, number: int) -> BlockState:
        """The state of one of several streams that lead the axes of the trace."""
        return BlockState(jax.tree.map(lambda leaf: leaf[number], self.trace), self.context)

    @property
    def layout(self) -> TokenLayout:
        return self.context.layout

    @property
    def layer(self) -> Array:
        """The number of the block, from 0."""
        return self.context.layer

    @property
    def valid(self) -> Array | None:
        """Which examples are not padding, [B], or None if none is padding."""
        return self.context.valid

    @property
    def stream_in(self) -> Float[Array, "batch tokens width"]:
        """The residual stream entering the block, after edits at "block_input"."""
        return self.trace.block_input

    @property
    def stream_out(self) -> Float[Array, "batch tokens width"]:
        """The residual stream leaving the block, after edits at "block_output"."""
        return self.trace.block_output

    @property
    def q(self) -> Float[Array, "batch tokens heads head_width"]:
        return self.trace.query

    @property
    def k(self) -> Float[Array, "batch tokens heads head_width"]:
        return self.trace.key

    @property
    def v(self) -> Float[Array, "batch tokens heads head_width"]:
        return self.trace.value

    @property
    def attention(self) -> Float[Array, "batch heads tokens tokens"]:
        """The attention map, float32, after cuts: where they lose weight, rows sum to less than 1."""
        return probabilities(self.q, self.k, cuts=self.trace.cuts)

    @property
    def group_attention(self) -> Float[Array, "batch tokens heads groups"]:
        """Every query's attention summed over the keys of each token group (`TokenLayout.groups`); rows sum to 1, to less where
        cuts lose weight.

        Taken from the block's own attention if that computed it (`FUSED_GROUPS`), otherwise attention is computed a second time.
        """
        if "group_attention" in self.trace.fused:
            return self.trace.fused["group_attention"]
        return attention_with_groups(self.q, self.k, self.v, group_columns(self.layout), cuts=self.trace.cuts)[1]


Capture = Callable[..., Any]
"""A function of a `BlockState`, or for `contrast` of the clean and the ablated one, that returns arrays."""


def group_columns(layout: TokenLayout) -> Float[Array, "tokens groups"]:
    """1 where a token belongs to a group of `TokenLayout.groups`, else 0."""
    return jax.nn.one_hot(layout.group_of(), len(layout.groups))


def block_output(state: BlockState) -> Float[Array, "batch tokens width"]:
    """The stream leaving the block, after its edits."""
    return state.stream_out


def cls(state: BlockState) -> Float[Array, "batch width"]:
    """CLS of the stream leaving the block."""
    return state.stream_out[:, 0]


def registers(state: BlockState) -> Float[Array, "batch registers width"]:
    """Registers of the stream leaving the block; empty for a model without registers."""
    return state.stream_out[:, 1 : state.layout.prefix]


def patch_mean(state: BlockState) -> Float[Array, "batch width"]:
    """Mean over the patch tokens (without registers) of the stream leaving the block."""
    return state.stream_out[:, state.layout.prefix :].mean(axis=1)


def attention(state: BlockState) -> Float[Array, "batch heads tokens tokens"]:
    """The full attention maps. They are large: no other capture keeps them."""
    return state.attention


def attention_flow(state: BlockState) -> Float[Array, "batch heads groups groups"]:
    """Attention between token groups (`TokenLayout.groups`): mean over the queries of a source, summed over the keys of a target.

    Every row sums to 1. Groups are CLS, each register, all patches (Parodi & Segado 2026, "attention flow"). It is of one block: neither
    attention rollout (`jaxvit.rollout`) nor the attention flow of Abnar & Zuidema 2020, a maximum flow through the graph of all blocks.
    """
    columns = group_columns(state.layout)
    mean_of_queries = columns / columns.sum(axis=0)
    flow: Array = jnp.einsum("bths,tr->bhrs", state.group_attention, mean_of_queries, precision=jax.lax.Precision.HIGHEST)
    return flow


def attention_divergence(clean: BlockState, ablated: BlockState) -> Float[Array, "batch heads"]:
    """Jensen-Shannon divergence (base 2, in 0..1) between clean and ablated attention, per head, averaged over queries.

    The queries of all tokens count alike, also those of tokens that the ablation overwrites: where many are, a good part of the mean
    is their own change.

    Taken from the blocks' own attention if that computed it (`FUSED_DIVERGENCE`), otherwise attention is computed a second time.
    """
    if "divergence" in clean.trace.fused:
        return clean.trace.fused["divergence"]
    q, k, v = (jnp.stack(pair) for pair in ((clean.q, ablated.q), (clean.k, ablated.k), (clean.v, ablated.v)))
    _, divergence = attention_with_divergence(
        q, k, v, cuts=jax.tree.map(lambda *pair: jnp.stack(pair), clean.trace.cuts, ablated.trace.cuts)
    )
    return divergence[0]


def patch_cosine(clean: BlockState, ablated: BlockState) -> Float[Array, "batch patches"]:
    """Cosine similarity of every patch leaving the block with the same patch of the clean run; 0 where either is zero."""
    clean_unit, ablated_unit = (unit(state.stream_out[:, state.layout.prefix :]) for state in (clean, ablated))
    cosine: Array = (clean_unit * ablated_unit).sum(axis=-1)
    return cosine


def patch_norm_ratio(clean: BlockState, ablated: BlockState) -> Float[Array, "batch patches"]:
    """Norm of every patch leaving the block, divided by its norm in the clean run."""
    patches = (state.stream_out[:, state.layout.prefix :].astype(jnp.float32) for state in (clean, ablated))
    clean_norm, ablated_norm = (jnp.linalg.norm(stream, axis=-1) for stream in patches)
    ratio: Array = ablated_norm / jnp.where(clean_norm > 0, clean_norm, 1)
    return ratio


CAPTURES: dict[str, Capture] = {
    "block_output": block_output,
    "cls": cls,
    "registers": registers,
    "patch_mean": patch_mean,
    "attention": attention,
    "attention_flow": attention_flow,
}
"""The captures that `forward` knows by name."""

CONTRASTS: dict[str, Capture] = {
    "attention_divergence": attention_divergence,
    "patch_cosine": patch_cosine,
    "patch_norm_ratio": patch_norm_ratio,
}
"""The captures that `contrast` knows by name: functions of the clean and the ablated state."""

FUSED_GROUPS: frozenset[Capture] = frozenset({attention_flow})
"""Captures for which blocks compute `group_attention` together with attention; for others that read it, it is computed separately."""

FUSED_DIVERGENCE: frozenset[Capture] = frozenset({attention_divergence})
"""Captures for which the blocks of a `contrast` compute the divergence together with attention."""

CaptureSpec = str | Capture | Sequence["str | Capture"] | Mapping[str, "str | Capture"]
"""A name or function, several of these, or {key of the result: name or function}; the key of a bare function is its `__name__`."""


def resolve(capture: CaptureSpec, known: Mapping[str, Capture]) -> tuple[tuple[str, Capture], ...]:
    """Pairs of a result's key and its capture function, in order, hashable.

    Args:
        known: the functions that `capture` may name.

    Raises:
        ValueError: a name is unknown, two results would have one key, or it is anything else.
    """
    several = [capture] if isinstance(capture, str) or callable(capture) else capture
    if not isinstance(several, Iterable):
        raise ValueError(f"capture is {described(capture)}; pass a name, a function, a list of these, or {{name: function}}")
    pairs = several.items() if isinstance(several, Mapping) else [(_key(entry), entry) for entry in several]
    resolved: dict[str, Capture] = {}
    for key, function in pairs:
        if isinstance(function, str):
            if function not in known:
                raise ValueError(f'unknown capture "{function}"; known are {", ".join(known)}, or pass {{name: function}}{_hint(function)}')
            function = known[function]
        if not callable(function):
            raise ValueError(f'capture "{key}" is {described(function)}; pass the name of one, or a function of the block\'s state')
        if key in resolved:
            raise ValueError(f'two captures are called "{key}"; name each: {{name: function}}')
        resolved[key] = function
    return tuple(resolved.items())


def _key(capture: Any) -> str:
    """The key of a result: the name of a capture or of a function."""
    return capture if isinstance(capture, str) else str(getattr(capture, "__name__", type(capture).__name__))


def _hint(name: str) -> str:
    """Where a name that is no capture belongs."""
    if name in SITES:
        return f", here lambda state: state.trace.{name}"
    return "".join(f"; {function} has it" for function, known in (("forward", CAPTURES), ("contrast", CONTRASTS)) if name in known)
