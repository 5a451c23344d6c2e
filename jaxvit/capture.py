"""What to read out of every block while it runs. A capture is a pure function of the block's state; it runs inside the
scan, so that only what it returns is kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvit.attention import attend_and_diverge, attend_and_share, probabilities
from jaxvit.edits import Place
from jaxvit.geometry import unit
from jaxvit.tokens import TokenLayout
from jaxvit.vit import BlockTrace


@functools.partial(jax.tree_util.register_dataclass, data_fields=["trace", "place"], meta_fields=[])
@dataclass(frozen=True)
class BlockState:
    """What a capture function sees of one block.

    Shapes: streams [B, T, D]; q, k (after RoPE) and v [B, T, heads, head_width].
    """

    trace: BlockTrace
    place: Place

    @property
    def layout(self) -> TokenLayout:
        return self.place.layout

    @property
    def layer(self) -> Array:
        """Number of the block, from 0."""
        return self.place.layer

    @property
    def valid(self) -> Array | None:
        """[B] which examples are no padding, or None if all are."""
        return self.place.valid

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
        return self.trace.q

    @property
    def k(self) -> Float[Array, "batch tokens heads head_width"]:
        return self.trace.k

    @property
    def v(self) -> Float[Array, "batch tokens heads head_width"]:
        return self.trace.v

    @property
    def attention(self) -> Float[Array, "batch heads tokens tokens"]:
        """Softmax attention, float32."""
        return probabilities(self.q, self.k)

    @property
    def shares(self) -> Float[Array, "batch tokens heads groups"]:
        """How much of every query's attention the keys of each token group (`TokenLayout.groups`) get; every row sums to 1.

        The block's own where it was asked for them, as it is for `attention_flow`; else attention is computed once more.
        """
        if "shares" in self.trace.read:
            return self.trace.read["shares"]
        return attend_and_share(self.q, self.k, self.v, group_columns(self.layout))[1]


Capture = Callable[..., Any]


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
    """Registers of the stream leaving the block; empty for a model without."""
    return state.stream_out[:, 1 : state.layout.prefix]


def patch_mean(state: BlockState) -> Float[Array, "batch width"]:
    """Mean of the patch tokens (never registers) of the stream leaving the block."""
    return state.stream_out[:, state.layout.prefix :].mean(axis=1)


def attention(state: BlockState) -> Float[Array, "batch heads tokens tokens"]:
    """Full attention maps: large, and therefore only by name."""
    return state.attention


def attention_flow(state: BlockState) -> Float[Array, "batch heads groups groups"]:
    """Attention by token group (`TokenLayout.groups`): mean over a source's queries, summed over a target's keys.

    Every row sums to 1. Groups are CLS, each register, all patches (Parodi & Segado 2026, "attention flow").
    """
    group_TR = group_columns(state.layout)
    return jnp.einsum("bths,tr->bhrs", state.shares, group_TR / group_TR.sum(axis=0), precision=jax.lax.Precision.HIGHEST)


def attention_divergence(clean: BlockState, ablated: BlockState) -> Float[Array, "batch heads"]:
    """Jensen-Shannon divergence (base 2, in 0..1) between clean and ablated attention, per head, averaged over queries.

    A capture for `contrast`: what the block found on its way where it was asked for, else attention is computed once more.
    """
    if "divergence" in clean.trace.read:
        return clean.trace.read["divergence"]
    streams = (jnp.stack([getattr(state, name) for state in (clean, ablated)]) for name in ("q", "k", "v"))
    return attend_and_diverge(*streams)[1][0]


def patch_cosine(clean: BlockState, ablated: BlockState) -> Float[Array, "batch patches"]:
    """Cosine of every patch leaving the block with the same patch of the clean run; 0 where either is zero. For `contrast`."""
    first, second = (unit(state.stream_out[:, state.layout.prefix :]) for state in (clean, ablated))
    return (first * second).sum(axis=-1)


def patch_norm_ratio(clean: BlockState, ablated: BlockState) -> Float[Array, "batch patches"]:
    """Length of every patch leaving the block as a share of its length in the clean run. For `contrast`."""
    first, second = (jnp.linalg.norm(state.stream_out[:, state.layout.prefix :].astype(jnp.float32), axis=-1) for state in (clean, ablated))
    return second / jnp.where(first > 0, first, 1)


CAPTURES: dict[str, Capture] = {f.__name__: f for f in (block_output, cls, registers, patch_mean, attention, attention_flow)}
CONTRASTS: dict[str, Capture] = {f.__name__: f for f in (attention_divergence, patch_cosine, patch_norm_ratio)}

SHARING: frozenset[Capture] = frozenset({attention_flow})
"""Captures for which a block keeps the shares of attention that token groups get; others that read `shares` compute them anew."""
DIVERGING: frozenset[Capture] = frozenset({attention_divergence})
"""Captures for which the blocks of a `contrast` keep the divergence of attention."""

CaptureSpec = str | Sequence[str] | Mapping[str, "str | Capture"]


def resolve(capture: CaptureSpec, known: Mapping[str, Capture]) -> tuple[tuple[str, Capture], ...]:
    """Named capture functions, hashable, in order.

    Raises:
        ValueError: a name is unknown.
    """
    names = [capture] if isinstance(capture, str) else capture
    pairs = names.items() if isinstance(names, Mapping) else [(name, name) for name in names]
    resolved = []
    for name, function in pairs:
        if isinstance(function, str):
            if function not in known:
                raise ValueError(f'unknown capture "{function}"; known are {", ".join(known)}, or pass {{name: function}}')
            function = known[function]
        resolved.append((name, function))
    return tuple(resolved)
