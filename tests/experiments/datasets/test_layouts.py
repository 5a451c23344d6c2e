"""Small folders in each layout, folders with common mistakes, and the real data where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_files

from experiments.datasets.images import load
from experiments.datasets.layouts import (
    IGNORE,
    VOC_CLASSES,
    KeypointPairs,
    any_images,
    image_folders,
    image_mask_folders,
    read_masks,
    spair,
    voc,
)
from tests.conftest import SHARED


def picture(path: Path, height: int = 4, width: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 99, 199)).save(path)
    return path


def mask(path: Path, labels: np.ndarray, palette: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    if palette:
        image = image.copy()
        image.putpalette([7, 7, 7] * 256)  # every label has the same colour
    image.save(path)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name in ("b/2.JPEG", "b/1.jpg", "a/3.png", "c/1.webp", "a/.hidden.jpg"):
        picture(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    return tmp_path


def test_class_folders_are_read_as_scikit_learn_reads_them(classes: Path) -> None:
    listed = image_folders(classes)
    theirs = load_files(classes, load_content=False, shuffle=False)
    assert listed.classes == tuple(theirs.target_names)
    expected = {f: t for f, t in zip(theirs.filenames, theirs.target, strict=True) if "notes" not in f and "hidden" not in f}
    assert {str(p): y for p, y in zip(listed.paths, listed.labels, strict=True)} == expected
    assert listed.paths == sorted(listed.paths)
    assert listed.labels.dtype == np.int64
    assert any_images(classes) == listed.paths


def test_another_split_is_labelled_alike_or_refused(classes: Path) -> None:
    assert image_folders(classes, ["c", "b", "a"]).labels.tolist() == [2, 1, 1, 0]
    with pytest.raises(ValueError, match=r"other classes \(not in the other split: c; missing: d\)"):
        image_folders(classes, ["a", "b", "d"])


def test_wrong_class_folders_are_refused(classes: Path) -> None:
    (classes / "up" / "b" / "train").mkdir(parents=True)
    (classes / "up" / "b" / "val").mkdir()
    with pytest.raises(ValueError, match=r'class folder ".*b" has no images \(but train, val\); give the folder of one split'):
        image_folders(classes / "up")
    with pytest.raises(ValueError, match="there is no folder"):
        image_folders(classes / "gone")
    (classes / "empty").mkdir()
    with pytest.raises(ValueError, match="has no class folders"):
        image_folders(classes / "empty")
    with pytest.raises(ValueError, match="has no images; they end in"):
        any_images(classes / "empty")
    picture(classes / "loose.jpg")
    with pytest.raises(ValueError, match=r"images outside any class folder \(loose.jpg\)"):
        image_folders(classes)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    for i, name in enumerate(("z.1", "y", "x")):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg", 4, 5 + i)
        mask(tmp_path / "SegmentationClass" / f"{name}.png", np.full((4, 5 + i), i))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("z.1\nx\n\n")
    (lists / "val.txt").write_text("y\n")
    return tmp_path


def test_voc_is_read_in_the_order_of_its_split(street: Path) -> None:
    listed = voc(street, "train")
    assert [p.relative_to(street).as_posix() for p in listed.images] == ["JPEGImages/z.1.jpg", "JPEGImages/x.jpg"]
    assert [p.relative_to(street).as_posix() for p in listed.masks] == ["SegmentationClass/z.1.png", "SegmentationClass/x.png"]
    assert listed.classes == VOC_CLASSES
    assert (len(VOC_CLASSES), VOC_CLASSES[15]) == (21, "person")
    (street / "labels.txt").write_text("road\nsky\n\ncar\n")
    assert voc(street, "val").classes == ("road", "sky", "car")


def test_wrong_voc_folders_are_refused(street: Path) -> None:
    with pytest.raises(ValueError, match=r'no split "test".*there is: train, val'):
        voc(street, "test")
    (street / "SegmentationClass" / "x.png").unlink()
    with pytest.raises(ValueError, match=r'names files that are not in ".*SegmentationClass": x'):
        voc(street, "train")
    lists = street / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("y\ny\n")
    with pytest.raises(ValueError, match="names y twice"):
        voc(street, "train")
    (lists / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        voc(street, "train")
    with pytest.raises(ValueError, match=r'no folder ".*ImageSets/Segmentation"'):
        voc(street / "JPEGImages", "train")


def test_images_and_masks_of_the_same_names_belong_together(street: Path) -> None:
    listed = image_mask_folders(street / "JPEGImages", street / "SegmentationClass")
    assert [p.stem for p in listed.images] == [p.stem for p in listed.masks] == ["x", "y", "z.1"]
    assert listed.classes == ("0", "1", "2")  # up to the largest label
    assert image_mask_folders(street / "JPEGImages", street / "SegmentationClass", ["a", "b", "c"]).classes == ("a", "b", "c")
    (street / "labels.txt").write_text("road\nsky\ncar")
    assert image_mask_folders(street / "JPEGImages", street / "SegmentationClass").classes == ("road", "sky", "car")

    (street / "SegmentationClass" / "y.png").rename(street / "SegmentationClass" / "w.png")
    with pytest.raises(ValueError, match="no mask belongs to image y"):
        image_mask_folders(street / "JPEGImages", street / "SegmentationClass")
    picture(street / "JPEGImages" / "w.jpg")
    (street / "JPEGImages" / "y.jpg").unlink()
    (street / "JPEGImages" / "x.jpg").unlink()
    with pytest.raises(ValueError, match="no image belongs to mask x"):
        image_mask_folders(street / "JPEGImages", street / "SegmentationClass")
    with pytest.raises(ValueError, match="has no masks"):
        image_mask_folders(street / "JPEGImages", street / "JPEGImages")
    picture(street / "JPEGImages" / "w.png")
    with pytest.raises(ValueError, match="same name but for the ending"):
        image_mask_folders(street / "JPEGImages", street / "SegmentationClass")


def test_masks_keep_their_indices_and_their_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = [generator.integers(0, 6, shape).astype(np.uint8) for shape in ((5, 3), (2, 7))]
    labels[1][0, 0] = IGNORE
    paths = [mask(tmp_path / "palette.png", labels[0]), mask(tmp_path / "grey.png", labels[1], palette=False)]
    masks, sizes = read_masks(paths, 6)
    assert masks.shape == (2, 5, 7)
    assert sizes.tolist() == [[5, 3], [2, 7]]
    for padded, original in zip(masks, labels, strict=True):
        height, width = original.shape
        np.testing.assert_array_equal(padded[:height, :width], original)
        assert (padded[height:] == IGNORE).all()
        assert (padded[:, width:] == IGNORE).all()


def test_wrong_masks_are_refused(tmp_path: Path) -> None:
    path = mask(tmp_path / "street.png", np.array([[0, 1], [7, IGNORE]]))
    assert read_masks([path], 8)[0].tolist() == [[[0, 1], [7, IGNORE]]]
    with pytest.raises(ValueError, match=r'mask ".*street.png" has the label 7, 7 classes have labels 0 to 6'):
        read_masks([path], 7)
    with pytest.raises(ValueError, match=r"colours.png.*has colours \(RGB\)"):
        read_masks([picture(tmp_path / "colours.png")])
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="labels from 300 to 300"):
        read_masks([tmp_path / "deep.png"])
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"broken.png.*cannot be read"):
        read_masks([tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="no masks to read"):
        read_masks([])


def annotation(root: Path, line: str, **changes: object) -> None:
    """A pair as SPair-71k writes it: boxes are x1, y1, x2, y2, sizes width, height, channels."""
    _, source, rest = line.split("-")
    target, category = rest.split(":")
    entry = {"src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg", "category": category}
    entry |= {"src_imsize": [60, 40, 3], "trg_imsize": [60, 40, 3], "src_bndbox": [1, 2, 30, 35], "trg_bndbox": [5, 10, 25, 40]}
    entry |= {"src_kps": [[1, 2], [3.5, 4]], "trg_kps": [[5, 6], [7, 8]], "kps_ids": ["0", "3"], "mirror": 0} | changes
    path = root / "PairAnnotation" / "test" / f"{line}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: value for name, value in entry.items() if value is not None}))


LINES = ["000001-2008_b-2008_a:cat", "000002-2008_a-2008_c:cat", "000003-x-y:dog"]


@pytest.fixture
def pairs_root(tmp_path: Path) -> Path:
    for name in ("cat/2008_a", "cat/2008_b", "dog/x", "dog/y"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg", 40, 60)
    picture(tmp_path / "JPEGImages" / "cat" / "2008_c.jpg", 80, 30)
    annotation(tmp_path, LINES[0])
    annotation(tmp_path, LINES[1], trg_imsize=[30, 80, 3], trg_bndbox=[2, 3, 23, 11])
    annotation(tmp_path, LINES[2], src_kps=[[1.0, 1]] * 3, trg_kps=[[2, 2.25]] * 3)
    (tmp_path / "Layout" / "large").mkdir(parents=True)
    (tmp_path / "Layout" / "large" / "test.txt").write_text("\n".join(LINES) + "\n")
    return tmp_path


def test_spair_is_read_as_it_is_written(pairs_root: Path) -> None:
    pairs = spair(pairs_root)
    assert isinstance(pairs, KeypointPairs)
    names = [p.relative_to(pairs_root / "JPEGImages").as_posix() for p in pairs.images]
    assert names == ["cat/2008_a.jpg", "cat/2008_b.jpg", "cat/2008_c.jpg", "dog/x.jpg", "dog/y.jpg"]
    assert (pairs.source.tolist(), pairs.target.tolist()) == ([1, 0, 3], [0, 2, 4])
    assert pairs.source_points.tolist() == [[[1, 2], [3.5, 4], [0, 0]], [[1, 2], [3.5, 4], [0, 0]], [[1, 1]] * 3]
    assert pairs.target_points.tolist() == [[[5, 6], [7, 8], [0, 0]], [[5, 6], [7, 8], [0, 0]], [[2, 2.25]] * 3]
    assert pairs.valid.tolist() == [[True, True, False], [True, True, False], [True] * 3]
    assert pairs.target_box.tolist() == [30, 21, 30]
    assert pairs.target_size.tolist() == [60, 80, 60]
    assert pairs.category.tolist() == ["cat", "cat", "dog"]
    assert pairs.names == LINES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trg_kps": None}, "lacks the field 'trg_kps'"),
        ({"trg_bndbox": None}, "lacks the field 'trg_bndbox'"),
        ({"trg_kps": [[5, 6]]}, r"shapes \(2, 2\) and \(1, 2\)"),
        ({"src_kps": [[1, None], [2, 3]]}, "a keypoint has no coordinates"),
        ({"trg_bndbox": [40, 40, 20, 10]}, r"trg_bndbox is \[40, 40, 20, 10\], not x1, y1, x2, y2"),
        ({"trg_imsize": [40, 60, 3]}, r"2008_a.jpg. has 40 x 60 pixels .*, its annotation says 60 x 40; use the original"),
        ({"src_imname": "gone.jpg"}, "gone.jpg.*cannot be read"),
    ],
)
def test_wrong_annotations_are_refused(pairs_root: Path, changes: dict[str, object], message: str) -> None:
    (pairs_root / "Layout" / "large" / "test.txt").write_text(LINES[0])
    annotation(pairs_root, LINES[0], **changes)
    with pytest.raises(ValueError, match=message):
        spair(pairs_root)


def test_the_bound_on_pixels_is_that_of_the_caller(pairs_root: Path) -> None:
    with pytest.raises(ValueError, match="--max-pixels 2400"):
        spair(pairs_root, max_pixels=2399)
    assert spair(pairs_root, max_pixels=2400).names == LINES


def test_wrong_spair_folders_are_refused(pairs_root: Path) -> None:
    with pytest.raises(ValueError, match=r'no split "trn".*there is: test'):
        spair(pairs_root, "trn")
    with pytest.raises(ValueError, match=r'no folder ".*Layout/small"'):
        spair(pairs_root, size_of_layout="small")
    path = pairs_root / "PairAnnotation" / "test" / f"{LINES[1]}.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"000002-2008_a-2008_c:cat.json.*cannot be read"):
        spair(pairs_root)
    path.unlink()
    with pytest.raises(ValueError, match=r"000002-2008_a-2008_c:cat.json.*cannot be read \(.*No such file"):
        spair(pairs_root)


def test_real_data_are_read(tmp_path: Path) -> None:
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip(f"needs the data sets beside the checkout ({data})")
    train = image_folders(data / "photos" / "train")
    val = image_folders(data / "photos" / "val", train.classes)
    assert (np.bincount(train.labels).tolist(), np.bincount(val.labels).tolist()) == ([30] * 20, [15] * 20)

    street = voc(data / "street_voc", "val")
    masks, sizes = read_masks(street.masks, len(street.classes))
    assert (masks.shape, sizes.min(axis=0).tolist(), len(street.classes)) == ((50, 360, 480), [360, 480], 11)
    sky, road = street.classes.index("sky"), street.classes.index("road")
    rows = np.arange(360)[None, :, None]
    assert (rows * (masks == sky)).sum() / (masks == sky).sum() < 120 < 240 < (rows * (masks == road)).sum() / (masks == road).sum()

    keypoints = spair(data / "keypoints_spair")
    assert keypoints.valid.shape == (400, 10)
    _, affines = load(keypoints.images, 28, "stretch", tmp_path)
    for ends, points in ((keypoints.source, keypoints.source_points), (keypoints.target, keypoints.target_points)):
        resized = np.einsum("pij,pkj->pki", affines[ends][:, :, :2], points) + affines[ends][:, None, :, 2]
        assert ((resized >= 0) & (resized <= 28)).all(axis=-1)[keypoints.valid].mean() > 0.99
    # the boxes of these pairs are the extent of the keypoints plus 8 percent
    extent = np.ptp(keypoints.target_points, axis=1).max(axis=-1)
    assert ((keypoints.target_box >= extent - 1) & (keypoints.target_box < 1.3 * extent)).mean() > 0.99
