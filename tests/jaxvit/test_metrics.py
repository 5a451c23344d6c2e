"""Metrics against plain loops over their definitions, torch and hand-made numbers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

from jaxvit.inference import mean_scores, ratio_scores, value
from jaxvit.metrics import (
    class_overlap,
    confusion,
    correspondence,
    match_keypoints,
    mean_iou,
    patch_at,
    pck,
    reads_patches,
    recall_at_1,
    top1,
)

GRID, PATCH = (4, 5), 14
HEIGHT, WIDTH = GRID[0] * PATCH, GRID[1] * PATCH
IDENTITY = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
FLIP = np.array([[-1, 0, WIDTH], [0, 1, 0]], np.float32)
CROP = np.array([[1.5, 0, -20.3], [0, 1.5, -11.7]], np.float32)
TURN = np.array([[0.8, -0.6, 17.1], [0.6, 0.8, -9.2]], np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return a @ b / np.sqrt((a @ a) * (b @ b))


def centre(patch: int) -> np.ndarray:
    row, column = divmod(patch, GRID[1])
    return np.array([(column + 0.5) * PATCH, (row + 0.5) * PATCH])


def looped_correspondence(first, second, warp, tolerance, mask, usable=(range(20), range(20))):
    hits = cycles = points = 0
    for i in usable[0]:
        x, y = warp @ np.array([*centre(i), 1.0])
        if not (mask[i] and 0 <= x < WIDTH and 0 <= y < HEIGHT and GRID[1] * (y // PATCH) + x // PATCH in usable[1]):
            continue
        points += 1
        match = max(usable[1], key=lambda j: cosine(first[i], second[j]))
        back = max(usable[0], key=lambda j: cosine(first[j], second[match]))
        hits += np.hypot(*(centre(match) - (x, y))) <= tolerance * PATCH
        cycles += np.hypot(*(centre(back) - centre(i))) <= tolerance * PATCH
    return hits, cycles, points


def counts(matches) -> np.ndarray:
    """Hits, cycles and points [3, pairs]."""
    return np.stack([matches.hits, matches.cycles, matches.points])


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_correspondence_is_its_definition(tolerance):
    warps = np.stack([IDENTITY, FLIP, CROP, TURN])
    first, second = normal(4, 20, 3), normal(4, 20, 3, seed=1)
    second[:2] = first[:2] + 0.7 * second[:2]
    mask = np.random.default_rng(2).random((4, 20)) < 0.8
    matches = correspondence(jnp.asarray(first), jnp.asarray(second), jnp.asarray(warps), GRID, PATCH, tolerance, jnp.asarray(mask))
    want = [looped_correspondence(*case, tolerance, m) for *case, m in zip(first, second, warps, mask, strict=True)]
    np.testing.assert_array_equal(counts(matches).T, want)
    assert 0 < sum(w[0] for w in want) < sum(w[2] for w in want) < mask.sum()


def test_patches_that_take_no_part_are_no_points_no_neighbours_and_no_places():
    warps = np.stack([IDENTITY, FLIP, CROP, TURN])
    first, second = normal(4, 20, 3), normal(4, 20, 3, seed=1)
    second[:2] = first[:2] + 0.7 * second[:2]
    usable = np.random.default_rng(3).random((2, 4, 20)) < 0.7
    matches = correspondence(first, second, warps, GRID, PATCH, usable=(usable[0], usable[1]))
    parts = [(np.flatnonzero(a), np.flatnonzero(b)) for a, b in zip(*usable, strict=True)]
    cases = zip(first, second, warps, strict=True)
    want = [looped_correspondence(*case, 1.0, np.ones(20), part) for case, part in zip(cases, parts, strict=True)]
    np.testing.assert_array_equal(counts(matches).T, want)
    first[~usable[0]], second[~usable[1]] = 50, 50
    np.testing.assert_array_equal(counts(correspondence(first, second, warps, GRID, PATCH, usable=(usable[0], usable[1]))).T, want)


def test_a_mirrored_view_is_matched_everywhere():
    first = normal(1, *GRID, 8)
    second = first[:, :, ::-1]
    flat = [jnp.asarray(x.reshape(1, -1, 8)) for x in (first, second)]
    np.testing.assert_array_equal(counts(correspondence(*flat, jnp.asarray(FLIP)[None], GRID, PATCH, tolerance=0.0)), [[20], [20], [20]])
    # under the identity only the middle column is in the right place
    assert correspondence(*flat, jnp.asarray(IDENTITY)[None], GRID, PATCH, tolerance=0.5).hits.item() == GRID[0]


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_padded_pairs_have_no_points(valid):
    first, second = jnp.asarray(normal(4, 20, 3)), jnp.asarray(normal(4, 20, 3, seed=1))
    warps = jnp.asarray(np.stack([IDENTITY, FLIP, CROP, TURN]))
    all_pairs = counts(correspondence(first, second, warps, GRID, PATCH))
    valid_pairs = counts(correspondence(first, second, warps, GRID, PATCH, valid=jnp.asarray(valid)))
    np.testing.assert_array_equal(valid_pairs, all_pairs * np.array(valid))


def test_correspondence_refuses_another_grid():
    with pytest.raises(ValueError, match="grid of 4 x 5"):
        correspondence(jnp.zeros((1, 21, 3)), jnp.zeros((1, 21, 3)), jnp.asarray(IDENTITY)[None], GRID, PATCH)


def test_recall_is_its_definition():
    first, second = normal(40, 6), normal(40, 6, seed=1)
    second = first + 0.8 * second
    want = [max(range(40), key=lambda j: cosine(first[i], second[j])) == i for i in range(40)]
    np.testing.assert_array_equal(recall_at_1(jnp.asarray(first), jnp.asarray(second)), want)
    assert 0.3 < np.mean(want) < 0.95


def test_constant_features_retrieve_at_chance():
    for features in (jnp.zeros((10, 4)), jnp.ones((10, 4))):
        assert recall_at_1(features, features).sum() == 1


@given(st.integers(1, 12))
def test_padding_changes_no_recall(examples):
    first, second = jnp.asarray(normal(12, 3)), jnp.asarray(normal(12, 3, seed=1))
    valid = jnp.arange(12) < examples
    # padding that would be everybody's nearest neighbour
    padded = jnp.where(valid[:, None], second, first[:1])
    got = recall_at_1(first, padded, valid)
    want = [max(range(examples), key=lambda j: cosine(np.asarray(first[i]), np.asarray(second[j]))) == i for i in range(examples)]
    np.testing.assert_array_equal(got, want + [0] * (12 - examples))


def test_top1_counts_valid_examples():
    scores = jnp.asarray([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5], [0.0, 1.0]])
    labels = jnp.asarray([1, 1, 0, 1])
    np.testing.assert_array_equal(top1(scores, labels), [1, 0, 1, 1])
    np.testing.assert_array_equal(top1(scores, labels, jnp.asarray([True, True, True, False])), [1, 0, 1, 0])


def looped_confusion(predicted, target, classes):
    counts = np.zeros((len(target), classes, classes), int)
    for image, *pixel in np.ndindex(target.shape):
        if target[image, *pixel] != 255:
            counts[image, target[image, *pixel], predicted[image, *pixel]] += 1
    return counts


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_confusion_is_its_definition(dtype):
    generator = np.random.default_rng(0)
    target = np.where(generator.random((3, 7, 9)) < 0.2, 255, generator.integers(0, 5, (3, 7, 9))).astype(dtype)
    predicted = generator.integers(0, 5, (3, 7, 9)).astype(dtype)
    want = looped_confusion(predicted, target, 5)
    np.testing.assert_array_equal(confusion(jnp.asarray(predicted), jnp.asarray(target), 5), want)
    valid = np.array([True, False, True])
    got = confusion(jnp.asarray(predicted), jnp.asarray(target), 5, valid=jnp.asarray(valid))
    np.testing.assert_array_equal(got, want * valid[:, None, None])


def test_many_classes_do_not_overflow_bytes():
    labels = jnp.full((1, 2, 2), 200, jnp.uint8)
    assert confusion(labels, labels, 201)[0, 200, 200] == 4


def test_mean_iou_is_its_definition():
    counts = np.random.default_rng(0).integers(0, 9, (2, 4, 4))
    counts[:, 2] = 0
    counts[0, :, 2] = 0  # absent from targets and predictions of the first, predicted but absent in the second
    for matrix, classes in zip(counts, ([0, 1, 3], [0, 1, 2, 3]), strict=True):
        ious = []
        for c in classes:
            both = matrix[c, c]
            ious.append(both / (matrix[c].sum() + matrix[:, c].sum() - both))
        assert mean_iou(matrix) == pytest.approx(np.mean(ious), rel=1e-14)
    np.testing.assert_array_equal(mean_iou(counts), [mean_iou(m) for m in counts])
    assert np.isnan(mean_iou(np.zeros((3, 3))))


@pytest.mark.parametrize("counts", [np.random.default_rng(0).integers(0, 50, (5, 4, 4)), np.diag([3, 0, 2, 0])[None]])
def test_the_mean_iou_and_that_of_every_class_are_those_of_mmsegmentation(counts):
    """Areas as its `intersect_and_union` has them, over pixels written out; classes without any are NaN and left out of the mean."""
    counts[0, :, 1] = counts[0, 1] = 0  # nowhere
    counts[:, 3] = 0  # predicted, but nowhere true
    counts[0, 0, 3] = 4
    label, predicted = np.divmod(np.repeat(np.arange(16), counts.sum(axis=0).ravel()), 4)
    areas = [np.histogram(x, bins=4, range=(0, 3))[0] for x in (predicted[predicted == label], predicted, label)]
    with np.errstate(invalid="ignore"):
        ious = areas[0] / (areas[1] + areas[2] - areas[0])
    overlap = class_overlap(counts).sum(axis=0)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(overlap[:, 0] / overlap[:, 1], ious)
    assert mean_iou(counts.sum(axis=0)) == pytest.approx(np.nanmean(ious), rel=1e-14)
    assert ious[3] == 0


def sampled_by_torch(source: np.ndarray, points: np.ndarray) -> torch.Tensor:
    """grid_sample of the feature map (borders clamped), [pairs, points, width]."""
    grids = torch.from_numpy(source).reshape(-1, *GRID, source.shape[-1]).permute(0, 3, 1, 2)
    places = torch.from_numpy(points / (WIDTH, HEIGHT) * 2 - 1).float()[:, None]
    return grid_sample(grids, places, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0].transpose(1, 2)


def matched_by_torch(source: np.ndarray, target: np.ndarray, points: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
    """The patch with the largest cosine to what is sampled."""
    similarity = torch.cosine_similarity(sampled_by_torch(source, points)[:, :, None], torch.from_numpy(target)[:, None], dim=-1)
    if candidates is not None:
        similarity = similarity.masked_fill(torch.from_numpy(~candidates)[:, None], -2)
    row, column = np.divmod(similarity.argmax(dim=-1).numpy(), GRID[1])
    return (np.stack([column, row], axis=-1) + 0.5) * PATCH


def test_keypoints_are_matched_as_torch_matches_them():
    source, target = normal(3, 20, 6), normal(3, 20, 6, seed=1)
    # places anywhere, on patch borders and centres, in corners and just outside
    points = np.random.default_rng(2).uniform(-3, 3, (3, 40, 2)) + np.random.default_rng(3).uniform(0, (WIDTH, HEIGHT), (3, 40, 2))
    points[0, :6] = [[0, 0], [WIDTH, HEIGHT], [7, 7], [14, 14], [WIDTH, 0], [35, 28]]
    got = np.asarray(match_keypoints(jnp.asarray(source), jnp.asarray(target), jnp.asarray(points), GRID, PATCH))
    want = matched_by_torch(source, target, points)
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(want.reshape(-1, 2), axis=0)) == 20


def test_a_keypoint_at_a_patch_centre_finds_that_patch_wherever_it_went():
    features, order = normal(1, 20, 6), np.random.default_rng(0).permutation(20)
    centres = (np.stack(np.divmod(np.arange(20), GRID[1])[::-1], axis=-1) + 0.5) * PATCH
    moved = 3.0 * features[:, order]  # a length is no matter
    got = match_keypoints(jnp.asarray(features), jnp.asarray(moved), jnp.asarray(centres[None]), GRID, PATCH)
    np.testing.assert_array_equal(got[0], centres[np.argsort(order)])


def test_only_candidates_are_matches_whatever_the_others_hold():
    source, target = normal(3, 20, 6), normal(3, 20, 6, seed=1)
    points = np.random.default_rng(2).uniform(0, (WIDTH, HEIGHT), (3, 40, 2))
    candidates = np.random.default_rng(3).random((3, 20)) < 0.5
    got = match_keypoints(source, np.where(candidates[..., None], target, 99), points, GRID, PATCH, candidates)
    np.testing.assert_array_equal(got, matched_by_torch(source, target, points, candidates))


def test_a_keypoint_reads_the_patches_that_torch_gives_a_weight():
    points = np.random.default_rng(2).uniform(-3, 3, (2, 60, 2)) + np.random.default_rng(3).uniform(0, (WIDTH, HEIGHT), (2, 60, 2))
    weights = sampled_by_torch(np.stack([np.eye(20, dtype=np.float32)] * 2), points).numpy()
    marked = np.random.default_rng(4).random((2, 20)) < 0.2
    clear = ~((weights > 0) & (weights < 1e-6)).any(axis=-1)  # where rounding decides nothing
    want = ((weights > 0) & marked[:, None]).any(axis=-1)
    np.testing.assert_array_equal(np.asarray(reads_patches(marked, points, GRID, PATCH))[clear], want[clear])
    assert 0.2 < want.mean() < 0.9
    assert not reads_patches(np.ones((1, 20), bool)[:, ::-1] & (np.arange(20) == 7), np.array([[[7.0, 7.0]]]), GRID, PATCH).any()


def test_a_point_lies_in_the_patch_around_it():
    points = np.array([[0, 0], [13.9, 0], [14, 0], [69.9, 55.9], [0, 14], [-3, 20], [70, 56], [np.nan, 0]])
    assert np.asarray(patch_at(points, GRID, PATCH))[:-1].tolist() == [0, 0, 1, 19, 5, 5, 19]
    assert 0 <= patch_at(points, GRID, PATCH)[-1] < 20


def test_matching_refuses_another_grid():
    with pytest.raises(ValueError, match="grid of 4 x 5"):
        match_keypoints(jnp.zeros((1, 20, 3)), jnp.zeros((1, 21, 3)), jnp.zeros((1, 2, 2)), GRID, PATCH)


def test_a_hit_lies_within_the_share_of_the_length_border_included():
    true = np.full((1, 4, 2), 50.0)
    predicted = np.add(true, [[[3, 4], [3, 4.0001], [0, -5], [5, 5]]])
    matched = pck(predicted, true, np.ones((1, 4), bool), np.array([50.0]), (0.1, 0.05, 0.2))
    assert matched.points.tolist() == [4]
    assert matched.hits.tolist() == [[2, 0, 4]]
    assert matched.hits.dtype == matched.points.dtype == np.float64


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
    matched = pck(predicted, np.broadcast_to([7.0, 5.0], (3, 4, 2)), valid, np.array([10, 20, 30]), (0.1,))
    assert matched.hits[:, 0].tolist() == [1, 3, 1]
    assert matched.points.tolist() == [2, 4, 1]
    assert value(ratio_scores(matched.hits[:, 0], matched.points)) == pytest.approx(5 / 7)
    assert value(mean_scores(matched.hits[:, 0] / matched.points)) == pytest.approx((1 / 2 + 3 / 4 + 1) / 3)
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
