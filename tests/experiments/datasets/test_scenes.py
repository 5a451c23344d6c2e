"""Digit scenes: addressed by index, nothing shared between the test split and the others, exact masks and correspondences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits, load_sample_images

from experiments.datasets.scenes import DIGITS, SIZE, TILE, ScenePairs, Scenes, material, pairs, scenes, training_views


@pytest.fixture(scope="module")
def pretrain() -> Scenes:
    return scenes("pretrain", 96)


@pytest.fixture(scope="module")
def test_pairs() -> ScenePairs:
    return pairs("test", 48)


def test_shapes_and_dtypes_are_as_documented(pretrain: Scenes, test_pairs: ScenePairs) -> None:
    assert (pretrain.images.shape, pretrain.images.dtype) == ((96, SIZE, SIZE, 3), np.uint8)
    assert (pretrain.labels.shape, pretrain.labels.dtype) == ((96,), np.int32)
    assert (pretrain.masks.shape, pretrain.masks.dtype) == ((96, SIZE, SIZE), np.uint8)
    assert test_pairs.first.shape == test_pairs.second.shape == (48, SIZE, SIZE, 3)
    assert (test_pairs.warp.shape, test_pairs.warp.dtype) == ((48, 2, 3), np.float32)
    assert (test_pairs.digit.shape, test_pairs.digit.dtype) == ((48, SIZE, SIZE), np.bool_)


@pytest.mark.parametrize(("start", "count"), [(0, 5), (60, 9), (95, 1), (7, 0)])
def test_a_scene_does_not_depend_on_how_many_are_rendered(pretrain: Scenes, start: int, count: int) -> None:
    some = scenes("pretrain", count, start=start)
    for part, whole in zip(some, pretrain, strict=True):
        np.testing.assert_array_equal(part, whole[start : start + count])


def test_seed_and_split_change_the_scenes(pretrain: Scenes) -> None:
    for other in (scenes("pretrain", 8, seed=1), scenes("test", 8), scenes("train", 8), scenes("val", 8)):
        assert (other.images != pretrain.images[:8]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(("split", "number"), [("pretrain", 0), ("test", 1), ("train", 2), ("val", 3)])
def test_a_scene_is_drawn_from_its_seed_its_split_and_its_number(split: str, number: int) -> None:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), number), 7)
    digit_key = jax.random.split(jax.random.split(key)[0], 4)[0]
    drawn = jax.random.randint(digit_key, (), 0, len(DIGITS[split]))
    assert scenes(split, 1, seed=5, start=7).labels == material(split).classes[drawn]


def test_train_val_and_test_share_no_digit_and_pretraining_sees_no_test_digit() -> None:
    assert set(DIGITS["pretrain"]) | set(DIGITS["test"]) == set(range(len(load_digits().target)))
    assert not set(DIGITS["pretrain"]) & set(DIGITS["test"])
    assert not set(DIGITS["train"]) & set(DIGITS["val"])
    assert set(DIGITS["train"]) | set(DIGITS["val"]) == set(DIGITS["pretrain"])
    assert material("test").digit_count == len(DIGITS["test"])
    np.testing.assert_array_equal(material("test").classes[: len(DIGITS["test"])], load_digits().target[1297:])


def test_the_test_split_shares_no_photograph_column_with_the_others() -> None:
    photos = load_sample_images().images
    for split, test in (("pretrain", False), ("train", False), ("val", False), ("test", True)):
        grounds, extents = np.asarray(material(split).grounds), np.asarray(material(split).extents)
        for i, photo in enumerate(photos):
            cut = round(0.6 * photo.shape[1])
            columns = photo[:, cut:] if test else photo[:, :cut]
            (height, width), half = extents[2 * i], extents[2 * i + 1]
            np.testing.assert_array_equal(grounds[2 * i, :height, :width], columns)
            # the ground at half scale is made of these columns only: its mean is theirs
            small = grounds[2 * i + 1, : half[0], : half[1]]
            np.testing.assert_allclose(small.mean(), columns[: 2 * half[0], : 2 * half[1]].mean(), atol=0.5)
            assert (extents[2 * i : 2 * i + 2] >= TILE).all()


def test_labels_name_the_digit_that_fills_the_mask(pretrain: Scenes) -> None:
    assert set(np.unique(pretrain.masks)) <= set(range(11))
    for mask, label in zip(pretrain.masks, pretrain.labels, strict=True):
        counts = np.bincount(mask.ravel(), minlength=11)[1:]
        assert counts.argmax() == label
    assert len(np.unique(pretrain.labels)) == 10


def test_masks_mark_the_bright_pixels(pretrain: Scenes) -> None:
    brightness = pretrain.images.max(axis=-1).astype(float)
    inside = np.asarray([b[m > 0].mean() for b, m in zip(brightness, pretrain.masks, strict=True)])
    outside = np.asarray([b[m == 0].mean() for b, m in zip(brightness, pretrain.masks, strict=True)])
    assert (inside > outside + 40).all()


def test_about_half_of_the_scenes_have_a_distractor(pretrain: Scenes) -> None:
    def has_other(mask: np.ndarray, label: int) -> bool:
        return bool(set(np.unique(mask)) - {0, 1 + label})

    share = np.mean([has_other(m, y) for m, y in zip(pretrain.masks, pretrain.labels, strict=True)])
    # a distractor of the main digit's class, or one outside of the image, cannot be counted here
    assert 0.25 < share < 0.6


def test_the_warp_carries_the_first_view_onto_the_second(test_pairs: ScenePairs) -> None:
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    points = np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
    right, wrong = [], []
    for first, second, warp in zip(test_pairs.first, test_pairs.second, test_pairs.warp, strict=True):
        warped = warp.astype(float) @ points
        visible = ((warped > 1) & (warped < SIZE - 1)).all(axis=0)
        colours = np.stack([map_coordinates(c, warped[::-1] - 0.5, order=1) for c in second.astype(float).transpose(2, 0, 1)])
        flat = first.reshape(-1, 3).T.astype(float)
        right.append(np.abs(colours - flat)[:, visible].mean())
        wrong.append(np.abs(second.reshape(-1, 3).T.astype(float) - flat)[:, visible].mean())
    assert visible.mean() > 0.5
    assert np.mean(right) < 2.0, "more than interpolation error, in 0..255"
    assert np.max(right) < 6.0
    assert np.mean(wrong) > 5 * np.mean(right)


def test_the_main_digit_of_a_pair_is_marked_and_near_the_centre(test_pairs: ScenePairs) -> None:
    brightness = test_pairs.first.max(axis=-1).astype(float)
    for image, digit in zip(brightness, test_pairs.digit, strict=True):
        rows, columns = np.nonzero(digit)
        assert len(rows) > 60
        assert np.hypot(rows.mean() - SIZE / 2, columns.mean() - SIZE / 2) < 20
        assert image[digit].mean() > image[~digit].mean() + 40


def test_training_views_share_the_digit_and_not_the_ground() -> None:
    key, source = jax.random.key(0), material("pretrain")
    render = jax.jit(training_views, static_argnums=4)
    views = np.asarray(render(source, key, jnp.arange(6), 0.0, 48))
    assert views.shape == (6, 2, 48, 48, 3)
    assert views.dtype == np.uint8
    # at strength 0 the ground is one colour, and the two views of a scene have the digit at the same position
    inside = np.asarray([[np.ptp(v[:4, :4], axis=(0, 1)).max() for v in pair] for pair in views])
    assert np.median(inside) <= 1
    assert (views[:, 0] != views[:, 1]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(np.asarray(render(source, key, jnp.arange(3, 9), 0.0, 48))[:3], views[3:], "in another slot")
    np.testing.assert_array_equal(np.asarray(render(source, key, jnp.arange(3), 0.0, 48)), views[:3], "beside fewer")


@pytest.mark.parametrize("make", [scenes, pairs])
def test_an_unknown_split_is_refused_naming_the_splits(make) -> None:
    with pytest.raises(ValueError, match=r'unknown split "valid".*pretrain, train, val, test'):
        make("valid", 2)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        scenes("pretrain", -1)
