"""Models: their published sizes, the one normalisation, and models that end early."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxvit
from jaxvit.vit import abstract, truncated
from tests.jaxvit import tiny

# millions of parameters as the model cards give them (backbone, to the precision printed there)
PUBLISHED_SIZES = {
    "dino_vits16": 21, "dino_vitb16": 85, "dinov2_vits14": 21, "dinov2_vitb14": 86, "dinov2_vitl14": 300, "dinov2_vitg14": 1100,
    "dinov3_vits16": 21, "dinov3_vits16plus": 29, "dinov3_vitb16": 86, "dinov3_vitl16": 300, "dinov3_vith16plus": 840,
    "dinov3_vit7b16": 6716,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_parameter_counts_are_the_published_ones(name):
    millions = sum(leaf.size for leaf in jax.tree.leaves(abstract(name))) / 1e6
    assert abs(millions / PUBLISHED_SIZES[name] - 1) < 0.055


def test_normalise_is_the_published_rule():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    for name in ("dinov2_vits14", "dinov3_vitl16_sat493m"):
        config = jaxvit.MODELS[name]
        want = (images / 255 - np.array(config.pixel_mean)) / np.array(config.pixel_std)
        np.testing.assert_allclose(jaxvit.normalise(images, config), want, atol=1e-6)
    assert jaxvit.MODELS["dinov3_vitl16_sat493m"].pixel_mean != jaxvit.MODELS["dinov3_vitl16"].pixel_mean


def test_a_truncated_model_ends_after_a_block():
    """`prenorm` is the output of that block, and `tokens` are the same under the final norm of the whole model."""
    model, images = tiny.model(), tiny.images()
    short = truncated(model, 2)
    outputs = jaxvit.forward(model, images, capture="block_output").captured["block_output"]
    out = jaxvit.forward(short, images)
    np.testing.assert_allclose(out.prenorm, outputs[1], atol=1e-6)
    np.testing.assert_allclose(out.tokens, model.final_norm(outputs[1]), atol=1e-6)
    assert short.config.depth == 2
    assert model.config.depth == 3
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        truncated(model, 4)
