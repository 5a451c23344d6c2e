"""How far from its usual activations does an ablation take a model? The off-manifold meter beside every difference."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

import jaxvit
from experiments.features.extraction import Runner
from jaxvit import Ablation, Edits, Moments, ViT
from jaxvit.batching import Images, shuffle_groups
from jaxvit.capture import BlockState, attention_divergence, patch_cosine, patch_norm_ratio
from jaxvit.geometry import mahalanobis

METRICS = {
    "attention_divergence": "Jensen-Shannon divergence (base 2) of attention from the clean run, "
    "mean over heads and the queries of all tokens, overwritten ones too",
    "patch_cosine": "cosine of patches with the clean run, mean over patches",
    "patch_norm_ratio": "norm of patches as a share of the clean run's, mean over patches",
    "patch_mahalanobis": "distance of patches from their calibrated mean in standard deviations, mean over patches",
}
"""The metrics and their definitions, which are their protocols: of block outputs before the final norm, one number per image."""


def measure(
    runner: Runner, images: Images, ablation: Ablation, statistics: Moments, first_id: int
) -> dict[str, Float[np.ndarray, "layers images"]]:
    """The metrics of an ablation per block and image; example ids count from `first_id`."""
    return runner.map_batches(measure_share, _patch_moments(statistics), images, ablation, first_id, streams=2)


def measure_share(
    patch_moments: tuple[Float[Array, "layers width"], Float[Array, "layers width"]],
    model: ViT,
    images: UInt8[Array, "batch height width 3"],
    edits: Edits,
    ids: Int[Array, "batch"],
    valid: Bool[Array, "batch"],
) -> dict[str, Float[Array, "layers batch"]]:
    """The metrics of the images that a device takes at a time, from pixels on in one program.

    Args:
        patch_moments: calibrated mean and variance of the patches leaving each block.
    """
    captures = {
        "attention_divergence": attention_divergence,
        "patch_cosine": patch_cosine,
        "patch_norm_ratio": patch_norm_ratio,
        "patch_mahalanobis": _ablated_patches,
    }
    pair = jaxvit.contrast(model, jaxvit.normalise(images, model.config), edits, captures, ids, valid, shuffle_groups(len(images)))
    mean, variance = (moment[:, None, None] for moment in patch_moments)
    captured = pair.captured | {"patch_mahalanobis": mahalanobis(pair.captured["patch_mahalanobis"], mean, variance)}
    return {name: values.mean(axis=-1) for name, values in captured.items()}


def _patch_moments(statistics: Moments) -> tuple[Float[np.ndarray, "layers width"], Float[np.ndarray, "layers width"]]:
    """Mean and variance of the patches leaving each block."""
    return statistics.mean["block_output"][:, -1], statistics.variance["block_output"][:, -1]


def _ablated_patches(clean: BlockState, ablated: BlockState) -> Float[Array, "batch patches width"]:
    del clean
    return ablated.stream_out[:, ablated.layout.prefix :]
