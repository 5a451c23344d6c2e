"""Ablations as arrays: `Edits`, a pytree whose leaves have a leading layer axis, made by `lowering` and applied by `apply`.

Values stand in a short table per layer, and each token has an index into it: memory grows with the number of tokens, not with
tokens x width, and all constant-valued conditions share one compiled program.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Bool, Int

from jaxvit.printing import layout_in_words
from jaxvit.tokens import TokenLayout


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "seed", "draw", "patches", "patch_seed", "index", "values", "deviations", "channels"],
    meta_fields=["kind"],
)
@dataclass(frozen=True)
class EditOp:
    """One replacement as arrays (NumPy while lowering) with a leading layer axis; a field that is None is absent from the program.

    Attributes:
        kind: what a token becomes: "fixed" (a row of `values`), "noise" (that row plus a random draw) or "shuffle" (the same token
            of another example of the group).
        mask: [L, T] 1 where a token is replaced.
        seed: [L] of the draws of noise and shuffle.
        draw: [L] number of a shuffle's draw, which is folded into its seed: that of the layer, or one for all.
        patches, patch_seed: [L] number and seed of randomly drawn patches, to which the mask is restricted.
        index: [L, T] row of the tables for each token.
        values, deviations: [L, rows, C], tables of what tokens become.
        channels: [L, rows, C] 1 where a token that has this row is replaced; None where all channels are. A mask [L, T, C] would take
            540 MB for a ViT-L at 518 px; this takes as much as the values.
    """

    kind: Literal["fixed", "noise", "shuffle"]
    mask: Any
    seed: Any = None
    draw: Any = None
    patches: Any = None
    patch_seed: Any = None
    index: Any = None
    values: Any = None
    deviations: Any = None
    channels: Any = None

    @property
    def signature(self) -> tuple[str, bool]:
        """Kind, and whether patches are drawn: ops with equal signatures have the same fields."""
        return self.kind, self.patches is not None


class Drawn(NamedTuple):
    """Numbers [L, F] and seeds [L, F] of the random patches that the factors of a cut are restricted to; all patches: no restriction."""

    patches: Any
    seed: Any


class CutOp(NamedTuple):
    """Attention cuts that act together, as arrays (NumPy while lowering) with a leading layer axis. F counts the cuts.

    What is cut of the weight of query t on key s in head h is 1 - prod_f (1 - queries[t, f] keys[h, s, f]).

    Attributes:
        queries: [L, T, F] 1 where a query is kept from reading.
        keys: [L, H, S, F] 1 where a key is not read, by head.
        receivers: [L, S] shares of the cut weight that keys receive, or 0.
        renormalise: [L] 1 where rows keep their sum by scaling.
        spares: [L, F] 1 where a query may read itself, or None where none may.
        drawn_queries, drawn_keys: random patches, or None.
    """

    queries: Any
    keys: Any
    receivers: Any
    renormalise: Any
    spares: Any = None
    drawn_queries: Drawn | None = None
    drawn_keys: Drawn | None = None

    @property
    def draws(self) -> bool:
        """Whether patches are drawn by example id."""
        return self.drawn_queries is not None or self.drawn_keys is not None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["ops", "cuts"], meta_fields=["layout"])
@dataclass(frozen=True)
class Edits:
    """An ablation lowered for one model and image size: the ops of each site and the cuts of attention, in the order in which they
    apply."""

    ops: dict[str, tuple[EditOp, ...]]
    layout: TokenLayout
    cuts: tuple[CutOp, ...] = ()

    def __repr__(self) -> str:
        """Kinds of ops by site, and how many conditions are stacked."""
        parts = [f"{count} conditions" for count in self.conditions]
        parts += [f"{', '.join(op.kind for op in ops)} at {site}" for site, ops in self.ops.items()] + ["cuts"] * bool(self.cuts)
        return f"Edits({'; '.join(parts) or 'nothing'}: {layout_in_words(self.layout)})"

    @property
    def conditions(self) -> tuple[int, ...]:
        """The axes in front of the layers' own: the number of conditions that are stacked (`jaxvit.stack`), or none."""
        axes = [getattr(op.mask, "shape", ())[:-2] for ops in self.ops.values() for op in ops]
        return max(axes + [getattr(cut.renormalise, "shape", ())[:-1] for cut in self.cuts], default=())

    @property
    def shuffles(self) -> bool:
        """Whether any op replaces tokens by those of another example."""
        return any(op.kind == "shuffle" for ops in self.ops.values() for op in ops)

    @property
    def needs_example_ids(self) -> bool:
        """Whether any op draws by example id: noise, shuffle and random patches do."""
        drawn = any(op.kind != "fixed" or op.patches is not None for ops in self.ops.values() for op in ops)
        return drawn or any(cut.draws for cut in self.cuts)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["layer", "example_ids", "valid", "groups"], meta_fields=["layout"])
@dataclass(frozen=True)
class BlockContext:
    """The block and the examples that ops are applied to."""

    layer: Int[Array, ""]
    example_ids: Int[Array, "batch"] | None
    valid: Bool[Array, "batch"] | None
    groups: Int[Array, "batch"] | None
    layout: TokenLayout
