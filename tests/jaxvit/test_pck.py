"""Keypoint matching, PCK and masks of many sizes against torch and hand-made numbers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample, interpolate

from jaxvit.metrics import match_keypoints, pck
from jaxvit.probes.segmentation import predict_padded, predict_pixels
from jaxvit.statistics import mean_scores, ratio_scores, value

GRID, PATCH = (4, 5), 14
HEIGHT, WIDTH = GRID[0] * PATCH, GRID[1] * PATCH


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def found_with_torch(source: np.ndarray, target: np.ndarray, points: np.ndarray) -> np.ndarray:
    """grid_sample of the feature map (borders clamped), then the patch with the largest cosine."""
    grids = torch.from_numpy(source).reshape(-1, *GRID, source.shape[-1]).permute(0, 3, 1, 2)
    places = torch.from_numpy(points / (WIDTH, HEIGHT) * 2 - 1).float()[:, None]
    features = grid_sample(grids, places, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0].transpose(1, 2)
    similarity = torch.cosine_similarity(features[:, :, None], torch.from_numpy(target)[:, None], dim=-1)
    row, column = np.divmod(similarity.argmax(dim=-1).numpy(), GRID[1])
    return (np.stack([column, row], axis=-1) + 0.5) * PATCH


def test_keypoints_are_matched_as_torch_matches_them():
    source, target = normal(3, 20, 6), normal(3, 20, 6, seed=1)
    # places anywhere, on patch borders and centres, in corners and just outside
    points = np.random.default_rng(2).uniform(-3, 3, (3, 40, 2)) + np.random.default_rng(3).uniform(0, (WIDTH, HEIGHT), (3, 40, 2))
    points[0, :6] = [[0, 0], [WIDTH, HEIGHT], [7, 7], [14, 14], [WIDTH, 0], [35, 28]]
    got = np.asarray(match_keypoints(jnp.asarray(source), jnp.asarray(target), jnp.asarray(points), GRID, PATCH))
    want = found_with_torch(source, target, points)
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(want.reshape(-1, 2), axis=0)) == 20


def test_a_keypoint_at_a_patch_centre_finds_that_patch_wherever_it_went():
    features, order = normal(1, 20, 6), np.random.default_rng(0).permutation(20)
    centres = (np.stack(np.divmod(np.arange(20), GRID[1])[::-1], axis=-1) + 0.5) * PATCH
    moved = 3.0 * features[:, order]  # a length is no matter
    got = match_keypoints(jnp.asarray(features), jnp.asarray(moved), jnp.asarray(centres[None]), GRID, PATCH)
    np.testing.assert_array_equal(got[0], centres[np.argsort(order)])


def test_matching_refuses_another_grid():
    with pytest.raises(ValueError, match="grid of 4 x 5"):
        match_keypoints(jnp.zeros((1, 20, 3)), jnp.zeros((1, 21, 3)), jnp.zeros((1, 2, 2)), GRID, PATCH)


def test_a_hit_lies_within_the_share_of_the_length_border_included():
    true = np.full((1, 4, 2), 50.0)
    predicted = np.add(true, [[[3, 4], [3, 4.0001], [0, -5], [5, 5]]])
    found = pck(predicted, true, np.ones((1, 4), bool), np.array([50.0]), (0.1, 0.05, 0.2))
    assert found.points.tolist() == [4]
    assert found.hits.tolist() == [[2, 0, 4]]
    assert found.hits.dtype == found.points.dtype == np.float64


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 0.7, 1.1])
def test_rounding_does_not_decide_what_is_on_the_border(scale):
    # a distance of exactly alpha * length, for every alpha in hundredths and many lengths, in whatever unit
    lengths = np.arange(1, 400) * 1.0
    alphas = np.arange(1, 50) / 100
    for alpha in alphas[::6]:
        predicted = np.zeros((399, 1, 2))
        predicted[:, 0, 0] = alpha * lengths / scale
        arguments = (predicted, np.zeros_like(predicted), np.ones((399, 1), bool))
        assert pck(*arguments, lengths, (alpha,), np.full((399, 2), scale)).hits.sum() == 399
        assert pck(*arguments, lengths * (1 - 1e-7), (alpha,), np.full((399, 2), scale)).hits.sum() == 0


def test_the_averages_of_pck_are_those_of_the_definitions():
    # pair 0: 1 of 2 points, pair 1: 3 of 4, pair 2: 1 of 1; alpha 0.1 of lengths 10, 20, 30
    distances = np.array([[1, 1.01, 0, 0], [2, 2, 2, 2.01], [3, 0, 0, 0]])
    valid = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
    predicted = np.stack([np.full((3, 4), 7.0), 5 + distances], axis=-1)
    found = pck(predicted, np.broadcast_to([7.0, 5.0], (3, 4, 2)), valid, np.array([10, 20, 30]), (0.1,))
    assert found.hits[:, 0].tolist() == [1, 3, 1]
    assert found.points.tolist() == [2, 4, 1]
    assert value(ratio_scores(found.hits[:, 0], found.points)) == pytest.approx(5 / 7)
    assert value(mean_scores(found.hits[:, 0] / found.points)) == pytest.approx((1 / 2 + 3 / 4 + 1) / 3)
    # the longer side of the image is longer than that of the box: at the same alpha all are hits
    image = pck(predicted, np.broadcast_to([7.0, 5.0], (3, 4, 2)), valid, np.array([100, 100, 100]), (0.1,))
    assert image.hits[:, 0].tolist() == [2, 4, 1]


def test_distances_are_those_of_the_original_image():
    # 224 x 224 pixels from an original of 448 x 112: x is doubled, y halved
    true, moved = np.zeros((1, 2, 2)), np.array([[[5.0, 0], [0, 5.0]]])
    scale = np.array([[448 / 224, 112 / 224]])
    for length, hits in ((24.9, 0), (25.0, 1), (99.9, 1), (100.0, 2)):
        assert pck(moved, true, np.ones((1, 2), bool), np.array([length]), (0.1,), scale).hits.item() == hits
    original = pck(moved * scale, true, np.ones((1, 2), bool), np.array([25.0]), (0.1,))
    assert original.hits.item() == 1


def test_nonsense_is_refused_by_pck():
    points, valid = np.zeros((2, 3, 2)), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"valid \(3, 2\).*do not belong together"):
        pck(points, points, valid.T, np.ones(2), (0.1,))
    with pytest.raises(ValueError, match=r"length of pair 1 is 0\.0"):
        pck(points, points, valid, np.array([1, 0]), (0.1,))


def test_masks_of_many_sizes_are_torchs_one_by_one():
    scores = normal(5, 3, 4, 6)
    sizes, canvas = np.array([[21, 20], [40, 33], [7, 50], [3, 4], [2, 3]]), (40, 50)
    got = np.asarray(predict_padded(jnp.asarray(scores), jnp.asarray(sizes), canvas))
    assert got.shape == (5, *canvas)
    for image, (height, width), predicted in zip(scores, sizes, got, strict=True):
        batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
        want = interpolate(batch, (height, width), mode="bilinear", align_corners=False)[0]
        np.testing.assert_array_equal(predicted[:height, :width], want.argmax(dim=0).numpy())
    # one size only: the same as the other program
    np.testing.assert_array_equal(predict_padded(jnp.asarray(scores), jnp.full((5, 2), 40), (40, 40)), predict_pixels(scores, (40, 40)))
