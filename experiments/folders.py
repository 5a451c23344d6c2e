"""The data of a study from folders of images that users have: ImageNet's, Pascal VOC's and SPair-71k's layouts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
        views: any folder of images that pairs of views are made of; by default test images.
        voc: Pascal VOC's layout, splits train and val.
        mask_images, masks: instead of `voc`, images and masks of the same names in two plain folders.
        spair: SPair-71k's layout, split test.
    """

    images: Path | None = None
    views: Path | None = None
    voc: Path | None = None
    mask_images: Path | None = None
    masks: Path | None = None
    spair: Path | None = None

    def __post_init__(self) -> None:
        for name, path in vars(self).items():
            object.__setattr__(self, name, path and path.expanduser())


def folder_data(folders: Folders, given: DataSize, image_size: int, seed: int, default: DataSize = IMAGENET_SIZE) -> StudyData:
    """Classes, views, masks and keypoints from folders. Images are split so that classes are even, drawn with the seed.

    Raises:
        ValueError: no images are named, a folder is not what its layout says, or more images are asked for than there are.
    """
    if folders.images is None:
        raise ValueError("no images are given; name a folder of class folders: --folders.images PATH")
    split, classes = _split(folders.images, given, default, seed)
    counts = {part: len(chosen) for part, (chosen, _) in split.items()}
    size = replace(given, **counts).filled(replace(default, **counts), PARTS_OF if folders.views else (*PARTS_OF, ("pairs", "test")))
    pixels = {part: images.load(paths, image_size, "crop")[0] for part, (paths, _) in split.items()}
    parts = {
        "bank": Part(pixels["bank"]),
        "choose": Part(pixels["choose"]),
        "test": Part(pixels["test"], max(size["flow"], size["gallery"])),
    }
    pictured = readers.any_images(folders.views) if folders.views else split["test"][0]
    views = _views(pictured, size, image_size, seed, parts) if size["pairs"] else None
    masks = _masks(folders, size, image_size, seed, parts) if folders.voc or folders.masks else None
    keypoints = _keypoints(folders.spair, size, image_size, parts) if folders.spair else None
    labels = {part: labels for part, (_, labels) in split.items()}
    hashed: dict[str, Any] = {name: _hash(part.images) for name, part in parts.items()}
    for name, arrays in (("labels", labels), *((type(of).__name__, of._asdict()) for of in (views, masks, keypoints) if of)):
        hashed |= {f"{name} {n}": _hash(of) if isinstance(of, np.ndarray) else of for n, of in arrays.items() if n != "pixels"}
    return StudyData(
        title=f"images of {' and '.join(Path(p).name for p in vars(folders).values() if p)}",
        parts=parts,
        labels=labels,
        classes=classes,
        views=views,
        masks=masks,
        keypoints=keypoints,
        size=size,
        protocols={"labels": f"crop {image_size}", "views": f"{PairRecipe()} {image_size}", "masks": f"stretch {image_size}"}
        | {"keypoints": f"stretch {image_size}"},
        key={
            "name": "folders",
            "version": READING,
            "image_size": image_size,
            "seed": seed,
            "classes": classes,
            "content": hashed,
            **vars(size),
        },
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
        # the first fifth has the classes as evenly as the rest
        reported, rest = order[: _count("test", given, default, len(order) // 5)], order[len(order) // 5 :]
    chosen = _count("choose", given, default, len(rest) - 2, usual=max(2, len(rest) // 8))
    fitted = _count("bank", given, default, len(rest) - chosen)
    bank, choose = rest[:fitted], rest[fitted : fitted + chosen]
    found = {"bank": (train, bank), "choose": (train, choose), "test": (test, reported)}
    split = {part: ([of.paths[i] for i in index], of.labels[index]) for part, (of, index) in found.items()}
    missing = [train.classes[c] for c in np.unique(np.concatenate([labels for _, labels in split.values()])) if c not in split["bank"][1]]
    if missing:
        raise ValueError(f"none of the {len(bank)} images of bank is of {', '.join(missing[:5])}; raise --data.bank, or take the class out")
    return split, train.classes


def _count(part: str, given: DataSize, default: DataSize, there: int, usual: int | None = None) -> int:
    """What was asked for, or as many of the default as there are (as are usual, where that is less).

    Raises:
        ValueError: more was asked for than there is.
    """
    if given[part] > there:
        raise ValueError(f"{part} is {given[part]}, but the folder has {there} images for it; lower --data.{part}")
    return given[part] or min(default[part], there if usual is None else usual)


def _even(labels: Int[np.ndarray, "images"], seed: int) -> Int[np.ndarray, "images"]:
    """All images in random order, but so that among any number of first ones every class has its share."""
    generator = np.random.default_rng((seed, len(labels)))
    order = generator.permutation(len(labels))
    turn = np.empty(len(labels))
    for label in np.unique(labels):
        of = order[labels[order] == label]
        turn[of] = (np.arange(len(of)) + 0.5) / len(of)
    return order[np.argsort(turn[order], kind="stable")]


def _views(paths: list[Path], size: DataSize, image_size: int, seed: int, parts: dict[str, Part]) -> Views:
    """Two views of each of as many images as there shall be pairs."""
    found = view_pairs(paths, size["pairs"], image_size, seed, PairRecipe())
    parts["first"], parts["second"] = Part(found.first, len(found.first)), Part(found.second, len(found.second))
    return Views(found.warp, {})


def _with_masks(folders: Folders, seed: int) -> tuple[readers.MaskList, readers.MaskList]:
    """Images with masks to fit on and to report: VOC's splits, or a fifth of plain folders to report.

    Raises:
        ValueError: only one of the two plain folders is named.
    """
    if folders.voc:
        train, val = (readers.voc(folders.voc, split) for split in ("train", "val"))
        return train, val
    if folders.mask_images is None or folders.masks is None:
        raise ValueError("images and their masks belong together; name both: --folders.mask-images PATH --folders.masks PATH")
    found = readers.image_mask_folders(folders.mask_images, folders.masks)
    order = np.random.default_rng((seed, len(found.images))).permutation(len(found.images))

    def part(index: np.ndarray) -> readers.MaskList:
        return found._replace(images=[found.images[i] for i in index], masks=[found.masks[i] for i in index])

    return part(order[len(order) // 5 :]), part(order[: len(order) // 5])


def _masks(folders: Folders, size: DataSize, image_size: int, seed: int, parts: dict[str, Part]) -> Masks:
    """Images stretched to the square that models see; test masks at their own resolution."""
    bank, test = _with_masks(folders, seed)
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
    count = min(size["keypoints"], len(found.source))
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
