"""The class fractions of patches and the classes of pixels against plain loops and torch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from jaxvit.probes import segmentation
from jaxvit.probes.segmentation import predict_padded, predict_pixels

CLASSES = 4


def test_class_shares_count_pixels():
    generator = np.random.default_rng(0)
    labels = np.where(generator.random((2, 6, 9)) < 0.3, 255, generator.integers(0, CLASSES, (2, 6, 9))).astype(np.uint8)
    labels[0, :3, :3] = 255
    fractions, weights = segmentation.class_shares(jnp.asarray(labels), CLASSES, 3)
    for image, patch in np.ndindex(2, 6):
        row, column = divmod(patch, 3)
        pixels = labels[image, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].ravel()
        pixels = pixels[pixels != 255]
        assert weights[image, patch] == pytest.approx(len(pixels) / 9)
        want = np.bincount(pixels, minlength=CLASSES) / max(len(pixels), 1)
        np.testing.assert_allclose(fractions[image, patch], want, atol=1e-6)
    with pytest.raises(ValueError, match="whole patches"):
        segmentation.class_shares(jnp.asarray(labels), CLASSES, 4)


def test_pixels_are_predicted_from_bilinear_scores():
    scores = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    height, width = 21, 20
    want = np.empty((1, height, width), int)
    for y, x in np.ndindex(height, width):
        row, column = (np.clip((p + 0.5) * n / size - 0.5, 0, n - 1) for p, n, size in ((y, 3, height), (x, 4, width)))
        r, c = min(int(row), 1), min(int(column), 2)
        fy, fx = row - r, column - c
        top, bottom = (scores[0, q, c] * (1 - fx) + scores[0, q, c + 1] * fx for q in (r, r + 1))
        want[0, y, x] = np.argmax(top * (1 - fy) + bottom * fy)
    np.testing.assert_array_equal(segmentation.predict_pixels(jnp.asarray(scores), (height, width)), want)


def test_masks_of_many_sizes_are_torchs_one_by_one():
    scores = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)
    sizes, canvas = np.array([[21, 20], [40, 33], [7, 50], [3, 4], [2, 3]]), (40, 50)
    got = np.asarray(predict_padded(jnp.asarray(scores), jnp.asarray(sizes), canvas))
    assert got.shape == (5, *canvas)
    for image, (height, width), predicted in zip(scores, sizes, got, strict=True):
        batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
        want = interpolate(batch, (height, width), mode="bilinear", align_corners=False)[0]
        np.testing.assert_array_equal(predicted[:height, :width], want.argmax(dim=0).numpy())
    # one size only: the same as the other program
    np.testing.assert_array_equal(predict_padded(jnp.asarray(scores), jnp.full((5, 2), 40), (40, 40)), predict_pixels(scores, (40, 40)))
