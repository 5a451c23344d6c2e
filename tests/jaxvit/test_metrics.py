"""Metrics against plain loops over their definitions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvit.metrics import confusion, correspondence, mean_iou, recall_at_1, top1

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


def looped_correspondence(first, second, warp, tolerance, mask):
    hits = cycles = points = 0
    for i in range(len(first)):
        x, y = warp @ np.array([*centre(i), 1.0])
        if not (mask[i] and 0 <= x < WIDTH and 0 <= y < HEIGHT):
            continue
        points += 1
        there = max(range(len(second)), key=lambda j: cosine(first[i], second[j]))
        back = max(range(len(first)), key=lambda j: cosine(first[j], second[there]))
        hits += np.hypot(*(centre(there) - (x, y))) <= tolerance * PATCH
        cycles += np.hypot(*(centre(back) - centre(i))) <= tolerance * PATCH
    return hits, cycles, points


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_correspondence_is_its_definition(tolerance):
    warps = np.stack([IDENTITY, FLIP, CROP, TURN])
    first, second = normal(4, 20, 3), normal(4, 20, 3, seed=1)
    second[:2] = first[:2] + 0.7 * second[:2]
    mask = np.random.default_rng(2).random((4, 20)) < 0.8
    got = correspondence(jnp.asarray(first), jnp.asarray(second), jnp.asarray(warps), GRID, PATCH, tolerance, jnp.asarray(mask))
    want = [looped_correspondence(*case, tolerance, m) for *case, m in zip(first, second, warps, mask, strict=True)]
    np.testing.assert_array_equal(np.stack(got, axis=1), want)
    assert 0 < sum(w[0] for w in want) < sum(w[2] for w in want) < mask.sum()


def test_a_mirrored_view_is_matched_everywhere():
    first = normal(1, *GRID, 8)
    second = first[:, :, ::-1]
    flat = [jnp.asarray(x.reshape(1, -1, 8)) for x in (first, second)]
    assert [x.item() for x in correspondence(*flat, jnp.asarray(FLIP)[None], GRID, PATCH, tolerance=0.0)] == [20, 20, 20]
    # read as an identity, only the middle column is where it should be
    assert correspondence(*flat, jnp.asarray(IDENTITY)[None], GRID, PATCH, tolerance=0.5).hits.item() == GRID[0]


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_padded_pairs_have_no_points(valid):
    first, second = jnp.asarray(normal(4, 20, 3)), jnp.asarray(normal(4, 20, 3, seed=1))
    warps = jnp.asarray(np.stack([IDENTITY, FLIP, CROP, TURN]))
    whole = np.stack(correspondence(first, second, warps, GRID, PATCH))
    kept = np.stack(correspondence(first, second, warps, GRID, PATCH, valid=jnp.asarray(valid)))
    np.testing.assert_array_equal(kept, whole * np.array(valid))


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
def test_padding_changes_no_recall(kept):
    first, second = jnp.asarray(normal(12, 3)), jnp.asarray(normal(12, 3, seed=1))
    valid = jnp.arange(12) < kept
    # padding that would be everybody's nearest neighbour
    padded = jnp.where(valid[:, None], second, first[:1])
    got = recall_at_1(first, padded, valid)
    want = [max(range(kept), key=lambda j: cosine(np.asarray(first[i]), np.asarray(second[j]))) == i for i in range(kept)]
    np.testing.assert_array_equal(got, want + [0] * (12 - kept))


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
