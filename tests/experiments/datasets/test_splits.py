"""The same images as class folders, in parquet and tar files and with a table: the same arrays and labels; and what is refused how."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.datasets.base import DataSize
from experiments.datasets.folders import Folders
from experiments.datasets.splits import images_by_split
from tests.experiments.datasets.other_layouts import CLASSES, write_class_folders, write_flat, write_parquet, write_tars
from tests.experiments.tiny_folders import folder_data, write_picture

SMALL = DataSize(pairs=4, calibration=4, analysis_images=4, gallery=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Eight images of every class to fit on, five to report on, in four layouts."""
    root = tmp_path_factory.mktemp("layouts")
    folders = write_class_folders(root / "folders", {"train": 8, "val": 5})
    for split, name, files in (("train", "train", 2), ("val", "validation", 1)):
        write_parquet(folders / split, root / "parquet" / "data", name, files)
        write_tars(folders / split, root / "tar", f"set-{name}-{{:04}}.tar", files, as_json=split == "val")
        write_flat(folders / split, root / "flat" / split, header="filename,label" if split == "train" else "")
    return root


def refused(match: str, path: Path, label: str = "") -> None:
    with pytest.raises(ValueError, match=match) as error:
        images_by_split(path, label)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["parquet", "parquet/data", "tar", "flat"])
def test_the_same_images_give_the_same_study_in_every_layout(root, layout):
    """Byte for byte: pixels of all parts and of the views, labels, classes, and so the key. Files hold them in another order."""
    expected = folder_data(Folders(root / "folders"), SMALL, 16, seed=0)
    data = folder_data(Folders(root / layout), SMALL, 16, seed=0)
    assert data.key == expected.key
    assert data.classes == CLASSES
    for part, images in expected.parts.items():
        np.testing.assert_array_equal(data.parts[part].images, images.images)
    for part, labels in expected.labels.items():
        np.testing.assert_array_equal(data.labels[part], labels)
    assert len(data.labels["test"]) == 15, "that of reporting"


def test_one_split_is_named_by_a_pattern_a_file_or_a_table(root):
    names = ["parquet/data/validation-*.parquet", "tar/set-validation-0000.tar", "flat/val/labels.csv"]
    expected = images_by_split(root / "folders" / "val")["train"]
    for name in names:
        (listed,) = images_by_split(root / name).values()
        np.testing.assert_array_equal(listed.labels, expected.labels)
        assert listed.classes == CLASSES
        assert [Path(source.name).name for source in listed.paths] == [path.name for path in expected.paths]
    for name, pattern in (("parquet/data/tset-*.parquet", "train*.parquet"), ("parquet/data/train", "train*.parquet")):
        refused(rf'there is no ".*"; beside it there are train-00000.*: --folders.images ".*/{re.escape(pattern)}"', root / name)
    refused(r'beside it there are set-train-0000.tar.*: --folders.images ".*/set-train\*.tar"', root / "tar/set-train-{0000..0001}.tar")
    refused(r'no .parquet or .tar file fits ".*"; there is none at all', root / "flat/*.tar")
    refused(r'there is no folder ".*"; name one that exists', root / "flat/missing")


def test_the_splits_that_are_used_are_told_and_unclear_ones_are_listed(root, tmp_path):
    folder = shutil.copytree(root / "parquet" / "data", tmp_path / "three")
    shutil.copy(folder / "validation-00000-of-00001.parquet", folder / "test-00000-of-00001.parquet")
    listed = images_by_split(folder)
    assert {part: len(members.paths) for part, members in listed.items()} == {"train": 24, "test": 15}
    assert listed["train"].notes == ("split train is to fit and choose on, validation to report on; test is left out",)
    for path in folder.glob("train-*"):
        path.unlink()
    refused(r'three" has the splits test, validation: which is meant\? name the files of one by a pattern', folder)
    shutil.copy(root / "parquet/data/train-00000-of-00002.parquet", tmp_path / "train-00000-of-00002.parquet")
    assert "1 of 2 files of split train of" in images_by_split(tmp_path / "train-00000-of-00002.parquet")["train"].notes[0]


def test_the_splits_must_have_the_same_classes(root, tmp_path):
    few = write_class_folders(tmp_path / "few", {"": 4}, ("ant", "bee"))
    shutil.copytree(root / "parquet", tmp_path / "parquet")
    write_parquet(few, tmp_path / "parquet" / "data", "validation", 1)
    refused(r"\(split validation\) has other classes \(missing: cat\); every class must be in both splits", tmp_path / "parquet")
    shutil.copytree(root / "flat" / "train", tmp_path / "flat" / "train")
    write_flat(few, tmp_path / "flat" / "val")
    refused(r"has other classes \(missing: cat\)", tmp_path / "flat")


def test_archives_beside_class_folders_are_left_out_and_told(root, tmp_path):
    folder = shutil.copytree(root / "folders" / "val", tmp_path / "images")
    shutil.copy(root / "tar" / "set-validation-0000.tar", folder)
    shutil.copy(root / "flat" / "val" / "labels.csv", folder)
    listed = images_by_split(folder)["train"]
    assert all(isinstance(path, Path) for path in listed.paths)
    assert listed.notes == (
        'folder "images" has 2 files that are no images by their endings and were left out: labels.csv, set-validation-0000.tar',
    )
    refused(r"--folders.label kind names a column, and .* has no table, no parquet and no tar files; leave it out", folder, "kind")


def test_views_are_cut_out_of_images_in_archives(root):
    data = folder_data(Folders(root / "folders", views=root / "tar"), dataclasses.replace(SMALL, pairs=30), 16, seed=0)
    assert len(data.views.warp) == 30, "images of both splits"


def test_a_table_above_train_and_val_is_not_passed_over(tmp_path):
    for split in ("train", "val"):
        write_picture(tmp_path / split / "a.png", 1)
    (tmp_path / "labels.csv").write_text("file,label\ntrain/a.png,ant\nval/a.png,bee\n")
    refused("has a table labels.csv above train/ and val/; put one into each", tmp_path)


def test_without_pyarrow_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(r"which is not installed; pip install -e '\.\[parquet\]'", root / "parquet")
