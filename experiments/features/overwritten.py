"""Which patches a condition overwrites where they are read: what stands there says nothing of the image, and a score of it nothing of the
model."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

import jaxvit
from jaxvit import Ablation, ViTConfig
from jaxvit.apply import apply
from jaxvit.ops import BlockContext, EditOp


def overwritten_patches(
    ablation: Ablation, config: ViTConfig, image_size: tuple[int, int], example_ids: Int[np.ndarray, "images"]
) -> Bool[np.ndarray, "images patches"] | None:
    """The patches that an ablation overwrites at the output of the last block, of every image; None where it overwrites none.

    A patch that keeps some of its channels still says something of the image: it is none of them.

    Random patches are drawn by the library itself, for the example ids that the model's run has.

    Raises:
        ValueError: the ablation does not fit the model.
    """
    edits = jaxvit.lower(ablation, config, image_size)
    prefix, last = edits.layout.prefix, config.depth - 1
    markers = tuple(
        _marker(op, last) for op in edits.ops.get("block_output", ()) if op.overwrites and np.asarray(_whole(op, last))[prefix:].any()
    )
    if not markers:
        return None
    context = BlockContext(jnp.asarray(last), jnp.asarray(example_ids), None, None, edits.layout)
    marked = apply(markers, jnp.zeros((len(example_ids), edits.layout.tokens, 1)), context)
    return np.asarray(marked[:, prefix:, 0] > 0)


def _whole(op: EditOp, layer: int) -> Array:
    """The mask of the tokens that an op replaces with all of their channels."""
    return op.mask[layer] if op.channels is None else op.mask[layer] * op.channels[layer][op.index[layer]].min(axis=-1)


def _marker(op: EditOp, layer: int) -> EditOp:
    """An op of one layer that puts 1 on the tokens that `op` replaces there by whatever it replaces them."""
    patches, patch_seed = (None if field is None else field[layer] for field in (op.patches, op.patch_seed))
    mask, index = _whole(op, layer), jnp.zeros(op.mask.shape[1:], jnp.int32)
    return EditOp("fixed", mask, patches=patches, patch_seed=patch_seed, index=index, values=jnp.ones((1, 1)))
