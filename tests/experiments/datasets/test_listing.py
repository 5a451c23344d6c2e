"""Nothing in a user's folder is left out in silence, and names that look equal are equal."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.datasets.layouts import class_or_plain_folder, image_folders, image_mask_folders, spair, voc
from experiments.datasets.listing import ENDINGS, files_below
from experiments.datasets.reading import read_rgb
from tests.experiments.datasets.test_layouts import annotation, mask, picture

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_every_ending_of_the_list_is_decoded(tmp_path: Path) -> None:
    for ending in sorted(ENDINGS):
        path = tmp_path / f"image{ending}"
        Image.new("RGB", (8, 8), (200, 10, 10)).convert("1" if ending == ".pbm" else "RGB").save(path)
        assert read_rgb(path).size == (8, 8), ending


def test_images_of_other_endings_and_below_a_class_are_read_and_the_rest_is_told(tmp_path: Path) -> None:
    names = ("ant/1.png", "ant/2.JFIF", "ant/more/3.gif", "ant/more/deep/4.ppm", "bee/5.jpg", "bee/6.pgm")
    for name in names:
        picture(tmp_path / name)
    for name in ("ant/notes.txt", "bee/7.heic", "LICENSE", "ant/.hidden.png"):
        (tmp_path / name).write_text("no image")
    listed = image_folders(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in listed.paths) == sorted(names)
    assert listed.labels.tolist() == [0, 0, 0, 0, 1, 1]
    (note,) = listed.notes
    assert note.startswith(f'folder "{tmp_path.name}" has 3 files that are no images by their endings')
    assert note.endswith(": LICENSE, ant/notes.txt, bee/7.heic")


def test_a_folder_named_one_level_too_high_is_told(tmp_path: Path) -> None:
    for name in ("a/airfield/1.png", "a/alley/2.png", "b/bakery/3.png"):
        picture(tmp_path / name)
    with pytest.raises(ValueError, match=r"lie two folders below \(airfield, alley, bakery\): are these the classes\?"):
        image_folders(tmp_path)
    assert class_or_plain_folder(tmp_path).notes == (
        f'folder "{tmp_path.name}" has no class folders right below it: all images, also those in a, b, have no classes',
    )


def test_links_are_followed_once_and_those_that_point_nowhere_are_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "data" / "ant" / "1.png")
    (tmp_path / "data" / "ant" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "ant" / "2.png").symlink_to(path)
    assert [p.name for p in files_below(tmp_path / "data")] == ["1.png", "2.png"]
    for i in range(3, 5):
        (tmp_path / "data" / "ant" / f"{i}.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"2 links to images point nowhere: .*3.png.*4.png.*; bring their files back"):
        image_folders(tmp_path / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "ant" / "1.png")
    picture(tmp_path / "ant" / "shut" / "2.png")
    (tmp_path / "ant" / "shut").chmod(0)
    try:
        with pytest.raises(ValueError, match=r'shut" cannot be read'):
            image_folders(tmp_path)
    finally:
        (tmp_path / "ant" / "shut").chmod(0o700)


def test_classes_of_both_forms_of_unicode_are_one(tmp_path: Path) -> None:
    picture(tmp_path / "train" / NFD / "1.png")
    picture(tmp_path / "train" / "bee" / "1.png")
    picture(tmp_path / "val" / NFC / "1.png")
    picture(tmp_path / "val" / "bee" / "1.png")
    train = image_folders(tmp_path / "train")
    assert train.classes == ("bee", NFC)
    assert image_folders(tmp_path / "val", train.classes).labels.tolist() == [0, 1]
    picture(tmp_path / "train" / NFC / "2.png")
    with pytest.raises(ValueError, match=rf"two class folders whose names look equal, {NFC}"):
        image_folders(tmp_path / "train")


@pytest.fixture
def street(tmp_path: Path) -> Path:
    for i, name in enumerate((NFD, "plain")):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg", 4, 6)
        mask(tmp_path / "SegmentationClass" / f"{name}.png", np.full((4, 6), i))
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    "lines",
    [
        f"{NFC}\nplain\n",
        f"{NFD}\nplain\n",
        f"/JPEGImages/{NFC}.jpg /SegmentationClass/{NFC}.png\nJPEGImages/plain.jpg\tSegmentationClass/plain.png\n",
    ],
    ids=["NFC", "NFD", "image and mask"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_are_read_as_people_have_them(street: Path, lines: str, encoding: str) -> None:
    (street / "ImageSets" / "Segmentation" / "train.txt").write_text(lines, encoding=encoding)
    listed = voc(street, "train")
    assert [path.name for path in listed.images] == [f"{NFD}.jpg", "plain.jpg"]
    assert [path.name for path in listed.masks] == [f"{NFD}.png", "plain.png"]


def test_lists_that_name_other_files_or_have_another_encoding_are_refused(street: Path) -> None:
    split = street / "ImageSets" / "Segmentation" / "train.txt"
    split.write_text("JPEGImages/plain.jpg SegmentationClass/gone.png")
    with pytest.raises(ValueError, match=r"names files that are not below .*: SegmentationClass/gone.png"):
        voc(street, "train")
    split.write_text("plain 1\n")
    with pytest.raises(ValueError, match="a line is a name without its ending, or an image and its mask"):
        voc(street, "train")
    split.write_bytes(f"{NFC}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r'train.txt" is not text in UTF-8'):
        voc(street, "train")


def test_images_and_masks_of_both_forms_belong_together_and_other_files_are_told(street: Path) -> None:
    (street / "SegmentationClass" / f"{NFD}.png").rename(street / "SegmentationClass" / f"{NFC}.png")
    (street / "SegmentationClass" / "plain.jpg").write_bytes((street / "JPEGImages" / "plain.jpg").read_bytes())
    listed = image_mask_folders(street / "JPEGImages", street / "SegmentationClass")
    assert [path.stem for path in listed.masks] == [NFC, "plain"]
    assert [note.rpartition(": ")[2] for note in listed.notes] == ["plain.jpg"]


def test_annotations_find_images_of_either_form(tmp_path: Path) -> None:
    line = f"1-{NFC}-y:cat"
    for name in (NFD, "y"):
        picture(tmp_path / "JPEGImages" / "cat" / f"{name}.jpg", 40, 60)
    annotation(tmp_path, line)
    (tmp_path / "Layout" / "large").mkdir(parents=True)
    (tmp_path / "Layout" / "large" / "test.txt").write_text(line, encoding="utf-8-sig")
    assert [path.stem for path in spair(tmp_path).images] == [NFD, "y"]
