"""The vision transformer as Flax NNX modules: blocks are one module whose leaves carry a leading depth axis."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from jaxvit.attention import attend
from jaxvit.config import MODELS, ViTConfig
from jaxvit.position import resize_table, rope_angles, rope_periods, rotate
from jaxvit.tokens import TokenLayout

Rope = tuple[Float[Array, "patches head_width"], Float[Array, "patches head_width"]]
_matrix = nnx.initializers.xavier_uniform()
_token = nnx.initializers.normal(0.1)
_LAYER_SCALE = 0.5


class Buffer(nnx.Variable):
    """A leaf that belongs to the model but is not learned."""


def gelu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The exact GELU, by erf as the originals compute it: on CPU a third faster than the erfc of `jax.nn.gelu`."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class FeedForward(nnx.Module):
    """down(gelu(up(x))) with the exact GELU, or down(silu(gate(x)) * up(x)) (SwiGLU)."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, kernel_init=_matrix, rngs=rngs)
        self.gate = linear(config.width, config.hidden) if config.feed_forward == "swiglu" else None
        self.up = linear(config.width, config.hidden)
        self.down = linear(config.hidden, config.width)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        up = self.up(x)
        return self.down(gelu(up) if self.gate is None else jax.nn.silu(self.gate(x)) * up)


class Attention(nnx.Module):
    """Multi-head self-attention; queries, keys and values come from one matrix."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = nnx.Linear(config.width, 3 * config.width, use_bias=config.qkv_bias, kernel_init=_matrix, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, kernel_init=_matrix, rngs=rngs)

    def project(self, x: Float[Array, "*batch tokens width"], rope: Rope | None) -> tuple[Array, Array, Array]:
        """Queries, keys (both rotated under RoPE) and values, each [..., tokens, heads, head_width]."""
        qkv = self.qkv(x)
        q, k, v = jnp.unstack(qkv.reshape(*qkv.shape[:-1], 3, self.heads, -1), axis=-3)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v


Attend = Callable[[Array, Array, Array, Array | None], tuple[Array, dict[str, Array]]]
"""Queries, keys, values and what is hidden, to mixed values and whatever was read off attention on the way, by name."""


def only_attend(q: Array, k: Array, v: Array, hidden: Array | None) -> tuple[Array, dict[str, Array]]:
    """Attention that reads nothing off."""
    return attend(q, k, v, hidden), {}


class BlockTrace(NamedTuple):
    """Everything one block computes: the four sites an ablation can edit (after the edit), what attention saw, and what it was asked
    to read off."""

    block_input: Float[Array, "*batch tokens width"]
    attention_output: Float[Array, "*batch tokens width"]
    mlp_output: Float[Array, "*batch tokens width"]
    block_output: Float[Array, "*batch tokens width"]
    q: Float[Array, "*batch tokens heads head_width"]
    k: Float[Array, "*batch tokens heads head_width"]
    v: Float[Array, "*batch tokens heads head_width"]
    read: dict[str, Array]


SITES = BlockTrace._fields[:4]
Edit = Callable[[str, Array], Array]


def unedited(site: str, x: Array) -> Array:
    """The edit that changes nothing."""
    del site
    return x


class Block(nnx.Module):
    """Pre-norm transformer block."""

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
        hidden: Bool[Array, "*batch tokens tokens"] | None = None,
        attention: Attend = only_attend,
    ) -> BlockTrace:
        """Run the block. `edit(site, x)` may replace the stream before and after the block and what each branch adds to
        it (after LayerScale, before the residual sum); `hidden` says which query does not see which key."""
        x = edit("block_input", x)
        q, k, v = self.attention.project(self.norm1(x), rope)
        mixed, read = attention(q, k, v, hidden)
        mixed = self.attention.out(mixed.reshape(x.shape))
        mixed = edit("attention_output", mixed if self.scale1 is None else mixed * self.scale1[...])
        middle = x + mixed
        fed = self.feed_forward(self.norm2(middle))
        fed = edit("mlp_output", fed if self.scale2 is None else fed * self.scale2[...])
        return BlockTrace(x, mixed, fed, edit("block_output", middle + fed), q, k, v, read)


class ViT(nnx.Module):
    """Weights of one model. A plain pytree: pass it to jitted functions as an argument, never close over it.

    `blocks` is ONE `Block` whose leaves are stacked [depth, ...]; `jaxvit.forward` scans over it.
    """

    def __init__(self, config: ViTConfig, key: Array):
        self.config = config
        token_key, block_key = jax.random.split(key)
        rngs = nnx.Rngs(token_key)
        rope = config.position == "rope"
        self.cls_token = nnx.Param(_token(rngs(), (config.width,)))
        self.register_tokens = nnx.Param(_token(rngs(), (config.registers, config.width))) if config.registers else None
        self.cls_position = None if rope else nnx.Param(_token(rngs(), (config.width,)))
        self.patch_position = None if rope else nnx.Param(_token(rngs(), (config.table_side, config.table_side, config.width)))
        self.rope_periods = Buffer(jnp.asarray(rope_periods(config.head_width))) if rope else None
        self.patch_embed = nnx.Linear(3 * config.patch_size**2, config.width, kernel_init=_matrix, rngs=rngs)
        self.blocks = jax.vmap(lambda k: Block(config, nnx.Rngs(k)))(jax.random.split(block_key, config.depth))
        self.norm = _norm(config, rngs)
        self.prefix_norm = _norm(config, rngs) if config.untied_norm else None

    def embed_patches(self, images: Float[Array, "*batch height width 3"]) -> Float[Array, "*batch patches width"]:
        """Linear embedding of every patch, row by row, before positions.

        Raises:
            ValueError: the image size is no multiple of the patch size.
        """
        *batch, height, width, channels = images.shape
        rows, columns = self.config.grid(height, width)
        p = self.config.patch_size
        x = images.astype(self.patch_embed.kernel.dtype).reshape(*batch, rows, p, columns, p, channels)
        return self.patch_embed(jnp.moveaxis(x, -4, -3).reshape(*batch, rows * columns, p * p * channels))

    def add_prefix(self, patches: Float[Array, "*batch patches width"], grid: tuple[int, int]) -> Float[Array, "*batch tokens width"]:
        """Input of block 0: positions added to CLS and patches, then CLS, registers (which get no position) and patches joined."""
        cls = self.cls_token[...]
        if self.patch_position is not None and self.cls_position is not None:
            patches = patches + resize_table(self.patch_position[...], grid, self.config.position)
            cls = cls + self.cls_position[...]
        prefix = cls[None] if self.register_tokens is None else jnp.concatenate([cls[None], self.register_tokens[...]])
        prefix = jnp.broadcast_to(prefix, (*patches.shape[:-2], *prefix.shape))
        return jnp.concatenate([prefix.astype(patches.dtype), patches], axis=-2)

    def rope(self, grid: tuple[int, int]) -> Rope | None:
        """Rotary angles of a grid, or None for models with a position table."""
        return None if self.rope_periods is None else rope_angles(self.rope_periods[...], grid)

    def final_norm(self, x: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens width"]:
        """The final LayerNorm; CLS and registers go through their own where the checkpoint has one."""
        if self.prefix_norm is None:
            return self.norm(x)
        prefix = 1 + self.config.registers
        return jnp.concatenate([self.prefix_norm(x[..., :prefix, :]), self.norm(x[..., prefix:, :])], axis=-2)


def create(model: str | ViTConfig, seed: int = 0) -> ViT:
    """A model with random weights: Xavier-uniform matrices, normal(0.1) tokens and positions, LayerScale 0.5, float32.

    Raises:
        ValueError: the name is not in `MODELS`.
    """
    return _create(config_of(model), jax.random.key(seed))


def truncated(model: ViT, depth: int) -> ViT:
    """The model that ends after its first `depth` blocks, with the same final norm.

    Raises:
        ValueError: the model does not have so many blocks, or `depth` is below 1.
    """
    if not 1 <= depth <= model.config.depth:
        raise ValueError(f"the model has blocks 0 to {model.config.depth - 1}; it cannot end after block {depth - 1}")
    graph, state = nnx.split(model)
    short = nnx.merge(graph, state)
    short.config = dataclasses.replace(model.config, depth=depth)
    short.blocks = jax.tree.map(lambda leaf: leaf[:depth], model.blocks)
    return short


def cast(model: ViT, dtype: DTypeLike) -> ViT:
    """The model with its learned weights in a float dtype. Rotary periods stay float32, as RoPE, norms and softmax do inside."""
    graph, weights, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(dtype), weights), rest)


def abstract(model: str | ViTConfig) -> ViT:
    """The same tree with `jax.ShapeDtypeStruct` leaves: nothing is allocated, whatever the size."""
    config = config_of(model)
    return jax.eval_shape(lambda: ViT(config, jax.random.key(0)))


def config_of(model: str | ViTConfig) -> ViTConfig:
    """The config of a name in `MODELS`, or the config itself.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(model, ViTConfig):
        return model
    if model not in MODELS:
        raise ValueError(f'unknown model "{model}"; known are {", ".join(MODELS)}')
    return MODELS[model]


