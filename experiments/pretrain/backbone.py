"""The backbone in training: many views sharded over devices, with masked patches and masked attention."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxvit.checkpoint import assemble
from jaxvit.config import ViTConfig
from jaxvit.vit import Block, ViT, normalise

_VIEWS_AT_A_TIME = 12

Leaves = dict[str, Array]


class ViewTokens(NamedTuple):
    """Tokens of one or many views after the final norm, without the registers."""

    cls: Float[Array, "*views width"]
    patches: Float[Array, "*views patches width"]


class StudentMasks(NamedTuple):
    """The parts of its views that are withheld from the student.

    Attributes:
        patches: True where the mask token replaces a patch before the first block.
        hidden_keys: True for patches whose keys CLS and patches cannot attend to, in every block; registers can.
    """

    patches: Bool[Array, "*views patches"]
    hidden_keys: Bool[Array, "*views patches"]


def encode(
    model: ViT, images: Float[Array, "*views height width 3"], masks: StudentMasks | None = None, mask_token: Array | float = 0.0
) -> ViewTokens:
    """Tokens of normalised views.

    With masks, the last axis of `views` is a group of one view, or of two views of different scenes: in a group of two, CLS and patches
    attend to the patches of the other view in place of those of their own; registers attend to their own view.
    """
    patches = model.embed_patches(images)
    mask = None
    if masks is not None:
        patches = jnp.where(masks.patches[..., None], mask_token, patches)
        mask = attention_mask(masks.hidden_keys, model.config.registers)
    grid = model.config.grid(*images.shape[-3:-1])
    x = model.add_prefix(patches, grid)
    rope = model.rope(grid)
    shape = x.shape
    if mask is not None:
        x = x.reshape(*shape[:-3], mask.shape[-1], shape[-1])

    # In the backward pass blocks are computed again: on a CPU that is cheaper than writing their activations to memory and reading them.
    @jax.checkpoint
    def step(x: Array, block: Block) -> tuple[Array, None]:
        return block(x, rope, attention_mask=mask).block_output, None

    x, _ = jax.lax.scan(step, x, model.blocks)
    x = model.final_norm(x.reshape(shape))
    return ViewTokens(x[..., 0, :], x[..., 1 + model.config.registers :, :])


def attention_mask(hidden_keys: Bool[Array, "*groups views patches"], registers: int) -> Bool[Array, "*groups tokens tokens"]:
    """Attention mask over the joined sequence of a group's one or two views: True where a query may attend to a key.

    Registers attend to all of their own view. CLS and patches attend to CLS and registers of their own view, and to those patches of
    the other view (of their own, where the group has one view) whose keys are not hidden.
    """
    *groups, views, patches = hidden_keys.shape
    tokens = 1 + registers + patches
    view, position = jnp.divmod(jnp.arange(views * tokens), tokens)
    is_register, is_patch = (position >= 1) & (position <= registers), position > registers
    prefix = jnp.zeros((*groups, views, 1 + registers), bool)
    hidden = jnp.concatenate([prefix, hidden_keys], axis=-1).reshape(*groups, 1, views * tokens)
    same_view = view[:, None] == view
    other_view = (view[:, None] + 1) % views == view  # of one view it is the same
    mask = jnp.where(is_patch, other_view & ~hidden, same_view)
    return jnp.where(is_register[:, None], same_view, mask)


def encode_sharded(
    config: ViTConfig,
    mesh: Mesh,
    views: Array,
    leaves: Leaves,
    masks: StudentMasks | None = None,
    mask_token: Array | float = 0.0,
    foreign_keys: bool = False,
) -> ViewTokens:
    """Tokens of uint8 views that are split over the devices of a mesh; a CPU core takes a few at a time, so that they stay in its cache.

    With masks, views run in groups: of one view or, with foreign keys, of two views of different scenes.
    """
    group, ungroup = (pair_views, unpair_views) if foreign_keys else (_singles, _first_of_each)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("batch")), out_specs=PartitionSpec("batch")
    )
    def encode_shard(leaves: Leaves, mask_token: Array | float, shard: tuple[Array, StudentMasks | None]) -> ViewTokens:
        model = assemble(config, leaves)

        def encode_group(inputs: tuple[Array, StudentMasks | None]) -> ViewTokens:
            images, masks = inputs
            return encode(model, normalise(images, config), masks, mask_token)

        groups = jax.tree.map(group, shard)
        if jax.default_backend() == "cpu":
            tokens = jax.lax.map(encode_group, groups, batch_size=_VIEWS_AT_A_TIME // groups[0].shape[1])
        else:
            tokens = jax.vmap(encode_group)(groups)
        return jax.tree.map(ungroup, tokens)

    return encode_shard(leaves, mask_token, (views, masks))


def pair_views(views: Array) -> Array:
    """Pairs of views of different scenes: [views, ...] to [views / 2, 2, ...].

    Views 2 i and 2 i + 1 show one scene; each is paired with a view of the next scene.
    """
    return views.reshape(-1, 2, 2, *views.shape[1:]).swapaxes(1, 2).reshape(-1, 2, *views.shape[1:])


def unpair_views(pairs: Array) -> Array:
    """Views in their own order again: the inverse of `pair_views`."""
    return pairs.reshape(-1, 2, 2, *pairs.shape[2:]).swapaxes(1, 2).reshape(-1, *pairs.shape[2:])


def _singles(views: Array) -> Array:
    return views[:, None]


def _first_of_each(groups: Array) -> Array:
    return groups[:, 0]
