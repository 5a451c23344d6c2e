"""The data of a study from arrays: parts, labels and views as those of folders, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.datasets import base, images, layouts, pairs
from experiments.datasets.arrays import array_data
from experiments.datasets.base import DataSize
from experiments.datasets.folders import Folders
from tests.conftest import SHARED
from tests.experiments.tiny_folders import SIZE, folder_data, write_folders

TRAIN, TEST = 40, 12
SHARED_SIZES = ("train", "val", "test", "pairs", "calibration", "analysis_images", "gallery")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))


def pixels(count: int, seed: int = 0, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng((seed, count)).integers(0, 256, (count, height, width, 3), np.uint8)


def labels(count: int, classes: int = 4) -> np.ndarray:
    """Sorted by class, as folders are listed."""
    return np.sort(np.arange(count) % classes)


def parts(**changes: Any) -> dict[str, Any]:
    return {"train": (pixels(TRAIN), labels(TRAIN)), "test": (pixels(TEST, 1), labels(TEST)), **changes}


def test_arrays_become_the_parts_of_a_study():
    data = array_data(parts(), DataSize(), seed=0)
    assert {name: len(part.images) for name, part in data.parts.items()} == {
        **{"train": 35, "val": 5, "test": 12, "first": 12, "second": 12},
    }
    assert data.labelled
    assert data.classes == ("0", "1", "2", "3")
    assert (np.bincount(data.labels["val"], minlength=4) >= 1).all(), "an eighth of every class is chosen on"
    assert (data.masks, data.keypoints) == (None, None)
    assert {name: data.size[name] for name in SHARED_SIZES} == {
        **{"train": 35, "val": 5, "test": 12, "pairs": 12, "calibration": 35, "analysis_images": 12, "gallery": 12},
    }
    assert data.parts["test"].patch_images == 12
    assert data.title == "arrays"
    assert array_data(parts(), DataSize(), 0, title="digits").title == "digits"


def test_images_keep_their_labels_and_no_image_is_in_two_parts():
    data = array_data(parts(), DataSize(), seed=3)
    original = {image.tobytes(): int(label) for array, entries in parts().values() for image, label in zip(array, entries, strict=True)}
    placed = [image.tobytes() for part in ("train", "val", "test") for image in data.parts[part].images]
    assert sorted(placed) == sorted(original)
    assert [original[image] for image in placed] == np.concatenate([data.labels[part] for part in ("train", "val", "test")]).tolist()


def test_the_part_val_is_used_where_it_is_given():
    data = array_data(parts(val=(pixels(8, 2), labels(8))), DataSize(), seed=0)
    assert {image.tobytes() for image in data.parts["val"].images} == {image.tobytes() for image in pixels(8, 2)}
    assert len(data.parts["train"].images) == TRAIN


@given(seed=st.integers(0, 2**31), requested=st.sampled_from([DataSize(), DataSize(train=12, val=4, test=6, pairs=3, gallery=2)]))
def test_arrays_of_a_class_folder_are_the_parts_of_the_class_folder(tmp_path_factory, seed, requested):
    folders = listed_folders(tmp_path_factory)
    from_folders = folder_data(folders, requested, 16, seed)
    listed = {"train": layouts.image_folders(folders.images / "train"), "test": layouts.image_folders(folders.images / "val")}
    decoded = {part: (images.load(members.paths, 16, "crop")[0], members.labels) for part, members in listed.items()}
    data = array_data(decoded, requested, seed, classes=listed["train"].classes)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(data.parts[part].images, from_folders.parts[part].images)
        np.testing.assert_array_equal(data.labels[part], from_folders.labels[part])
        assert data.parts[part].patch_images == from_folders.parts[part].patch_images
    assert data.classes == from_folders.classes
    assert {name: data.size[name] for name in SHARED_SIZES} == {name: from_folders.size[name] for name in SHARED_SIZES}


def listed_folders(factory: pytest.TempPathFactory, made: list[Folders] = []) -> Folders:  # noqa: B006
    """The same folders for all examples of a property."""
    if not made:
        made.append(Folders(write_folders(factory.mktemp("folders")).images))
    return made[0]


def test_arrays_of_real_photographs_are_the_parts_of_their_folder():
    root = SHARED / "data" / "photos"
    if not root.exists():
        pytest.skip(f"needs the photographs beside the checkout ({root})")
    size = DataSize(train=20, val=20, test=20, pairs=3, calibration=4, analysis_images=4, gallery=4)
    listed = {part: layouts.image_folders(root / folder) for part, folder in (("train", "train"), ("test", "val"))}
    decoded = {part: (images.load(members.paths, 16, "crop")[0], members.labels) for part, members in listed.items()}
    from_folders, data = folder_data(Folders(root), size, 16, 0), array_data(decoded, size, 0, listed["train"].classes)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(data.parts[part].images, from_folders.parts[part].images)
        np.testing.assert_array_equal(data.labels[part], from_folders.labels[part])


def test_images_without_labels_have_no_classes():
    bare = array_data({"train": pixels(TRAIN), "test": pixels(TEST, 1)}, DataSize(), seed=0)
    without = array_data({"train": (pixels(TRAIN), None), "test": (pixels(TEST, 1), None)}, DataSize(), seed=0)
    assert not bare.labelled
    assert (bare.labels, bare.classes) == ({}, ())
    assert bare.key == without.key != array_data(parts(), DataSize(), seed=0).key


def test_labels_that_are_not_counted_from_zero_get_their_position():
    """Unless classes are named: then labels index the names."""
    offset = {name: (array, 10 * entries + 5) for name, (array, entries) in parts().items()}
    data = array_data(offset, DataSize(), seed=0)
    assert data.classes == ("5", "15", "25", "35")
    np.testing.assert_array_equal(data.labels["test"], array_data(parts(), DataSize(), seed=0).labels["test"])
    named = array_data(parts(), DataSize(), seed=0, classes=[*"abcde"])
    assert named.classes == (*"abcde",)
    np.testing.assert_array_equal(named.labels["test"], data.labels["test"])


def test_views_are_of_test_images_at_their_own_size():
    wide = {"train": pixels(TRAIN, height=16, width=24), "test": np.full((TEST, 16, 24, 3), 200, np.uint8)}
    data = array_data(wide, DataSize(pairs=5, analysis_images=2, gallery=3), seed=0)
    assert data.parts["first"].images.shape == (5, 16, 16, 3)
    assert data.parts["first"].images.std(axis=(1, 2)).max() == 0, "views of one colour"
    assert data.parts["test"].patch_images == 3
    assert len(data.analysis_images) == 2
    assert data.analysis_images.shape[1:3] == (16, 24)


def test_the_key_holds_everything_that_data_are_made_of(monkeypatch):
    def key(seed: int = 0, requested: DataSize = DataSize(), **changes: Any) -> str:  # noqa: B008
        return json.dumps(array_data(parts(**changes), requested, seed).key)

    pixel = pixels(TEST, 1)
    pixel[5, 3, 3, 1] ^= 1
    swapped = labels(TEST)[::-1].copy()
    keys = [key(), key(seed=1), key(requested=DataSize(gallery=3)), key(test=(pixel, labels(TEST))), key(test=(pixels(TEST, 1), swapped))]
    keys.append(json.dumps(array_data(parts(), DataSize(), 0, classes=[*"abcd"]).key))
    for table, entry in ((base._FIRST_IDS, "train"), (base._FIRST_IDS, "first")):
        with monkeypatch.context() as patch:
            patch.setitem(table, entry, 7)
            keys.append(key())
    monkeypatch.setattr(pairs, "_overlap", lambda first, second: 0.0)  # so that the second view is moved onto the first
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert array_data(parts(), DataSize(), 0, title="other").key == array_data(parts(), DataSize(), 0).key


def test_images_in_a_file_are_read_like_those_in_memory(tmp_path: Path):
    np.save(tmp_path / "train.npy", pixels(TRAIN))
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    assert array_data(parts(train=(mapped, labels(TRAIN))), DataSize(), 0).key == array_data(parts(), DataSize(), 0).key


FLOATS = pixels(TRAIN) / 255
FEW = pixels(TRAIN)[:3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": pixels(8)}, 'unknown part "valid"; parts are train, val and test'),
        ({"train": (pixels(TRAIN), labels(TRAIN), 3)}, r"part train is a tuple of 3; give \(images, labels\)"),
        ({"train": (FLOATS, labels(TRAIN))}, r"float64 from 0 to 1, not uint8.*np\.round\(255 \* images\)\.astype"),
        ({"train": (255 * FLOATS, labels(TRAIN))}, r"float64 from 0 to 255, not.*: np\.round\(images\)\.astype"),
        ({"train": (FLOATS * 4 - 2, labels(TRAIN))}, r"from -2 to 2, not.*undo the normalisation.*images \* std \+ mean"),
        ({"train": (pixels(TRAIN).astype(int), labels(TRAIN))}, r"int64 from 0 to 255, not.*np\.round\(images\)\.astype"),
        ({"train": (pixels(TRAIN).astype(int) * 257, labels(TRAIN))}, r"from 0 to 65535, not.*scale them to 0 to 255"),
        ({"train": (pixels(TRAIN).transpose(0, 3, 1, 2), labels(TRAIN))}, r"\(40, 3, 16, 16\), not.*images\.transpose\(0, 2, 3, 1\)"),
        ({"train": (pixels(TRAIN)[..., 0], labels(TRAIN))}, r"shape \(40, 16, 16\).*np\.repeat\(images\[\.\.\., None\], 3"),
        ({"train": (pixels(TRAIN)[..., :1], labels(TRAIN))}, r"np\.repeat\(images, 3, axis=-1\)"),
        ({"train": (np.pad(pixels(TRAIN), [(0, 0)] * 3 + [(0, 1)]), labels(TRAIN))}, r"images\[\.\.\., :3\]"),
        ({"train": (pixels(TRAIN)[:, :0], labels(TRAIN))}, r"shape \(40, 0, 16, 3\)"),
        ({"train": ([np.zeros((4, 4, 3)), np.zeros((5, 5, 3))], [0, 1])}, "images of part train are of different sizes"),
        ({"test": (pixels(TEST, height=8), labels(TEST))}, "part test has images of 8x16 pixels, train of 16x16; bring all to one size"),
        ({"test": (pixels(1), [0])}, r"part test has too few images \(1\); give at least 2"),
        ({"test": pixels(TEST)}, "part test has no labels, train has; give labels for all parts or for none"),
        ({"test": (pixels(TEST), labels(TEST - 1))}, r"labels of part test have the shape \(11,\), for 12 images"),
        ({"test": (pixels(TEST), np.eye(4)[labels(TEST)])}, r"shape \(12, 4\).*labels\.argmax\(axis=1\)"),
        ({"test": (pixels(TEST), labels(TEST)[:, None])}, r"shape \(12, 1\).*labels\[:, 0\]"),
        ({"test": (pixels(TEST), labels(TEST) / 1)}, r"labels of part test are float64, not integers; convert them: labels\.astype\(int\)"),
        (
            {"test": (pixels(TEST), labels(TEST).astype(str))},
            r"labels of part test are strings.*labels = \[classes\.index\(label\) for label in labels\]",
        ),
        ({"test": (pixels(TEST), labels(TEST) - 1)}, "a label of part test is -1; count classes from 0"),
        ({"test": (pixels(TEST), labels(TEST) + 3)}, "part test has images of class 4, 5, 6, train has none of them"),
        ({"train": (pixels(TRAIN), labels(TRAIN, 1))}, "all train labels are 0: a probe of one class is always right"),
        ({"train": (FEW, labels(3, 2)), "test": (FEW, labels(3, 2))}, r'array "train" has too few images for part val \(1 of at least 2\)'),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        array_data(parts(**change), DataSize(), seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": {"train": pixels(8)}}, "part test is missing, there is train; give train and test"),
        ({"parts": {}}, "part train is missing, there is none"),
        ({"classes": ["a", "b", "c"]}, "a label is 3, but 3 classes have labels 0 to 2; name all, counted from 0"),
        ({"classes": ["a", "b", "a", "c"]}, "classes name a twice"),
        ({"classes": ["a"], "parts": {"train": pixels(8), "test": pixels(8)}}, "1 classes are given and no labels"),
        ({"requested": DataSize(test=99)}, 'test is 99, but the array "test" has 12 images for it; lower requested.test'),
        ({"requested": DataSize(val=39)}, 'val is 39, but the array "train" has 38 images for it; lower requested.val'),
        ({"requested": DataSize(train=2)}, r"none of the 2 images of part train is of .*; raise requested\.train"),
        ({"requested": DataSize(pairs=13)}, r"pairs \(13\) is more than test \(12\); lower it"),
        ({"requested": DataSize(test=4, gallery=5)}, r"gallery \(5\) is more than test \(4\); lower it"),
    ],
)
def test_wrong_requests_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        array_data(**({"parts": parts(), "requested": DataSize(), "seed": 0} | arguments))


def test_numbers_of_masks_and_keypoints_mean_nothing_to_arrays():
    data = array_data(parts(), dataclasses.replace(SIZE, train=None), seed=0)
    assert (data.size["segmentation"], data.size["segmentation_test"], data.size["keypoints"]) == (0, 0, 0)