def normalise(images: UInt8[np.ndarray, "*batch height width 3"] | Array, config: ViTConfig) -> Float[Array, "*batch height width 3"]:
    """Pixels 0..255 to normalised float32: (x / 255 - pixel_mean) / pixel_std. The only normalisation there is.

    Raises:
        ValueError: not uint8, or the last axis is not RGB.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"normalise takes uint8 images in 0..255, got {images.dtype}; floats may already be normalised")
    if images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(f"normalise takes images [..., height, width, 3], got shape {tuple(images.shape)}")
    mean, std = (jnp.asarray(v, jnp.float32) for v in (config.pixel_mean, config.pixel_std))
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std


def layout_of(model: ViT, image_size: int | tuple[int, int]) -> TokenLayout:
    """Token layout of a model at an image size in pixels."""
    return TokenLayout.of(model.config, image_size)


@functools.partial(jax.jit, static_argnums=0)
def _create(config: ViTConfig, key: Array) -> ViT:
    return ViT(config, key)


def _norm(config: ViTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=config.norm_eps, use_fast_variance=False, rngs=rngs)


def _layer_scale(config: ViTConfig) -> nnx.Param | None:
    return nnx.Param(jnp.full(config.width, _LAYER_SCALE, jnp.float32)) if config.layer_scale else None
