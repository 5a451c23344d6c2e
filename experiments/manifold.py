"""How far from what a model usually sees an ablation takes it: the off-manifold meter that stands beside every difference."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

import jaxvit
from experiments.features import Runner
from jaxvit import Ablation, Statistics, ViT
from jaxvit.capture import BlockState, attention_divergence, patch_cosine, patch_norm_ratio
from jaxvit.edits import Edits
from jaxvit.geometry import mahalanobis
from jaxvit.sharding import replicate

METRICS = {
    "attention_divergence": "Jensen-Shannon divergence (base 2) of attention from the clean run, mean over heads and queries",
    "patch_cosine": "cosine of patches with the clean run, mean over patches",
    "patch_norm_ratio": "norm of patches as a share of the clean run's, mean over patches",
    "patch_mahalanobis": "distance of patches from their calibrated mean in standard deviations, mean over patches",
}
"""Names of the measures, and their protocols: block outputs before the final norm, one number per image."""


def measure(
    runner: Runner, images: UInt8[np.ndarray, "images height width 3"], ablation: Ablation, statistics: Statistics, first_id: int
) -> dict[str, Float[np.ndarray, "layers images"]]:
    """The measures of an ablation, per block and image; example ids count from `first_id`."""
    usual = replicate(_patch_moments(statistics), runner.mesh)
    return runner.each(functools.partial(_measure, usual), images, ablation, first_id)


def _patch_moments(statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [layers, width] of the patches leaving each block."""
    return statistics.mean["block_output"][:, -1], statistics.variance["block_output"][:, -1]


def _ablated_patches(clean: BlockState, ablated: BlockState) -> Array:
    del clean
    return ablated.stream_out[:, ablated.layout.prefix :]


@jax.jit
def _measure(usual: tuple[Array, Array], model: ViT, images: Array, edits: Edits, ids: Array, valid: Array) -> Mapping[str, Array]:
    captures = {
        "attention_divergence": attention_divergence,
        "patch_cosine": patch_cosine,
        "patch_norm_ratio": patch_norm_ratio,
        "patch_mahalanobis": _ablated_patches,
    }
    pair = jaxvit.contrast(model, jaxvit.normalise(images, model.config), edits, captures, ids, valid)
    mean, variance = (moment[:, None, None] for moment in usual)
    captured = pair.captured | {"patch_mahalanobis": mahalanobis(pair.captured["patch_mahalanobis"], mean, variance)}
    return {name: values.mean(axis=-1) for name, values in captured.items()}
