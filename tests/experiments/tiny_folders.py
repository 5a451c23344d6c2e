"""A small set of folders in the layouts of ImageNet, Pascal VOC and SPair-71k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.folders import Folders, prepared_folders
from experiments.datasets.images import TORCHVISION

SIZE = DataSize(
    train=12, val=4, test=6, pairs=4, segmentation=3, segmentation_test=2, keypoints=2, calibration=8, analysis_images=4, gallery=4
)


def folder_data(folders: Folders, requested: DataSize, image_size: int, seed: int, **options: Any) -> StudyData:
    """The data under torchvision's protocol alone."""
    return prepared_folders(folders, (TORCHVISION,), requested, image_size, seed, **options)[TORCHVISION]


def write_picture(path: Path, seed: int, width: int = 40, height: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def write_folders(root: Path) -> Folders:
    """Four classes with five images in train/ and two in val/, five images with masks, three images with keypoints in two pairs."""
    for split, count in (("train", 5), ("val", 2)):
        for c, name in enumerate(("ant", "bee", "cat", "dog")):
            for i in range(count):
                write_picture(root / "images" / split / name / f"{i}.png", 100 * c + 10 * i + len(split))
    return Folders(root / "images", voc=_write_voc(root / "voc"), spair=_write_spair(root / "spair"))


def _write_voc(root: Path) -> Path:
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "labels.txt").write_text("sky\nroad\n")
    for split, names in (("train", "abc"), ("val", "de")):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            write_picture(root / "JPEGImages" / f"{name}.jpg", ord(name))
            mask = np.repeat([0, 1], 16)[:, None].repeat(40, axis=1).astype(np.uint8)
            mask[:2] = 255
            image = Image.fromarray(mask, "L").convert("P")
            image.putdata(mask.ravel().tolist())
            image.save(root / "SegmentationClass" / f"{name}.png")
    return root


def _write_spair(root: Path) -> Path:
    for folder in ("Layout/large", "PairAnnotation/test"):
        (root / folder).mkdir(parents=True)
    for name in "xyz":
        write_picture(root / "JPEGImages" / "bee" / f"{name}.jpg", ord(name))
    pairs = [f"{number:06}-{source}-{target}:bee" for number, (source, target) in enumerate(("xy", "yz"))]
    (root / "Layout/large/test.txt").write_text("\n".join(pairs) + "\n")
    for pair in pairs:
        source, target = pair.split(":")[0].split("-")[1:]
        annotation = {"src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg", "category": "bee"}
        annotation |= {"src_imsize": [40, 32, 3], "trg_imsize": [40, 32, 3]}
        annotation |= {"src_bndbox": [2, 2, 38, 30], "trg_bndbox": [4, 2, 24, 30]}
        annotation |= {"src_kps": [[5.0, 8.0], [20.0, 16.0]], "trg_kps": [[10.0, 8.0], [30.0, 16.0]]}
        (root / "PairAnnotation/test" / f"{pair}.json").write_text(json.dumps(annotation))
    return root
