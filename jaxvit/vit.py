"""The vision transformer as Flax NNX modules; all blocks are one module whose leaves have a leading depth axis."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from jaxvit.attention import attend
from jaxvit.calls import as_config, check_pixels, check_seed, described
from jaxvit.config import MODELS, ViTConfig
from jaxvit.cuts import Cuts
from jaxvit.position import resize_table, rope_angles, rope_periods, rotate
from jaxvit.printing import weights_in_words
from jaxvit.sharding import WeightShards, weight_shardings, with_weight_shards

Rope = tuple[Float[Array, "patches head_width"], Float[Array, "patches head_width"]]
_xavier = nnx.initializers.xavier_uniform()
_normal = nnx.initializers.normal(0.1)
_INITIAL_LAYER_SCALE = 0.5


class Buffer(nnx.Variable[Array]):
    """An array of the model that is not learned."""


def gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The exact GELU by erf, as the originals compute it, in float32 whatever the dtype; on CPU a third faster than `jax.nn.gelu`,
    which uses erfc."""
    exact = x.astype(jnp.float32)
    return (0.5 * exact * (1 + jax.lax.erf(exact * 0.5**0.5))).astype(x.dtype)


class FeedForward(nnx.Module):
    """The feed-forward layer: down(gelu(up(x))) with the exact GELU, or down(silu(gate(x)) * up(x)) (SwiGLU)."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, kernel_init=_xavier, rngs=rngs)
        self.gate = linear(config.width, config.mlp_dim) if config.feed_forward == "swiglu" else None
        self.up = linear(config.width, config.mlp_dim)
        self.down = linear(config.mlp_dim, config.width)

    def hidden(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch mlp_dim"]:
        """The neurons, which `down` projects."""
        up = self.up(x)
        return gelu(up) if self.gate is None else jax.nn.silu(self.gate(x)) * up


class Attention(nnx.Module):
    """Multi-head self-attention; queries, keys and values come from one matrix."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = nnx.Linear(config.width, 3 * config.width, use_bias=config.qkv_bias, kernel_init=_xavier, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, kernel_init=_xavier, rngs=rngs)

    def project(self, x: Float[Array, "*batch tokens width"], rope: Rope | None) -> tuple[Array, Array, Array]:
        """Queries, keys (both rotated under RoPE) and values, each [..., tokens, heads, head_width]."""
        qkv = self.qkv(x)
        q, k, v = jnp.unstack(qkv.reshape(*qkv.shape[:-1], 3, self.heads, -1), axis=-3)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v


AttentionFunction = Callable[..., tuple[Array, dict[str, Array]]]
"""From queries, keys, values, the attention mask and `cuts=` (`jaxvit.cuts`) to the averaged values, and to named by-products
(`BlockTrace.fused`)."""


def attend_only(q: Array, k: Array, v: Array, attention_mask: Array | None, cuts: Cuts = ()) -> tuple[Array, dict[str, Array]]:
    """The default attention function: averaged values and no by-products."""
    return attend(q, k, v, attention_mask, cuts), {}


class BlockTrace(NamedTuple):
    """The intermediate results of one block: the sites of `jaxvit.sites`, after their edits.

    Attributes:
        fused: by-products of the attention function, by name.
        cuts: what the block's attention was edited by.
    """

    block_input: Float[Array, "*batch tokens width"]
    attention_output: Float[Array, "*batch tokens width"]
    mlp_output: Float[Array, "*batch tokens width"]
    block_output: Float[Array, "*batch tokens width"]
    query: Float[Array, "*batch tokens heads head_width"]
    key: Float[Array, "*batch tokens heads head_width"]
    value: Float[Array, "*batch tokens heads head_width"]
    head_output: Float[Array, "*batch tokens heads head_width"]
    mlp_hidden: Float[Array, "*batch tokens mlp_dim"]
    fused: dict[str, Array]
    cuts: Cuts


Edit = Callable[[str, Array], Array]
"""From the name of a site and the tokens there to the tokens that replace them."""


