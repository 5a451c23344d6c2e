"""The data of a study from digit scenes."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.datasets import base
from experiments.datasets import scenes as scenes_module
from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.digits import digit_scenes
from experiments.datasets.scenes import material, pairs, scenes

SIZE = DataSize(
    train=20, val=8, test=12, pairs=4, segmentation=6, segmentation_test=10, calibration=8, analysis_images=4, gallery=5, sink_train=10,
    sink_test=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> StudyData:
    return digit_scenes(SIZE, 3)


def test_each_part_has_the_scenes_of_the_split_of_its_name(data: StudyData) -> None:
    for part, count in (("train", 20), ("val", 8), ("test", 12)):
        expected = scenes(part, count, 3)
        np.testing.assert_array_equal(data.parts[part].images, expected.images)
        np.testing.assert_array_equal(data.labels[part], expected.labels)
    views = pairs("test", 4, 3)
    np.testing.assert_array_equal(data.parts["first"].images, views.first)
    np.testing.assert_array_equal(data.parts["second"].images, views.second)
    np.testing.assert_array_equal(data.views.warp, views.warp)
    np.testing.assert_array_equal(data.views.pixels["digit_patches"], views.digit)


def test_scenes_and_pairs_of_one_digit_are_no_independent_units(data: StudyData) -> None:
    """The number of a scene's digit names its class; 1,280 scenes show fewer digits than the split has."""
    classes = np.asarray(material("test").classes)
    for part, count in (("test", 12), ("first", 4)):
        assert data.shown[part].unit == "digits"
        assert data.shown[part].number.shape == (count, 1)
    np.testing.assert_array_equal(classes[data.shown["test"].number[:, 0]], data.labels["test"])
    assert len(np.unique(scenes("test", 1280, 0).number)) == 471 < material("test").digit_count


def test_pairs_with_keypoints_show_two_images(data: StudyData) -> None:
    source, target = np.array([0, 0, 1]), np.array([1, 2, 2])
    points = dataclasses.replace(data, keypoints=SimpleNamespace(source=source, target=target))
    assert points.shown["keypoints"].number.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert points.shown["test"] is data.shown["test"]


def test_patches_are_kept_of_all_images_that_are_read_patch_by_patch(data: StudyData) -> None:
    patch_images = {name: part.patch_images for name, part in data.parts.items()}
    assert patch_images == {"train": 6, "val": 0, "test": 10, "first": 4, "second": 4}
    np.testing.assert_array_equal(data.analysis_images, data.parts["test"].images[:4])


def test_masks_belong_to_the_leading_images_of_their_parts(data: StudyData) -> None:
    assert (data.masks.train_part, data.masks.test_part) == ("train", "test")
    np.testing.assert_array_equal(data.masks.train, scenes("train", 6, 3).masks)
    np.testing.assert_array_equal(data.masks.test, scenes("test", 10, 3).masks)
    assert data.masks.sizes.tolist() == [[64, 64]] * 10
    assert len(data.masks.classes) == 11


def test_the_key_holds_the_seed_and_every_number_of_images(data: StudyData) -> None:
    key = json.loads(json.dumps(data.key))
    assert key["seed"] == 3
    assert {name: key[name] for name in vars(SIZE)} == vars(SIZE)


def test_the_key_holds_the_constants_that_random_draws_depend_on(data: StudyData, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that changes is another study: cells of the old one are not read again."""
    assert set(data.key["first_ids"]) == set(data.parts)
    for table, entry in ((base._FIRST_IDS, "second"), (scenes_module._FOLDS, "val")):
        with monkeypatch.context() as patch:
            patch.setitem(table, entry, 7)
            assert digit_scenes(SIZE, 3).key != data.key, entry


def test_more_masks_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"segmentation \(9\) is more than train \(8\)"):
        digit_scenes(DataSize(train=8, segmentation=9), 0)
