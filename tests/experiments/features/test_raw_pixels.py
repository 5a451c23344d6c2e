"""The baseline without a model."""

from __future__ import annotations

import numpy as np

from experiments.features.extraction import patch_grid
from experiments.features.raw_pixels import raw_pixels


def test_raw_pixels_are_means_of_cells_and_pixels_of_patches():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    pixels = raw_pixels(images)
    scaled = images / np.float32(255)
    np.testing.assert_allclose(pixels.cls[1, :3], scaled[1, :2, :2].mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(pixels.patches[1, 5].reshape(8, 8, 3), scaled[1, 8:16, 8:16])
    np.testing.assert_allclose(pixels.patch_mean, pixels.patches.mean(axis=1))
    assert patch_grid(pixels.patches, images) == (4, 4, 8)


def test_sides_that_sixteen_does_not_divide_have_fewer_cells():
    pixels = raw_pixels(np.random.default_rng(0).integers(0, 256, (2, 56, 42, 3), np.uint8))
    assert pixels.cls.shape == (2, 14 * 14 * 3)