def unedited(site: str, x: Array) -> Array:
    """The tokens unchanged, at every site."""
    del site
    return x


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        self.norm1 = _norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.scale1 = _layer_scale(config)
        self.norm2 = _norm(config, rngs)
        self.feed_forward = FeedForward(config, rngs)
        self.scale2 = _layer_scale(config)

    def __call__(
        self,
        x: Float[Array, "*batch tokens width"],
        rope: Rope | None,
        edit: Edit = unedited,
        attention_mask: Bool[Array, "*batch tokens tokens"] | None = None,
        attention: AttentionFunction = attend_only,
        cuts: Cuts = (),
    ) -> BlockTrace:
        """Run the block.

        Args:
            x: the residual stream.
            rope: cosine and sine of the rotary angles, or None without RoPE.
            edit: called at every site of `jaxvit.sites`; its result replaces the tokens there.
            attention_mask: True where a query (second last axis) may attend to a key (last axis).
            attention: computes the averaged values, and by-products that the trace keeps.
            cuts: edits of the attention weights.
        """
        x = edit("block_input", x)
        q, k, v = self.attention.project(self.norm1(x), rope)
        q, k, v = edit("query", q), edit("key", k), edit("value", v)
        values, fused = attention(q, k, v, attention_mask, cuts=cuts)
        values = edit("head_output", values)
        attended = self.attention.out(values.reshape(x.shape))
        attended = edit("attention_output", attended if self.scale1 is None else attended * self.scale1[...])
        middle = x + attended
        hidden = edit("mlp_hidden", self.feed_forward.hidden(self.norm2(middle)))
        mlp = self.feed_forward.down(hidden)
        mlp = edit("mlp_output", mlp if self.scale2 is None else mlp * self.scale2[...])
        return BlockTrace(
            block_input=x,
            attention_output=attended,
            mlp_output=mlp,
            block_output=edit("block_output", middle + mlp),
            query=q,
            key=k,
            value=v,
            head_output=values,
            mlp_hidden=hidden,
            fused=fused,
            cuts=cuts,
        )


class ViT(nnx.Module):
    """The weights of one model, a plain pytree: pass it to jitted functions as an argument, never close over it.

    `blocks` is ONE `Block` whose leaves are stacked [depth, ...]; `jaxvit.forward` scans over it. `weight_shards` says how they are split
    over devices (`jaxvit.sharding.shard_weights`), None where they are not.
    """

    def __init__(self, config: ViTConfig, key: Array):
        self.config = config
        token_key, block_key = jax.random.split(key)
        rngs = nnx.Rngs(token_key)
        rope = config.position == "rope"
        self.cls_token = nnx.Param(_normal(rngs(), (config.width,)))
        self.register_tokens = nnx.Param(_normal(rngs(), (config.registers, config.width))) if config.registers else None
        self.cls_position = None if rope else nnx.Param(_normal(rngs(), (config.width,)))
        self.patch_position = None if rope else nnx.Param(_normal(rngs(), (config.table_side, config.table_side, config.width)))
        self.rope_periods = Buffer(jnp.asarray(rope_periods(config.head_width))) if rope else None
        self.patch_embed = nnx.Linear(3 * config.patch_size**2, config.width, kernel_init=_xavier, rngs=rngs)
        self.blocks = jax.vmap(lambda k: Block(config, nnx.Rngs(k)))(jax.random.split(block_key, config.depth))
        self.norm = _norm(config, rngs)
        self.prefix_norm = _norm(config, rngs) if config.untied_norm else None
        self.weight_shards: WeightShards | None = None

    def __repr__(self) -> str:
        config = self.config
        registers = f", {config.registers} registers" if config.registers else ""
        shape = f"width {config.width}, {config.depth} blocks of {config.heads} heads{registers}, patches of {config.patch_size} pixels"
        split = "" if self.weight_shards is None else f", those of blocks split over {self.weight_shards.mesh.size} devices"
        return f"ViT({shape}; {weights_in_words(self)}{split})"

    __str__ = __repr__  # not that of nnx

    def embed_patches(self, images: Float[Array, "*batch height width 3"]) -> Float[Array, "*batch patches width"]:
        """The linear embedding of every patch, row by row, without positions.

        Raises:
            ValueError: the image size is no multiple of the patch size.
        """
        *batch, height, width, channels = images.shape
        rows, columns = self.config.grid(height, width)
        p = self.config.patch_size
        x = images.astype(self.patch_embed.kernel.dtype).reshape(*batch, rows, p, columns, p, channels)
        return self.patch_embed(jnp.moveaxis(x, -4, -3).reshape(*batch, rows * columns, p * p * channels))

    def add_prefix(self, patches: Float[Array, "*batch patches width"], grid: tuple[int, int]) -> Float[Array, "*batch tokens width"]:
        """The input of block 0: CLS and patches with their positions added, registers (which have no position) between them."""
        cls = self.cls_token[...]
        if self.patch_position is not None and self.cls_position is not None:
            patches = patches + resize_table(self.patch_position[...], grid, self.config.position)
            cls = cls + self.cls_position[...]
        prefix = cls[None] if self.register_tokens is None else jnp.concatenate([cls[None], self.register_tokens[...]])
        prefix = jnp.broadcast_to(prefix, (*patches.shape[:-2], *prefix.shape))
        return jnp.concatenate([prefix.astype(patches.dtype), patches], axis=-2)

    def rope(self, grid: tuple[int, int]) -> Rope | None:
        """Cosine and sine of the rotary angles of a grid, or None for models with a position table."""
        return None if self.rope_periods is None else rope_angles(self.rope_periods[...], grid)

    def final_norm(self, x: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens width"]:
        """The tokens after the final LayerNorm, which is a separate one for CLS and registers where `untied_norm` is set."""
        if self.prefix_norm is None:
            normalised: Array = self.norm(x)
            return normalised
        prefix = 1 + self.config.registers
        return jnp.concatenate([self.prefix_norm(x[..., :prefix, :]), self.norm(x[..., prefix:, :])], axis=-2)


def create(model: str | ViTConfig, seed: int = 0, mesh: Mesh | None = None) -> ViT:
    """A model with random weights: Xavier-uniform matrices, normal(0.1) tokens and positions, LayerScale 0.5, float32.

    Args:
        mesh: split the weights over its devices (`jaxvit.sharding.shard_weights`); each makes its share of the same weights.

    Raises:
        ValueError: the name is not in `MODELS`, the seed is no whole number, or the mesh cannot split the weights.
    """
    check_seed(seed)
    config, key = config_of(model), jax.random.key(seed)
    if mesh is None:
        created: ViT = _create(config, key)
        return created
    shapes = with_weight_shards(abstract(config), mesh)
    leaves = jax.tree.leaves(weight_shardings(shapes, mesh))
    made = jax.jit(lambda key: jax.tree.leaves(ViT(config, key)), out_shardings=leaves)(key)
    split: ViT = jax.tree.unflatten(jax.tree.structure(shapes), made)
    return split


def truncated(model: ViT, depth: int) -> ViT:
    """The model that ends after its first `depth` blocks, with the same final norm.

    Raises:
        ValueError: the model does not have so many blocks, or `depth` is below 1.
    """
    if not 1 <= depth <= model.config.depth:
        raise ValueError(f"the model has blocks 0 to {model.config.depth - 1}; it cannot end after block {depth - 1}")
    graph, state = nnx.split(model)
    shortened: ViT = nnx.merge(graph, state)
    shortened.config = dataclasses.replace(model.config, depth=depth)
    shortened.blocks = jax.tree.map(lambda leaf: leaf[:depth], model.blocks)
    return shortened


def cast(model: ViT, dtype: DTypeLike) -> ViT:
    """The model with its learned weights in a float dtype; rotary periods stay float32, and so does the arithmetic of RoPE, norms and
    softmax."""
    graph, weights, *buffers = nnx.split(model, nnx.Param, ...)
    converted: ViT = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(dtype), weights), *buffers)
    return converted


