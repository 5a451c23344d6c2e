"""Ablations as arrays: `Edits`, a pytree whose leaves have a leading layer axis, made by `lowering` and applied by `apply`.

Arrays of a call (`forward(..., given=...)`) are no part of it: ops hold their names.

Values stand in a short table per layer, and each token has an index into it: memory grows with the number of tokens, not with
tokens x width, and all constant-valued conditions share one compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxvit.printing import layout_in_words
from jaxvit.specs import Positions
from jaxvit.tokens import TokenLayout

OpKind = Literal["fixed", "noise", "shuffle", "given", "clean", "add", "scale", "swap", "custom"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "mask",
        "strength",
        "seed",
        "draw",
        "patches",
        "patch_seed",
        "index",
        "values",
        "deviations",
        "channels",
        "row",
        "partner",
        "active",
        "arrays",
    ],
    meta_fields=["kind", "given", "count", "positions", "own_norm", "function"],
)
@dataclass(frozen=True)
class EditOp:
    """One replacement as arrays (NumPy while lowering) with a leading layer axis; a field that is None is absent from the program.

    Attributes:
        kind: what a token becomes: "fixed" (a row of `values`), "noise" (that row plus a random draw) or "shuffle" (the same token
            of another example of the group), "given" (a row of an array of the call), "clean" (itself in the clean stream of `contrast`),
            "add" (itself and a row), "scale" (itself times a row), "swap" (another token of the example) or "custom" (what a
            function makes of it).
        mask: [L, T] 1 where a token is replaced.
        strength: [L, B, T] or, where heads are apart, [L, B, T, H], which the mask is multiplied by in each example; None for 1.
        seed: [L] of the draws of noise and shuffle.
        draw: [L] number of a shuffle's draw, which is folded into its seed: that of the layer, or one for all.
        patches, patch_seed: [L] number and seed of randomly drawn patches, to which the mask is restricted.
        index: [L, T] row of the tables for each token.
        values, deviations: [L, rows, C], tables of what tokens become.
        channels: [L, rows, C] 1 where a token that has this row is replaced; None where all channels are. A mask [L, T, C] would take
            540 MB for a ViT-L at 518 px; this takes as much as the values.
        row: [L, T] row of the given array for each token, where no `positions` say it.
        partner: [L, T] the token that each becomes, in a swap.
        active: [L] whether a function runs at all.
        arrays: [L, ...] the function's, by name.
        function: (x, context, arrays) -> x, of a custom op.
        given, count: name of the array of the call, and its number of tokens, None where that is the number of `positions`.
        positions: which tokens of each example the mask is restricted to, by the name of an array of the call.
        own_norm: whether what a token becomes has the norm of what it was.
    """

    kind: OpKind
    mask: Any
    seed: Any = None
    draw: Any = None
    patches: Any = None
    patch_seed: Any = None
    index: Any = None
    values: Any = None
    deviations: Any = None
    channels: Any = None
    row: Any = None
    partner: Any = None
    active: Any = None
    strength: Any = None
    arrays: Any = None
    given: str | None = None
    count: int | None = None
    positions: Positions | None = None
    own_norm: bool = False
    function: Callable[..., Any] | None = None

    @property
    def signature(self) -> tuple[Hashable, ...]:
        """What ops must have in common to stand for one another in a program: kind, whether patches are drawn, what is read
        of a call, the function."""
        shapes = None if self.arrays is None else tuple((name, array.shape) for name, array in sorted(self.arrays.items()))
        return self.kind, self.patches is not None, self.given, self.count, self.positions, self.own_norm, self.function, shapes

    @property
    def merges(self) -> bool:
        """Whether the op and another one like it can be one: what it writes depends on its tables alone."""
        return self.kind == "fixed" and self.patches is None and self.positions is None and not self.own_norm

    @property
    def is_plain(self) -> bool:
        """Whether whole tokens of the stream are edited by the bare expression, as when there were no other ops: nothing is read of a
        call, and what a token becomes does not depend on the token."""
        return self.kind in ("fixed", "noise", "shuffle") and self.positions is None and not self.own_norm

    @property
    def overwrites(self) -> bool:
        """Whether nothing of a token's own is left in what it becomes."""
        return self.kind not in ("add", "scale", "custom")

    @property
    def draws(self) -> bool:
        """Whether the op draws by example id."""
        return self.kind in ("noise", "shuffle") or self.patches is not None


