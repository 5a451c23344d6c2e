"""The data of a study from folders: classes, masks, keypoints and views, and how images are divided into parts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.datasets import base, images, pairs
from experiments.datasets.base import DataSize
from experiments.datasets.folders import Folders, prepared_folders
from tests.conftest import SHARED
from tests.experiments.tiny_folders import SIZE, folder_data, write_folders, write_picture


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))


def test_folders_become_the_parts_of_a_study(folders):
    data = folder_data(folders, SIZE, 16, seed=0)
    assert {name: len(part.images) for name, part in data.parts.items()} == {
        **{"train": 12, "val": 4, "test": 6, "first": 4, "second": 4},
        **{"segmentation_train": 3, "segmentation_test": 2, "keypoints": 3},
    }
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert np.bincount(data.labels["train"]).tolist() == [3, 3, 3, 3], "classes are even"
    assert data.masks.test.shape == (2, 32, 40), "test masks keep their own resolution"
    assert set(np.unique(data.masks.train)) == {0, 1, 255}
    assert data.masks.train.shape == (3, 16, 16)
    # stretched from 40 x 32 to 16 x 16
    np.testing.assert_allclose(data.keypoints.source_points[0], [[2, 4], [8, 8]])
    np.testing.assert_allclose(data.keypoints.target_points[0], [[4, 4], [12, 8]])
    np.testing.assert_allclose(data.keypoints.scale, [[2.5, 2], [2.5, 2]])
    assert data.keypoints.box.tolist() == [28, 28]
    assert data.keypoints.size.tolist() == [40, 40]


def test_train_and_val_come_from_the_folder_train_and_test_from_the_folder_val(folders):
    from_train = folder_data(Folders(folders.images / "train"), DataSize(pairs=2, calibration=2, analysis_images=2, gallery=2), 16, seed=0)
    fitting = {image.tobytes() for part in ("train", "val", "test") for image in from_train.parts[part].images}
    assert len(fitting) == 20
    data = folder_data(folders, SIZE, 16, seed=0)
    sources = {part: [image.tobytes() in fitting for image in data.parts[part].images] for part in ("train", "val", "test")}
    assert all(sources["train"] + sources["val"])
    assert not any(sources["test"])


def test_the_key_follows_content_and_not_place(folders, tmp_path):
    key = folder_data(folders, SIZE, 16, seed=0).key
    json.dumps(key)
    images = tmp_path / "moved"
    shutil.copytree(folders.images, images)
    moved = dataclasses.replace(folders, images=images)
    assert folder_data(moved, SIZE, 16, seed=0).key == key
    assert folder_data(moved, SIZE, 16, seed=1).key != key
    annotation = json.loads((folders.spair / "PairAnnotation/test/000000-x-y:bee.json").read_text())
    spair = tmp_path / "spair"
    shutil.copytree(folders.spair, spair)
    annotation["trg_kps"][0][0] += 1
    (spair / "PairAnnotation/test/000000-x-y:bee.json").write_text(json.dumps(annotation))
    assert folder_data(dataclasses.replace(moved, spair=spair), SIZE, 16, seed=0).key != key, "a keypoint was corrected"
    write_picture(images / "val" / "ant" / "0.png", 12345)
    write_picture(images / "val" / "ant" / "1.png", 12346)
    assert folder_data(moved, SIZE, 16, seed=0).key != key


def test_images_are_the_same_ones_under_every_protocol(folders):
    """So that scores of models that see different protocols are paired; and all but the labelled images is there once."""
    by_protocol = prepared_folders(folders, list(images.PROTOCOLS), SIZE, 16, seed=0)
    plain = folder_data(folders, SIZE, 16, seed=0)
    assert by_protocol["torchvision"].key == plain.key
    assert plain.protocols["labels"] == "crop 16"
    assert "protocol" not in plain.key
    assert len({json.dumps(data.key) for data in by_protocol.values()}) == len(images.PROTOCOLS)
    paths = {path: images.decode(path, 16, "crop")[0].tobytes() for path in sorted(folders.images.rglob("*.png"))}
    order = [next(path for path, content in paths.items() if content == image.tobytes()) for image in plain.parts["test"].images]
    for name, data in by_protocol.items():
        expected = np.stack([images.decode(path, 16, images.PROTOCOLS[name])[0] for path in order])
        np.testing.assert_array_equal(data.parts["test"].images, expected)
        np.testing.assert_array_equal(data.labels["test"], plain.labels["test"])
        assert data.masks is by_protocol["torchvision"].masks
        assert data.parts["first"] is by_protocol["torchvision"].parts["first"]
        assert data.protocols["masks"] == "stretch 16"


def test_the_key_holds_what_random_draws_and_views_are_made_with(folders, monkeypatch):
    """A constant that changes is another study: cells of the old one are not read again."""
    data = folder_data(folders, SIZE, 16, seed=0)
    assert set(data.key["first_ids"]) == set(data.parts)
    with monkeypatch.context() as patch:
        patch.setitem(base._FIRST_IDS, "keypoints", 7)
        assert folder_data(folders, SIZE, 16, seed=0).key != data.key
    monkeypatch.setattr(pairs, "_FREE_DRAWS", 0)
    assert folder_data(folders, SIZE, 16, seed=0).key != data.key, "views are drawn in another way"


def test_every_part_has_its_share_of_uneven_classes(tmp_path):
    for name, count in (("few", 10), ("many", 50)):
        for i in range(count):
            write_picture(tmp_path / "images" / name / f"{i}.png", i + len(name), 8, 8)
    small = DataSize(pairs=2, calibration=2, analysis_images=2, gallery=2)
    data = folder_data(Folders(tmp_path / "images"), small, 8, seed=0)
    for part, few in (("test", 2), ("val", 1), ("train", 7)):
        counts = np.bincount(data.labels[part], minlength=2)
        assert abs(counts[0] - few) <= 1, f"{part}: {counts}"
        assert counts[0] > 0
    with pytest.raises(ValueError, match=r"none of the 2 images of part train is of few; raise --data\.train"):
        folder_data(Folders(tmp_path / "images"), dataclasses.replace(small, train=2), 8, seed=0)


def test_masks_in_plain_folders_and_pairs_of_any_images(folders, tmp_path):
    for name in "abcdefghij":
        write_picture(tmp_path / "images" / f"{name}.jpg", ord(name))
        Image.fromarray(np.full((32, 40), ord(name) % 2, np.uint8)).save(write_picture(tmp_path / "labels" / f"{name}.png", 0))
    plain = Folders(folders.images, views=tmp_path / "images", mask_images=tmp_path / "images", masks=tmp_path / "labels")
    data = folder_data(plain, dataclasses.replace(SIZE, segmentation=99, segmentation_test=99, pairs=9), 16, seed=0)
    assert (len(data.masks.train), len(data.masks.test)) == (8, 2)
    assert len(data.views.warp) == 9, "more than there are test images"
    with pytest.raises(ValueError, match=r"name both: --folders\.mask-images"):
        folder_data(dataclasses.replace(plain, mask_images=None), SIZE, 16, seed=0)


def test_one_folder_is_split_so_that_no_image_is_in_two_parts(folders):
    size = DataSize(calibration=4, analysis_images=2, gallery=2, pairs=2)
    data = folder_data(Folders(folders.images / "train"), size, 16, seed=3)
    assert [len(data.parts[part].images) for part in ("train", "val", "test")] == [14, 2, 4]
    pixels = [image.tobytes() for part in ("train", "val", "test") for image in data.parts[part].images]
    assert len(set(pixels)) == len(pixels) == 20
    assert sorted(data.labels["test"]) == [0, 1, 2, 3]
    assert data.masks is None
    assert data.keypoints is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folders": Folders()}, r"no images are given.*--folders\.images"),
        ({"data": DataSize(test=99)}, r'test is 99, but the folder ".*images/val" has 8 images for it; lower --data\.test'),
        ({"data": DataSize(val=19)}, r'val is 19, but the folder ".*images/train" has 18 images for it; lower --data\.val'),
        ({"data": dataclasses.replace(SIZE, analysis_images=7)}, r"analysis_images \(7\) is more than test \(6\)"),
    ],
)
def test_requests_for_absent_images_are_refused(folders, change, message):
    arguments = {"folders": folders, "data": SIZE} | change
    with pytest.raises(ValueError, match=message):
        folder_data(arguments["folders"], arguments["data"], 16, seed=0)


def test_real_folders_are_read():
    """Class folders, masks and keypoints of real images, where they lie beside the checkout."""
    root = SHARED / "data"
    if not root.exists():
        pytest.skip(f"needs the images beside the checkout ({root})")
    size = DataSize(train=20, val=20, test=20, pairs=3, segmentation=3, segmentation_test=3, keypoints=4)
    size = dataclasses.replace(size, calibration=4, analysis_images=4, gallery=4)
    data = folder_data(Folders(root / "photos", voc=root / "street_voc", spair=root / "keypoints_spair"), size, 32, seed=0)
    assert np.bincount(data.labels["train"]).tolist() == [1] * 20
    assert len(data.masks.classes) == 11
    assert data.masks.test.shape == (3, 360, 480)
    assert data.keypoints.categories == ("car", "winebottle")
    visible = data.keypoints.source_points[data.keypoints.valid]
    assert ((visible >= 0) & (visible <= 32)).all()


@pytest.mark.parametrize("missing", ["mask_images", "masks"])
def test_one_of_two_plain_folders_of_masks_is_refused(folders, missing):
    """Masks are not left out in silence, whichever of the two is named."""
    plain = dataclasses.replace(folders, voc=None, mask_images=folders.images, masks=folders.images)
    with pytest.raises(ValueError, match="images and their masks belong together; name both"):
        folder_data(dataclasses.replace(plain, **{missing: None}), SIZE, 16, seed=0)


SMALL = DataSize(pairs=2, calibration=2, analysis_images=2, gallery=2)


def write_plain(root, names, first=0):
    for number, name in enumerate(names):
        write_picture(root / f"{name}.png", first + number)
    return root


def pixels_of(data, part) -> set[bytes]:
    return {image.tobytes() for image in data.parts[part].images}


@pytest.mark.parametrize("names", ["abcdefghijkl", [f"{year}/{month}/{i}" for year in (2020, 2021) for month in "ab" for i in range(3)]])
def test_images_without_classes_are_divided_at_random(tmp_path, names):
    plain = Folders(write_plain(tmp_path / "plain", names))
    data = folder_data(plain, SMALL, 16, seed=0)
    assert not data.labelled
    assert (data.labels, data.classes) == ({}, ())
    assert [len(data.parts[part].images) for part in ("train", "val", "test")] == [8, 2, 2]
    assert len(pixels_of(data, "train") | pixels_of(data, "val") | pixels_of(data, "test")) == 12
    assert len(data.views.warp) == 2
    assert data.title == "images of plain without classes"
    assert json.loads(json.dumps(data.key))["classes"] == []
    assert pixels_of(folder_data(plain, SMALL, 16, seed=1), "test") != pixels_of(data, "test")


def test_images_directly_in_train_and_val_are_for_fitting_and_for_reporting(tmp_path):
    write_plain(tmp_path / "train", "abcdef")
    write_plain(tmp_path / "val", "abc", first=50)
    data = folder_data(Folders(tmp_path), SMALL, 16, seed=0)
    assert [len(data.parts[part].images) for part in ("train", "val", "test")] == [4, 2, 3]
    assert not pixels_of(data, "test") & (pixels_of(data, "train") | pixels_of(data, "val"))
    assert not data.labelled


def test_images_without_classes_have_masks_and_keypoints_all_the_same(folders, tmp_path):
    plain = dataclasses.replace(folders, images=write_plain(tmp_path / "plain", "abcdefghijkl"))
    data = folder_data(plain, dataclasses.replace(SIZE, train=None, val=None, test=None, pairs=2, analysis_images=2, gallery=2), 16, seed=0)
    labelled = folder_data(folders, SIZE, 16, seed=0)
    assert labelled.labelled
    assert set(data.parts) == set(labelled.parts)
    np.testing.assert_array_equal(data.masks.test, labelled.masks.test)
    np.testing.assert_array_equal(data.keypoints.source_points, labelled.keypoints.source_points)


def test_titles_name_the_folders(folders, tmp_path, monkeypatch):
    assert folder_data(folders, SIZE, 16, seed=0).title == "images of images, of voc, of spair"
    plain = write_plain(tmp_path / "plain", "abcdefghijkl")
    size = dataclasses.replace(SMALL, segmentation=3, segmentation_test=2)
    data = folder_data(Folders(plain, views=plain, voc=folders.voc), size, 16, seed=0)
    assert data.title == "images of plain without classes, of voc"
    monkeypatch.chdir(plain)
    assert folder_data(Folders(Path(".")), SMALL, 16, seed=0).title == "images of plain without classes"


def test_folders_that_have_neither_classes_nor_plain_images_are_refused(tmp_path):
    def refused(match: str, *paths: str) -> None:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for number, path in enumerate(paths):
            write_picture(root / path, number)
        with pytest.raises(ValueError, match=match) as error:
            folder_data(Folders(root), SMALL, 16, seed=0)
        assert "\n" not in str(error.value)

    refused(r'one class folder, ant: a probe of one class is always right; add classes, or name ".*/ant" itself', "ant/1.png", "ant/2.png")
    refused("images outside any class folder .*one folder of images without classes", "loose.png", "ant/1.png", "bee/1.png")
    refused(r"has test, train, which are splits and no classes", "train/1.png", "test/1.png")
    refused(r'has images in ".*/set/train/ant", a split', "set/train/ant/1.png", "set/val/ant/1.png")
    refused(r'val" has class folders, ".*train" has none; use one layout for both', "train/1.png", "val/ant/1.png", "val/bee/1.png")
    refused("val.* has images outside any class folder", "train/ant/1.png", "train/bee/1.png", "val/1.png")
    refused(r"too few images for part test \(1 of at least 2\); add images", *(f"{i}.png" for i in range(9)))


def test_real_photographs_are_read_without_their_classes(tmp_path):
    root = SHARED / "data" / "photos"
    if not root.exists():
        pytest.skip(f"needs the photographs beside the checkout ({root})")
    for split, count in (("train", 8), ("val", 4)):
        (tmp_path / split).mkdir()
        for path in sorted((root / split).rglob("*.jpg"))[:count]:
            shutil.copy(path, tmp_path / split / f"{path.parent.name}-{path.name}")
    data = folder_data(Folders(tmp_path), SMALL, 32, seed=0)
    assert [len(data.parts[part].images) for part in ("train", "val", "test", "first")] == [6, 2, 4, 2]
    assert not data.labelled