def abstract(model: str | ViTConfig) -> ViT:
    """A model with `jax.ShapeDtypeStruct` leaves in place of arrays: no memory is allocated, whatever its size."""
    config = config_of(model)
    shapes: ViT = jax.eval_shape(lambda: ViT(config, jax.random.key(0)))
    return shapes


def config_of(model: str | ViTConfig) -> ViTConfig:
    """The config of a name in `MODELS`, or the config itself.

    Raises:
        ValueError: the name is unknown.
    """
    if not isinstance(model, str | ViTConfig):
        raise ValueError(f"{described(model)} is no config; give a ViTConfig, such as model.config, or a name among {', '.join(MODELS)}")
    return as_config(model)


def normalise(
    images: UInt8[np.ndarray, "*batch height width 3"] | Array, config: ViTConfig | ViT | str
) -> Float[Array, "*batch height width 3"]:
    """Pixels normalised as the model expects them, float32: (x / 255 - pixel_mean) / pixel_std. The only normalisation there is.

    Args:
        config: of the model, or the model, or the name of a released one.

    Raises:
        ValueError: not uint8, or the last axis is not RGB; an unknown name.
    """
    check_pixels("images", images, any_batch=True)
    pixels = as_config(config)
    mean, std = (jnp.asarray(v, jnp.float32) for v in (pixels.pixel_mean, pixels.pixel_std))
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std


@functools.partial(jax.jit, static_argnums=0)
def _create(config: ViTConfig, key: Array) -> ViT:
    return ViT(config, key)


def _norm(config: ViTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=config.norm_eps, use_fast_variance=False, rngs=rngs)


def _layer_scale(config: ViTConfig) -> nnx.Param[Array] | None:
    return nnx.Param(jnp.full(config.width, _INITIAL_LAYER_SCALE, jnp.float32)) if config.layer_scale else None
