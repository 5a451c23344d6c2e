"""A demo model made wider, with registers that nothing reads, whose free heads, channels and blocks can be given a task by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jaxvit
from jaxvit import ViT, ViTConfig

WIDTH, HEADS, DEPTH, REGISTERS = 160, 4, 9, 4
FREE_HEAD = 3
"""The head that the demo model does not have."""
FLAG, FLAG_STRENGTH = (96, 97), 300.0
"""Channels of the flag of registers, plus and minus, so that the mean over channels stays 0; and how strong it is."""
CLS_FLAG, CLS_FLAG_STRENGTH = (98, 99), 0.05
"""The same of CLS: weak, because CLS is computed with and its norm must stay; after the demo's last block it is amplified."""
FREE_NEURONS = 8
SPARE_DIM = 39
"""A dimension of queries and keys that the demo's heads do not use."""
FAR = 400.0
"""A product of query and key that decides a softmax: over the root of 40 it is 63."""


class Draft:
    """The arrays of a model while they are changed; float64, blocks stacked.

    Channels from 96 on, head 3, dimensions from 32 on of every head and blocks from 6 on are free. Attention and feed-forward outputs
    are centred: the mean over channels is 0, so that LayerNorm of the wide stream is that of the narrow one, up to a factor that is made
    good.
    """

    def __init__(self, model: ViT) -> None:
        config = model.config
        self.narrow, self.depth = config.width, config.depth
        self.config: ViTConfig = dataclasses.replace(
            config,
            width=WIDTH,
            heads=HEADS,
            depth=DEPTH,
            registers=REGISTERS,
            mlp_dim=config.mlp_dim + FREE_NEURONS,
            layer_scale=False,
        )
        centre = np.eye(self.narrow) - 1 / self.narrow
        blocks, ratio = model.blocks, np.sqrt(self.narrow / WIDTH)
        assert blocks.scale1 is not None
        assert blocks.scale2 is not None
        first, second = (np.asarray(scale[...], float) for scale in (blocks.scale1, blocks.scale2))

        def wide(array: object, axis: int = -1) -> np.ndarray:
            array = np.asarray(array, float)
            after = [(0, 0)] * array.ndim
            after[axis] = (0, WIDTH - array.shape[axis])
            return np.pad(array, after)

        def deep(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.zeros((DEPTH - self.depth, *array.shape[1:]))])

        def heads(array: np.ndarray) -> np.ndarray:
            """[..., 3 heads, 32] as [..., 4 heads, 40]."""
            return np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, HEADS - array.shape[-2]), (0, WIDTH // HEADS - array.shape[-1])])

        split = (3, config.heads, config.head_width)
        kernel = wide(np.asarray(blocks.attention.qkv.kernel[...], float), axis=1)
        self.qkv = deep(heads(kernel.reshape(self.depth, WIDTH, *split)))  # [L, width, 3, heads, 40]
        self.qkv_bias = deep(heads(np.asarray(blocks.attention.qkv.bias[...], float).reshape(self.depth, *split)))
        longer = np.sqrt(WIDTH // HEADS / config.head_width)
        self.qkv[:, :, 0] *= longer
        self.qkv_bias[:, 0] *= longer
        out = np.asarray(blocks.attention.out.kernel[...], float) * first[:, None] @ centre
        out = np.moveaxis(out.reshape(self.depth, config.heads, config.head_width, -1), 3, 1)
        self.out = wide(np.moveaxis(deep(heads(out)), 1, 3))  # [L, heads, 40, width]
        self.out_bias = deep(wide(np.asarray(blocks.attention.out.bias[...], float) * first @ centre))
        up = blocks.feed_forward.up
        more = (0, FREE_NEURONS)
        self.up = np.pad(deep(wide(up.kernel[...], axis=1)), [(0, 0), (0, 0), more])
        self.up_bias = np.pad(deep(np.asarray(up.bias[...], float)), [(0, 0), more])
        down = blocks.feed_forward.down
        self.down = np.pad(deep(wide(np.asarray(down.kernel[...], float) * second[:, None] @ centre)), [(0, 0), more, (0, 0)])
        self.down_bias = deep(wide(np.asarray(down.bias[...], float) * second @ centre))
        self.norms = {}
        for name, norm in (("norm1", blocks.norm1), ("norm2", blocks.norm2)):
            scale, bias = (np.asarray(array[...], float) for array in (norm.scale, norm.bias))
            scale = np.concatenate([scale * ratio, np.ones((self.depth, WIDTH - self.narrow))], axis=1)
            self.norms[name] = np.concatenate([scale, np.ones((DEPTH - self.depth, WIDTH))]), deep(wide(bias))
        self.final_scale, self.final_bias = wide(np.asarray(model.norm.scale[...], float) * ratio), wide(model.norm.bias[...])
        self.embed = wide(np.asarray(model.patch_embed.kernel[...], float) @ centre)
        self.embed_bias = wide(np.asarray(model.patch_embed.bias[...], float) @ centre)
        self.cls = wide(np.asarray(model.cls_token[...], float) @ centre)
        self.cls[list(CLS_FLAG)] += CLS_FLAG_STRENGTH * np.array([1, -1])
        assert model.cls_position is not None
        assert model.patch_position is not None
        self.cls_position = wide(np.asarray(model.cls_position[...], float) @ centre)
        self.patch_position = wide(np.asarray(model.patch_position[...], float) @ centre)
        self.registers = np.zeros((REGISTERS, WIDTH))
        self.registers[:, FLAG[0]], self.registers[:, FLAG[1]] = FLAG_STRENGTH, -FLAG_STRENGTH

        last = self.depth - 1  # gelu of a large number is that number, of one far below 0 it is 0: this neuron is CLS's alone
        self.up[last, CLS_FLAG[0], -1], self.up_bias[last, -1] = 1e4, -10
        self.down[last, -1, list(CLS_FLAG)] = np.array([1, -1])

    @property
    def flag(self) -> float:
        """A register's flag after LayerNorm, as long as there is nothing else in it."""
        return float(np.sqrt(WIDTH / 2))

    def hide_registers(self) -> None:
        """Let nobody read registers, and registers nobody but one another."""
        for block in range(DEPTH):
            for head in range(HEADS):
                self.hide(block, head)

    def hide(self, block: int, head: int) -> None:
        self.look(block, head, -1.0)

    def look(self, block: int, head: int, towards: float = 1.0) -> None:
        """Make all tokens look at registers in a head (or away from them); registers look at registers in both cases."""
        self.qkv[block, :, :2, head, SPARE_DIM] = 0
        self.qkv[block, FLAG[0], 1, head, SPARE_DIM] = towards * FAR / self.flag
        self.qkv_bias[block, 0, head, SPARE_DIM] = 1
        if towards < 0:  # registers' own queries have the other sign
            self.qkv[block, FLAG[0], 0, head, SPARE_DIM] = -3 / self.flag

    def model(self) -> ViT:
        """The model of these arrays."""
        model = jaxvit.create(self.config)
        blocks = model.blocks
        joined = (DEPTH, WIDTH, 3 * WIDTH)
        arrays = [
            (blocks.attention.qkv.kernel, self.qkv.reshape(joined)),
            (blocks.attention.qkv.bias, self.qkv_bias.reshape(DEPTH, -1)),
            (blocks.attention.out.kernel, self.out.reshape(DEPTH, WIDTH, WIDTH)),
            (blocks.attention.out.bias, self.out_bias),
            (blocks.feed_forward.up.kernel, self.up),
            (blocks.feed_forward.up.bias, self.up_bias),
            (blocks.feed_forward.down.kernel, self.down),
            (blocks.feed_forward.down.bias, self.down_bias),
            (model.norm.scale, self.final_scale),
            (model.norm.bias, self.final_bias),
            (model.patch_embed.kernel, self.embed),
            (model.patch_embed.bias, self.embed_bias),
            (model.cls_token, self.cls),
            (model.cls_position, self.cls_position),
            (model.patch_position, self.patch_position),
            (model.register_tokens, self.registers),
        ]
        for name, (scale, bias) in self.norms.items():
            arrays += [(getattr(blocks, name).scale, scale), (getattr(blocks, name).bias, bias)]
        for parameter, array in arrays:
            assert parameter is not None
            assert parameter.shape == array.shape, (parameter.shape, array.shape)
            parameter[...] = jnp.asarray(array, jnp.float32)
        return model


def directions(count: int, narrow: int, seed: int) -> Float[np.ndarray, "count narrow"]:
    """Random directions of length 1 in the demo's channels, without a mean."""
    random = np.random.default_rng(seed).normal(size=(count, narrow))
    random -= random.mean(axis=1, keepdims=True)
    return random / np.linalg.norm(random, axis=1, keepdims=True)
