"""What every run of a model shares: the checks of a call, the embedding of images, and one step through a block with its edits.

`forward`, `contrast`, `sweep_layers` and whatever else runs blocks take their steps from here: what is edited is edited in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvit.ablation import Ablation
from jaxvit.apply import apply, cuts_of
from jaxvit.capture import BlockState
from jaxvit.cuts import Cuts, both_streams
from jaxvit.given import Given, checked, split
from jaxvit.lowering import lower
from jaxvit.ops import BlockContext, CutOp, EditOp, Edits
from jaxvit.sharding import WeightShards, gathered
from jaxvit.tokens import TokenLayout
from jaxvit.vit import AttentionFunction, Block, Rope, ViT, attend_only


class LayerEdits(NamedTuple):
    """The edits of one block, or of all blocks with a leading layer axis.

    Attributes:
        ops: what is done to tokens, by site.
        cuts: what is done to attention.
        layer: number of the block, from 0.
        given: arrays of the call that differ between layers.
    """

    ops: dict[str, tuple[EditOp, ...]]
    cuts: tuple[CutOp, ...]
    layer: Array
    given: dict[str, Array]


def by_layer(model: ViT, edits: Edits | None, given: Given | None = None) -> LayerEdits:
    """The edits of all blocks, for `jax.lax.scan` beside `model.blocks`; None changes nothing."""
    ops, cuts = ({}, ()) if edits is None else (edits.ops, edits.cuts)
    return LayerEdits(ops, cuts, jnp.arange(model.config.depth), split(given)[1])


@dataclass(frozen=True)
class Run:
    """What is the same in every block of a run: rotary angles, the token layout, the examples and given arrays (`jaxvit.forward`), and how
    weights are split."""

    rope: Rope | None
    layout: TokenLayout
    example_ids: Array | None
    valid: Array | None
    groups: Array | None
    given: dict[str, Array]
    weight_shards: WeightShards | None = None

    def step(
        self,
        x: Float[Array, "*streams batch tokens width"],
        block: Block,
        edits: LayerEdits | None = None,
        attention: AttentionFunction = attend_only,
        clean_first: bool = False,
    ) -> BlockState:
        """One block with its edits.

        Args:
            x: the residual stream entering the block.
            attention: of the block (`jaxvit.vit.Block`).
            clean_first: `x` is two streams, of which only the second one is edited.
        """

        def edit(site: str, x: Array) -> Array:
            if edits is None or site not in edits.ops:  # the program has nothing there
                return x
            return jnp.stack([x[0], self.edited(site, x[1], edits, x[0])]) if clean_first else self.edited(site, x, edits)

        context = self._context(edits)
        cuts: Cuts = () if edits is None else cuts_of(edits.cuts, context, x.shape[-3])
        if clean_first:
            cuts = tuple(both_streams(stage) for stage in cuts)
        whole = gathered(block, self.weight_shards)
        return BlockState(whole(x, self.rope, edit, attention=attention, cuts=cuts), context)

    def edited(
        self, site: str, x: Float[Array, "batch tokens *width"], edits: LayerEdits, clean: Array | None = None
    ) -> Float[Array, "batch tokens *width"]:
        """The tokens at a site that has edits, after them; `clean` are those of a clean stream that goes along."""
        return apply(edits.ops[site], x, self._context(edits), site, clean)

    def _context(self, edits: LayerEdits | None) -> BlockContext:
        layer, given = (jnp.asarray(-1), {}) if edits is None else (edits.layer, edits.given)
        return BlockContext(layer, self.example_ids, self.valid, self.groups, self.layout, self.given | given)


def begin(
    model: ViT,
    images: Float[Array, "batch height width 3"],
    example_ids: Array | None,
    valid: Array | None,
    groups: Array | None,
    given: Given | None = None,
) -> tuple[Float[Array, "batch tokens width"], Run]:
    """The input of block 0, and what every block of the run is given."""
    grid = model.config.grid(images.shape[-3], images.shape[-2])
    x = model.add_prefix(model.embed_patches(images), grid)
    return x, run_of(model, grid, example_ids, valid, groups, given)


def run_of(
    model: ViT, grid: tuple[int, int], example_ids: Array | None, valid: Array | None, groups: Array | None, given: Given | None = None
) -> Run:
    """What every block of a run on a grid of patches is given."""
    layout = TokenLayout(model.config.registers, *grid)
    return Run(model.rope(grid), layout, example_ids, valid, groups, split(given)[0], model.weight_shards)


def prepare(
    model: ViT,
    images: tuple[int, ...],
    ablation: Ablation | Edits | None,
    ids: Any,
    valid: Any,
    groups: Any,
    given: Given | None = None,
    has_clean: bool = False,
) -> tuple[Edits | None, dict[str, Any]]:
    """The edits of the ablation and the given arrays that they read, after all checks that need no traced values (those of
    `jaxvit.calls.checked_run` came before).

    Args:
        images: number, height and width of the images.
        has_clean: a clean stream goes along.
    """
    batch, size = images[0], (images[1], images[2])
    layout = TokenLayout.of(model.config, size)
    if ablation is None:
        return None, checked(given, None, model.config, batch)
    edits = lower(ablation, model, size) if isinstance(ablation, Ablation) else ablation
    if edits.layout != layout:
        raise ValueError(
            f"these edits are for {edits.layout.registers} registers and a grid of {edits.layout.rows}x{edits.layout.columns} patches, "
            f"the images give {layout.registers} and {layout.rows}x{layout.columns}; lower the ablation for this model and size"
        )
    if edits.needs_example_ids and ids is None:
        raise ValueError("noise, shuffle and random patches are drawn per example: pass example_ids, one integer per image")
    if edits.reads_clean and not has_clean:
        raise ValueError(
            'patch(..., "clean") reads the clean stream, which only contrast runs along; call jaxvit.contrast(model, images, ablation), or '
            'name an array: patch(tokens, "donor") and given={"donor": array}'
        )
    if edits.shuffles:
        _check_donors(batch, valid, groups)
    return edits, checked(given, edits, model.config, batch)


def _check_donors(batch: int, valid: Any, groups: Any) -> None:
    """Refuse a shuffle in which an example has nobody to take tokens from, as far as that can be known: traced values cannot be counted."""
    known = not any(isinstance(array, jax.core.Tracer) for array in (valid, groups))
    present = np.asarray(valid, bool) if known and valid is not None else np.ones(batch, bool)
    numbers = np.asarray(groups)[present] if known and groups is not None else np.zeros(present.sum(), int)
    names, counts = np.unique(numbers, return_counts=True)
    if counts.min(initial=batch) < 2 or not len(counts):
        count, where = (counts.min(), f" in group {names[counts.argmin()]}" if groups is not None else "") if len(counts) else (0, "")
        raise ValueError(f"shuffle needs at least 2 valid examples in a batch, and in each of its groups, got {count}{where}")
