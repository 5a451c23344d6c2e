"""The backbone over many views, as training sees them: some patches masked, some keys hidden, each device its share."""

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


class Features(NamedTuple):
    """Tokens after the final norm, of one or many views."""

    cls: Float[Array, "*views width"]
    patches: Float[Array, "*views patches width"]


class Hiding(NamedTuple):
    """What a student does not see of its views.

    Attributes:
        patches: patches that the mask token replaces before the first block.
        keys: patches whose keys CLS and patches cannot attend to, in every block; registers can.
    """

    patches: Bool[Array, "*views patches"]
    keys: Bool[Array, "*views patches"]


def features(
    model: ViT, images: Float[Array, "*views height width 3"], hiding: Hiding | None = None, token: Array | float = 0.0
) -> Features:
    """Run the backbone; `token` is the mask token. With hiding, the last axis of `views` holds one view, or two of different
    scenes: then CLS and patches of each see the patches of the other in the place of its own; registers see their own."""
    patches = model.embed_patches(images)
    unseen = None
    if hiding is not None:
        patches = jnp.where(hiding.patches[..., None], token, patches)
        unseen = _unseen(hiding.keys, model.config.registers)
    grid = model.config.grid(*images.shape[-3:-1])
    x = model.add_prefix(patches, grid)
    rope = model.rope(grid)
    shape = x.shape
    if unseen is not None:
        x = x.reshape(*shape[:-3], unseen.shape[-1], shape[-1])

    # On a CPU, computing a block again for its gradient costs less than the way of what it computes to memory and back.
    @jax.checkpoint
    def step(x: Array, block: Block) -> tuple[Array, None]:
        return block(x, rope, hidden=unseen).block_output, None

    x, _ = jax.lax.scan(step, x, model.blocks)
    x = model.final_norm(x.reshape(shape))
    return Features(x[..., 0, :], x[..., 1 + model.config.registers :, :])


def _unseen(keys: Bool[Array, "*groups views patches"], registers: int) -> Bool[Array, "*groups tokens tokens"]:
    """Which query does not see which key, in the sequence of a group's one or two views.

    Registers see their view. CLS and patches see CLS and registers of their view, and of the patches of the other view (of
    their own, where there is one) those whose keys are not hidden.
    """
    *groups, views, patches = keys.shape
    tokens = 1 + registers + patches
    view, place = jnp.divmod(jnp.arange(views * tokens), tokens)
    is_register, is_patch = (place >= 1) & (place <= registers), place > registers
    hidden = jnp.concatenate([jnp.zeros((*groups, views, 1 + registers), bool), keys], axis=-1).reshape(*groups, 1, views * tokens)
    same = view[:, None] == view
    other = (view[:, None] + 1) % views == view
    seen = jnp.where(is_patch, other & ~hidden, same)
    return ~jnp.where(is_register[:, None], same, seen)


def run(
    config: ViTConfig,
    mesh: Mesh,
    views: Array,
    leaves: Leaves,
    hiding: Hiding | None = None,
    token: Array | float = 0.0,
    foreign: bool = False,
) -> Features:
    """Features of all views, each device its share; a CPU core takes a few at a time, so that they stay in its cache.

    With hiding they run in groups: of one view or, where patch keys are foreign, of two views of different scenes.
    """
    grouped, ungrouped = pairs if foreign else _singles, unpair if foreign else _unwrap

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("batch")), out_specs=PartitionSpec("batch")
    )
    def share(leaves: Leaves, token: Array | float, views: tuple[Array, Hiding | None]) -> Features:
        model = assemble(config, leaves)

        def one(group: tuple[Array, Hiding | None]) -> Features:
            return features(model, normalise(group[0], config), group[1], token)

        groups = jax.tree.map(grouped, views)
        if jax.default_backend() == "cpu":
            found = jax.lax.map(one, groups, batch_size=_VIEWS_AT_A_TIME // groups[0].shape[1])
        else:
            found = jax.vmap(one)(groups)
        return jax.tree.map(ungrouped, found)

    return share(leaves, token, (views, hiding))


def _singles(views: Array) -> Array:
    return views[:, None]


def _unwrap(groups: Array) -> Array:
    return groups[:, 0]


def pairs(views: Array) -> Array:
    """[views, ...] -> [views / 2, 2, ...]. Views 2 i and 2 i + 1 show one scene: each is paired with one of the next scene."""
    return views.reshape(-1, 2, 2, *views.shape[1:]).swapaxes(1, 2).reshape(-1, 2, *views.shape[1:])


def unpair(pairs: Array) -> Array:
    """Back from `pairs`."""
    return pairs.reshape(-1, 2, 2, *pairs.shape[2:]).swapaxes(1, 2).reshape(-1, *pairs.shape[2:])
