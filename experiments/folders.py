"""The data of a study from folders of images that users have: ImageNet's, Pascal VOC's and SPair-71k's layouts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from experiments import images, readers
from experiments.data import PARTS_OF, DataSize, Keypoints, Masks, Part, StudyData, Views
from experiments.pairs import PairRecipe, view_pairs

READING = 1  # raise it when the same folders give other data
IMAGENET_SIZE = DataSize(
    bank=35_000, choose=5_000, test=10_000, pairs=2_000, segmentation=1_464, segmentation_test=1_449, keypoints=12_234,
    calibration=5_000, flow=200, gallery=500,
)  # fmt: skip
"""40,000 images to fit and choose on and 10,000 to report; VOC 2012's and SPair-71k's own splits."""


@dataclass(frozen=True)
class Folders:
    """Where images are; a task whose folder is not given is left out.

    Attributes:
        images: class folders (ImageNet's layout), either in train/ and val/ or all in one place, which then is split.
        voc: Pascal VOC's layout, splits train and val.
        spair: SPair-71k's layout, split test.
    """

    images: Path | None = None
    voc: Path | None = None
    spair: Path | None = None


def folder_data(folders: Folders, given: DataSize, image_size: int, seed: int, default: DataSize = IMAGENET_SIZE) -> StudyData:
    """Classes, views, masks and keypoints from folders. Images are split so that classes are even, drawn with the seed.

    Raises:
        ValueError: no images are named, a folder is not what its layout says, or more images are asked for than there are.
    """
    if folders.images is None:
        raise ValueError("no images are given; name a folder of class folders: --folders.images PATH")
    split, classes = _split(folders.images, given, default, seed)
    counts = {part: len(chosen) for part, (chosen, _) in split.items()}
    size = replace(given, **counts).filled(replace(default, **counts), (*PARTS_OF, ("pairs", "test")))
    pixels = {part: images.load(paths, image_size, "crop")[0] for part, (paths, _) in split.items()}
    views = view_pairs(split["test"][0], size["pairs"], image_size, seed, PairRecipe())
    parts = {
        "bank": Part(pixels["bank"]),
        "choose": Part(pixels["choose"]),
        "test": Part(pixels["test"], max(size["flow"], size["gallery"])),
        "first": Part(views.first, len(views.first)),
        "second": Part(views.second, len(views.second)),
    }
    masks = _masks(folders.voc, size, image_size, parts) if folders.voc else None
    keypoints = _keypoints(folders.spair, size, image_size, parts) if folders.spair else None
    labels = {part: labels for part, (_, labels) in split.items()}
    hashed = {name: _hash(part.images) for name, part in parts.items()} | {f"labels of {name}": _hash(of) for name, of in labels.items()}
    hashed |= {"masks": _hash(masks.test)} if masks else {}
    return StudyData(
        title=f"images of {' and '.join(Path(p).name for p in vars(folders).values() if p)}",
        parts=parts,
        labels=labels,
        classes=classes,
        views=Views(views.warp, {}),
        masks=masks,
        keypoints=keypoints,
        size=size,
        protocols={"labels": f"crop {image_size}", "views": f"{PairRecipe()} {image_size}", "masks": f"stretch {image_size}"}
        | {"keypoints": f"stretch {image_size}"},
        key={"name": "folders", "version": READING, "image_size": image_size, "seed": seed, "content": hashed, **vars(size)},
    )


def _split(root: Path, given: DataSize, default: DataSize, seed: int) -> tuple[dict[str, tuple[list[Path], np.ndarray]], tuple[str, ...]]:
    """Files and labels of bank, choose and test."""
    if (root / "train").is_dir() and (root / "val").is_dir():
        train = readers.image_folders(root / "train")
        rest, test = _even(train.labels, seed), readers.image_folders(root / "val", train.classes)
        reported = _even(test.labels, seed)[: _count("test", given, default, len(test.labels))]
    else:
        train = test = readers.image_folders(root)
        order = _even(train.labels, seed)
        # every fifth image of a class, so that test and rest have the same classes
        reported, rest = order[: _count("test", given, default, len(order) // 5)], order[len(order) // 5 :]
    choose = rest[: _count("choose", given, default, len(rest) - 2, usual=max(2, len(rest) // 8))]
    bank = rest[len(choose) :][: _count("bank", given, default, len(rest) - len(choose))]
    found = {"bank": (train, bank), "choose": (train, choose), "test": (test, reported)}
    return {part: ([of.paths[i] for i in index], of.labels[index]) for part, (of, index) in found.items()}, train.classes


def _count(part: str, given: DataSize, default: DataSize, there: int, usual: int | None = None) -> int:
    """What was asked for, or as many of the default as there are (as are usual, where that is less).

    Raises:
        ValueError: more was asked for than there is.
    """
    if given[part] > there:
        raise ValueError(f"{part} is {given[part]}, but the folder has {there} images for it; lower --data.{part}")
    return given[part] or min(default[part], there if usual is None else usual)


def _even(labels: Int[np.ndarray, "images"], seed: int) -> Int[np.ndarray, "images"]:
    """All images in random order, but so that any number of first ones has the classes as evenly as can be."""
    generator = np.random.default_rng((seed, len(labels)))
    order = generator.permutation(len(labels))
    turn = np.empty(len(labels), int)
    for label in np.unique(labels):
        of = order[labels[order] == label]
        turn[of] = np.arange(len(of))
    return order[np.argsort(turn[order], kind="stable")]


def _masks(root: Path, size: DataSize, image_size: int, parts: dict[str, Part]) -> Masks:
    """Images stretched to the square that models see; test masks at their own resolution."""
    bank, test = (readers.voc(root, split) for split in ("train", "val"))
    counts = [min(size[name], len(of.images)) for name, of in (("segmentation", bank), ("segmentation_test", test))]
    for name, of, count in (("segmentation_bank", bank, counts[0]), ("segmentation_test", test, counts[1])):
        parts[name] = Part(images.load(of.images[:count], image_size, "stretch")[0], count)
    fitted, shapes = readers.read_masks(bank.masks[: counts[0]], len(bank.classes))
    small = [
        np.asarray(Image.fromarray(mask[: int(h), : int(w)]).resize((image_size, image_size), Image.Resampling.NEAREST))
        for mask, (h, w) in zip(fitted, shapes, strict=True)
    ]
    reported, sizes = readers.read_masks(test.masks[: counts[1]], len(test.classes))
    return Masks("segmentation_bank", "segmentation_test", np.stack(small), reported, sizes, bank.classes)


def _keypoints(root: Path, size: DataSize, image_size: int, parts: dict[str, Part]) -> Keypoints:
    """The first pairs of the test split, and those images that they need; both stretched to the square."""
    found = readers.spair(root)
    count = min(size["keypoints"], len(found.source)) if size["keypoints"] else len(found.source)
    # pairs spread over the split, whose categories stand one after the other
    of = np.unique(np.linspace(0, len(found.source) - 1, count).astype(int))
    needed, position = np.unique(np.concatenate([found.source[of], found.target[of]]), return_inverse=True)
    pixels, affine = images.load([found.images[i] for i in needed], image_size, "stretch")
    parts["keypoints"] = Part(pixels, len(pixels))
    source, target = np.split(position, 2)
    names, category = np.unique(found.category[of], return_inverse=True)
    return Keypoints(
        source=source,
        target=target,
        source_points=_moved(affine[source], found.source_points[of]),
        target_points=_moved(affine[target], found.target_points[of]),
        valid=found.valid[of],
        scale=1 / np.stack([affine[target, 0, 0], affine[target, 1, 1]], axis=1),
        box=found.target_box[of],
        size=found.target_size[of],
        category=category,
        categories=tuple(str(name) for name in names),
    )


def _moved(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.einsum("pij,pkj->pki", affine[:, :, :2], points) + affine[:, None, :, 2]


def _hash(array: np.ndarray) -> str:
    """Of the content, read in pieces: the array may lie in a file larger than memory."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    for start in range(0, len(array), 256):
        digest.update(array[start : start + 256].tobytes())
    return digest.hexdigest()[:20]
