"""The small models and inputs that library tests run on."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

import jaxvit
from tests.draws import normal

CONFIG = jaxvit.ViTConfig(patch_size=4, width=24, depth=3, heads=3, mlp_dim=48, registers=2, position="antialias", image_size=16)
ROPE = dataclasses.replace(CONFIG, position="rope", feed_forward="swiglu", untied_norm=True)
PLAIN = dataclasses.replace(CONFIG, registers=0, position="offset", layer_scale=False)
SIZE = (16, 12)
LAYOUT = jaxvit.TokenLayout.of(CONFIG, SIZE)


@functools.cache
def model(config: jaxvit.ViTConfig = CONFIG, seed: int = 0) -> jaxvit.ViT:
    return jaxvit.create(config, seed)


def images(batch: int = 4, seed: int = 0, size: tuple[int, int] = SIZE) -> jax.Array:
    return normal(seed, batch, *size, 3)


def statistics(config: jaxvit.ViTConfig = CONFIG, sites: tuple[str, ...] = ("block_output",)) -> jaxvit.Moments:
    return jaxvit.calibrate(model(config), [(images(8, seed=9), None)], sites)


def ids(batch: int = 4, start: int = 100) -> np.ndarray:
    return np.arange(start, start + batch)