class Drawn(NamedTuple):
    """Numbers [L, F] and seeds [L, F] of the random patches that the factors of a cut are restricted to; all patches: no restriction."""

    patches: Any
    seed: Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["queries", "keys", "receivers", "renormalise", "spares", "drawn_queries", "drawn_keys", "strength"],
    meta_fields=["positions"],
)
@dataclass(frozen=True)
class CutOp:
    """Attention cuts that act together, as arrays (NumPy while lowering) with a leading layer axis. F counts the cuts.

    What is cut of the weight of query t on key s in head h is 1 - prod_f (1 - queries[t, f] keys[h, s, f]).

    Attributes:
        queries: [L, T, F] 1 where a query is kept from reading.
        keys: [L, H, S, F] 1 where a key is not read, by head.
        receivers: [L, S] shares of the cut weight that keys receive, or 0.
        renormalise: [L] 1 where rows keep their sum by scaling.
        spares: [L, F] 1 where a query may read itself, or None where none may.
        drawn_queries, drawn_keys: random patches, or None.
        strength: [L, B, T] or [L, B, T, H], which the queries are multiplied by in each example, and head; None for 1.
        positions: which tokens of each example queries and keys are restricted to, by the names of arrays of the call.
    """

    queries: Any
    keys: Any
    receivers: Any
    renormalise: Any
    spares: Any = None
    drawn_queries: Drawn | None = None
    drawn_keys: Drawn | None = None
    strength: Any = None
    positions: tuple[Positions | None, Positions | None] = (None, None)

    @property
    def signature(self) -> Hashable:
        """What cuts must have in common to stand for one another in a program."""
        return self.positions

    @property
    def is_known(self) -> bool:
        """Whether its tokens are the same in every example."""
        return not self.draws and self.positions == (None, None)

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
    def masks(self) -> dict[str, tuple[Array, ...]]:
        """How far each edit acts, 0 to 1: [L, T] for those of each site, and under "attention" [L, T, F] for the queries of cuts.

        They are 0 or 1 as lowered. Change them by `with_masks` or `scaled`, differentiate through that; values between mix what a token
        is with what it becomes.
        """
        masks = {site: tuple(op.mask for op in ops) for site, ops in self.ops.items()}
        return masks | ({"attention": tuple(cut.queries for cut in self.cuts)} if self.cuts else {})

    def with_masks(self, masks: Mapping[str, Sequence[Array]]) -> Edits:
        """The edits with other `masks`, as many as there are.

        Raises:
            ValueError: a site or an edit lacks its mask, or there are too many.
        """
        counts, own = ({place: len(entries) for place, entries in each.items()} for each in (masks, self.masks))
        if counts != own:
            raise ValueError(f"these edits have masks {own}, got {counts}; pass as many, in the form of Edits.masks")
        ops = {
            site: tuple(dataclasses.replace(op, mask=mask) for op, mask in zip(ops, masks[site], strict=True))
            for site, ops in self.ops.items()
        }
        cuts = tuple(dataclasses.replace(cut, queries=mask) for cut, mask in zip(self.cuts, masks.get("attention", ()), strict=True))
        return dataclasses.replace(self, ops=ops, cuts=cuts)

    def scaled(self, strength: float | Array) -> Edits:
        """The edits with all masks times a number: half an ablation is `scaled(0.5)`."""
        return self.with_masks({place: tuple(mask * strength for mask in masks) for place, masks in self.masks.items()})

    def with_strengths(self, strengths: Float[Array, "layers batch tokens *heads"]) -> Edits:
        """The edits with masks that are multiplied by strengths of every example, and head; in a cut those of the query."""
        ops = {site: tuple(dataclasses.replace(op, strength=strengths) for op in ops) for site, ops in self.ops.items()}
        return dataclasses.replace(self, ops=ops, cuts=tuple(dataclasses.replace(cut, strength=strengths) for cut in self.cuts))

    @property
    def shuffles(self) -> bool:
        """Whether any op replaces tokens by those of another example."""
        return any(op.kind == "shuffle" for ops in self.ops.values() for op in ops)

    @property
    def given_names(self) -> tuple[str, ...]:
        """Names of the arrays of a call that ops read, each once."""
        ops = [op for site_ops in self.ops.values() for op in site_ops]
        names = [name for op in ops for name in (op.positions.name if op.positions else None, op.given)]
        names += [positions.name for cut in self.cuts for positions in cut.positions if positions]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def reads_clean(self) -> bool:
        """Whether any op reads the clean stream, which only `contrast` has."""
        return any(op.kind == "clean" for ops in self.ops.values() for op in ops)

    @property
    def needs_example_ids(self) -> bool:
        """Whether any op draws by example id: noise, shuffle and random patches do."""
        drawn = any(op.draws for ops in self.ops.values() for op in ops)
        return drawn or any(cut.draws for cut in self.cuts)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layer", "example_ids", "valid", "groups", "given"], meta_fields=["layout"]
)
@dataclass(frozen=True)
class BlockContext:
    """The block and the examples that ops are applied to."""

    layer: Int[Array, ""]
    example_ids: Int[Array, "batch"] | None
    valid: Bool[Array, "batch"] | None
    groups: Int[Array, "batch"] | None
    layout: TokenLayout
    given: dict[str, Array] = field(default_factory=dict)  # arrays of the call, of this layer


def stacked(*leaves: Array) -> Array:
    """Leaves with a new leading axis: on the host where their values are known, since a program for every shape takes longer."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return jnp.stack(leaves)
    return jnp.asarray(np.stack(leaves))


def columns_of(conditions: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """The ops of several conditions as columns, one op for each condition and all of one signature; None where a condition has none."""
    signatures: list[Hashable] = []
    for ops in conditions:  # signatures in an order that is also that of every condition's ops
        position = 0
        for op in ops:
            if op.signature in signatures[position:]:
                position = signatures.index(op.signature, position) + 1
            else:
                signatures.insert(position, op.signature)
                position += 1
    columns: list[list[Any]] = [[] for _ in signatures]
    for ops in conditions:
        remaining = list(ops)
        for column, signature in zip(columns, signatures, strict=True):
            column.append(remaining.pop(0) if remaining and remaining[0].signature == signature else None)
        assert not remaining
    return columns
