"""The data of a study from a user's folders of images, in the layouts of ImageNet, Pascal VOC and SPair-71k."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from experiments.datasets import images, layouts
from experiments.datasets.base import PARTS_OF, DataSize, Keypoints, Masks, Part, StudyData, Views, first_ids
from experiments.datasets.pairs import PairRecipe, view_pairs

FOLDERS_VERSION = 1  # raise it when the same folders give other data
IMAGENET_SIZE = DataSize(
    train=35_000, val=5_000, test=10_000, pairs=2_000, segmentation=1_464, segmentation_test=1_449, keypoints=12_234,
    calibration=5_000, analysis_images=200, gallery=500,
)  # fmt: skip
"""40,000 images to fit and choose on and 10,000 to report; the full splits of VOC 2012 and SPair-71k."""


@dataclass(frozen=True)
class Folders:
    """Folders of images; tasks whose folder is not given are left out.

    Attributes:
        images: class folders (ImageNet's layout): in train/ (to fit and choose on) and val/ (to report), or all in one place, to be split.
        views: any folder of images that pairs of views are made from; by default the test images.
        voc: Pascal VOC's layout; its split train is fitted on, val is reported.
        mask_images: instead of `voc`, a plain folder of images that have masks; a fifth of them is reported.
        masks: the plain folder of the masks of `mask_images`, with the same names.
        spair: SPair-71k's layout; its split test is reported.
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


def folder_data(folders: Folders, requested: DataSize, image_size: int, seed: int, default: DataSize = IMAGENET_SIZE) -> StudyData:
    """Classes, views, masks and keypoints from folders. Images are divided into parts at random by the seed, stratified by class.

    Raises:
        ValueError: no images are named, a folder does not have its layout, or more images are requested than there are.
    """
    if folders.images is None:
        raise ValueError("no images are given; name a folder of class folders: --folders.images PATH")
    split = _split_images(folders.images, requested, default, seed)
    counts = {part: len(members.paths) for part, members in split.items()}
    parts_of = PARTS_OF if folders.views else (*PARTS_OF, ("pairs", "test"))
    size = replace(requested, **counts).filled(replace(default, **counts), parts_of)
    pixels = {part: images.load(members.paths, image_size, "crop")[0] for part, members in split.items()}
    parts = {
        "train": Part(pixels["train"]),
        "val": Part(pixels["val"]),
        "test": Part(pixels["test"], max(size["analysis_images"], size["gallery"])),
    }
    view_sources = layouts.any_images(folders.views) if folders.views else split["test"].paths
    views = _views(view_sources, size, image_size, seed, parts) if size["pairs"] else None
    masks = _masks(folders, size, image_size, seed, parts) if folders.voc or folders.mask_images or folders.masks else None
    keypoints = _keypoints(folders.spair, size, image_size, parts) if folders.spair else None
    labels = {part: members.labels for part, members in split.items()}
    classes = split["train"].classes
    content = {
        **_hashes("images", {name: part.images for name, part in parts.items()}),
        **_hashes("labels", labels),
        **(_hashes("views", {"warp": views.warp}) if views else {}),
        **(_hashes("masks", masks._asdict()) if masks else {}),
        **(_hashes("keypoints", keypoints._asdict()) if keypoints else {}),
    }
    return StudyData(
        title=f"images of {' and '.join(path.name for path in vars(folders).values() if path)}",
        parts=parts,
        labels=labels,
        classes=classes,
        views=views,
        masks=masks,
        keypoints=keypoints,
        size=size,
        protocols={
            "labels": f"crop {image_size}",
            "views": f"{PairRecipe()} {image_size}",
            "masks": f"stretch {image_size}",
            "keypoints": f"stretch {image_size}",
        },
        key={
            "name": "folders",
            "version": FOLDERS_VERSION,
            "image_size": image_size,
            "seed": seed,
            "first_ids": first_ids(parts),
            "classes": classes,
            "content": content,
            **vars(size),
        },
    )


def _split_images(root: Path, requested: DataSize, default: DataSize, seed: int) -> dict[str, layouts.ImageList]:
    """The images of the parts train, val and test. Folders train/ and val/ on disk are for fitting and for reporting: the parts train
    and val both come from train/, the part test from val/.

    Raises:
        ValueError: more images are requested than there are, or a class has no train image.
    """
    if (root / "train").is_dir() and (root / "val").is_dir():
        train_folder, test_folder = root / "train", root / "val"
        fitting = layouts.image_folders(train_folder)
        reporting = layouts.image_folders(test_folder, fitting.classes)
        remaining, test = _stratified_order(fitting.labels, seed), _stratified_order(reporting.labels, seed)
    else:
        train_folder = test_folder = root
        fitting = reporting = layouts.image_folders(root)
        order = _stratified_order(fitting.labels, seed)
        # the leading fifth is as evenly divided between the classes as the rest
        test, remaining = order[: len(order) // 5], order[len(order) // 5 :]
    test = test[: _count("test", requested, default, len(test), test_folder)]
    usual = max(2, len(remaining) // 8)
    val_count = _count("val", requested, default, len(remaining) - 2, train_folder, usual)
    train_count = _count("train", requested, default, len(remaining) - val_count, train_folder)
    train, val = remaining[:train_count], remaining[train_count : train_count + val_count]
    split = {"train": _subset(fitting, train), "val": _subset(fitting, val), "test": _subset(reporting, test)}
    present = np.unique(np.concatenate([members.labels for members in split.values()]))
    if missing := [fitting.classes[label] for label in present if label not in split["train"].labels]:
        raise ValueError(
            f"none of the {len(train)} images of part train is of {', '.join(missing[:5])}; raise --data.train, or take the class out"
        )
    return split


def _subset(members: layouts.ImageList, indices: Int[np.ndarray, "images"]) -> layouts.ImageList:
    return members._replace(paths=[members.paths[i] for i in indices], labels=members.labels[indices])


def _count(part: str, requested: DataSize, default: DataSize, available: int, folder: Path, usual: int | None = None) -> int:
    """The requested number of images; else the default, but no more than `usual`, which by default is all that are available.

    Raises:
        ValueError: more are requested than are available.
    """
    if requested[part] > available:
        raise ValueError(f'{part} is {requested[part]}, but the folder has {available} images for it ("{folder}"); lower --data.{part}')
    return requested[part] or min(default[part], available if usual is None else usual)


def _stratified_order(labels: Int[np.ndarray, "images"], seed: int) -> Int[np.ndarray, "images"]:
    """A random order of all images in which every class has its share of any number of leading ones."""
    generator = np.random.default_rng((seed, len(labels)))
    order = generator.permutation(len(labels))
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(quantile[order], kind="stable")]


def _views(paths: list[Path], size: DataSize, image_size: int, seed: int, parts: dict[str, Part]) -> Views:
    """Pairs of views, each of an image of its own; adds the parts first and second."""
    pairs = view_pairs(paths, size["pairs"], image_size, seed, PairRecipe())
    parts["first"], parts["second"] = Part(pairs.first, len(pairs.first)), Part(pairs.second, len(pairs.second))
    return Views(pairs.warp, {})


def _mask_lists(folders: Folders, seed: int) -> tuple[layouts.MaskList, layouts.MaskList]:
    """Images with masks to fit on and to report: VOC's splits, or four fifths and a fifth of two plain folders.

    Raises:
        ValueError: only one of the two plain folders is named.
    """
    if folders.voc:
        return layouts.voc(folders.voc, "train"), layouts.voc(folders.voc, "val")
    if folders.mask_images is None or folders.masks is None:
        raise ValueError("images and their masks belong together; name both: --folders.mask-images PATH --folders.masks PATH")
    members = layouts.image_mask_folders(folders.mask_images, folders.masks)
    order = np.random.default_rng((seed, len(members.images))).permutation(len(members.images))

    def subset(indices: np.ndarray) -> layouts.MaskList:
        return members._replace(images=[members.images[i] for i in indices], masks=[members.masks[i] for i in indices])

    return subset(order[len(order) // 5 :]), subset(order[: len(order) // 5])


def _masks(folders: Folders, size: DataSize, image_size: int, seed: int, parts: dict[str, Part]) -> Masks:
    """Masks of images that are stretched to the square that models see, test masks at their own resolution; adds the parts
    segmentation_train and segmentation_test."""
    train, test = _mask_lists(folders, seed)
    train_count, test_count = min(size["segmentation"], len(train.images)), min(size["segmentation_test"], len(test.images))
    for name, members, count in (("segmentation_train", train, train_count), ("segmentation_test", test, test_count)):
        parts[name] = Part(images.load(members.images[:count], image_size, "stretch")[0], count)
    padded, shapes = layouts.read_masks(train.masks[:train_count], len(train.classes))
    resized = [
        np.asarray(Image.fromarray(mask[: int(height), : int(width)]).resize((image_size, image_size), Image.Resampling.NEAREST))
        for mask, (height, width) in zip(padded, shapes, strict=True)
    ]
    test_masks, sizes = layouts.read_masks(test.masks[:test_count], len(test.classes))
    return Masks("segmentation_train", "segmentation_test", np.stack(resized), test_masks, sizes, train.classes)


def _keypoints(root: Path, size: DataSize, image_size: int, parts: dict[str, Part]) -> Keypoints:
    """Pairs of the test split, with images stretched to the square; adds the part keypoints."""
    pairs = layouts.spair(root, "test")
    count = min(size["keypoints"], len(pairs.source))
    # pairs spread over the split, in which categories follow one another
    rows = np.unique(np.linspace(0, len(pairs.source) - 1, count).astype(int))
    used, positions = np.unique(np.concatenate([pairs.source[rows], pairs.target[rows]]), return_inverse=True)
    pixels, affine = images.load([pairs.images[i] for i in used], image_size, "stretch")
    parts["keypoints"] = Part(pixels, len(pixels))
    source, target = np.split(positions, 2)
    names, category = np.unique(pairs.category[rows], return_inverse=True)
    return Keypoints(
        source=source,
        target=target,
        source_points=_transform(affine[source], pairs.source_points[rows]),
        target_points=_transform(affine[target], pairs.target_points[rows]),
        valid=pairs.valid[rows],
        scale=1 / np.stack([affine[target, 0, 0], affine[target, 1, 1]], axis=1),
        box=pairs.target_box[rows],
        size=pairs.target_size[rows],
        category=category,
        categories=tuple(str(name) for name in names),
    )


def _transform(affine: Float[np.ndarray, "pairs 2 3"], points: Float[np.ndarray, "pairs points 2"]) -> Float[np.ndarray, "pairs points 2"]:
    return np.einsum("pij,pkj->pki", affine[:, :, :2], points) + affine[:, None, :, 2]


def _hashes(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What stands in the key for these fields: arrays by their hash, anything else as it is."""
    return {f"{kind} {name}": _hash(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def _hash(array: np.ndarray) -> str:
    """A hash of an array's content, read in pieces: the array may be mapped from a file larger than memory."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    for start in range(0, len(array), 256):
        digest.update(array[start : start + 256].tobytes())
    return digest.hexdigest()[:20]
