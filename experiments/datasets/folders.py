"""The data of a study from a user's folders of images, in the layouts of ImageNet, Pascal VOC and SPair-71k."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from experiments.datasets import images, layouts
from experiments.datasets.base import DataSize, Keypoints, Masks, Part, StudyData, first_ids
from experiments.datasets.parts import IMAGENET_SIZE, add_views, complete_size, draw_parts, hashes, labelled_parts, view_protocol

FOLDERS_VERSION = 1  # raise it when the same folders give other data


@dataclass(frozen=True)
class Folders:
    """Folders of images; tasks whose folder is not given are left out.

    Attributes:
        images: class folders (ImageNet's layout), or images without classes: in train/ (to fit and choose on) and val/ (to report), or
            all in one place, to be split.
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
    """Classes, views, masks and keypoints from folders. Images are divided into parts at random by the seed, stratified by class where
    they have one.

    Raises:
        ValueError: no images are named, a folder does not have its layout, or more images are requested than there are.
    """
    if folders.images is None:
        raise ValueError("no images are given; name a folder of class folders or of images: --folders.images PATH")
    split = _split_images(folders.images, requested, default, seed)
    counts = {part: len(members.paths) for part, members in split.items()}
    size = complete_size(requested, default, counts, pairs_of_test=folders.views is None)
    parts = labelled_parts({part: images.load(members.paths, image_size, "crop")[0] for part, members in split.items()}, size)
    view_sources = layouts.any_images(folders.views) if folders.views else split["test"].paths
    views = add_views(parts, view_sources, size["pairs"], image_size, seed) if size["pairs"] else None
    masks = _masks(folders, size, image_size, seed, parts) if folders.voc or folders.mask_images or folders.masks else None
    keypoints = _keypoints(folders.spair, size, image_size, parts) if folders.spair else None
    classes = split["train"].classes
    labels = {part: members.labels for part, members in split.items()} if classes else {}
    content = {
        **hashes("images", {name: part.images for name, part in parts.items()}),
        **hashes("labels", labels),
        **(hashes("views", {"warp": views.warp}) if views else {}),
        **(hashes("masks", masks._asdict()) if masks else {}),
        **(hashes("keypoints", keypoints._asdict()) if keypoints else {}),
    }
    return StudyData(
        title=_title(folders, labelled=bool(classes)),
        parts=parts,
        labels=labels,
        classes=classes,
        views=views,
        masks=masks,
        keypoints=keypoints,
        size=size,
        protocols={
            "labels": f"crop {image_size}",
            "views": view_protocol(image_size),
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


def _title(folders: Folders, labelled: bool) -> str:
    """What the images are, as it stands in a sentence: "images of photos without classes, of VOC2012"."""
    assert folders.images is not None
    named = [path.resolve().name for path in (folders.images, folders.views, folders.voc, folders.mask_images, folders.spair) if path]
    first, *others = dict.fromkeys(named)
    return ", of ".join([f"images of {first}{'' if labelled else ' without classes'}", *others])


def _split_images(root: Path, requested: DataSize, default: DataSize, seed: int) -> dict[str, layouts.ImageList]:
    """The images of the parts train, val and test. Folders train/ and val/ on disk are for fitting and for reporting: the parts train
    and val both come from train/, the part test from val/.

    Raises:
        ValueError: a folder does not have its layout, more images are requested than there are, or a class has no train image.
    """
    if (root / "train").is_dir() and (root / "val").is_dir():
        folders = {"train": root / "train", "test": root / "val"}
        fitting = layouts.class_or_plain_folder(folders["train"])
        listed = {"train": fitting, "test": _reporting(folders["test"], fitting.classes)}
    else:
        folders = {"train": root}
        listed = {"train": layouts.class_or_plain_folder(root)}
    labels = {name: members.labels for name, members in listed.items()}
    places = {name: f'the folder "{folder}"' for name, folder in folders.items()}
    drawn = draw_parts(labels, listed["train"].classes, requested, default, seed, places, "--data.")
    return {part: _subset(listed.get(part, listed["train"]), indices) for part, indices in drawn.items()}


def _reporting(folder: Path, classes: tuple[str, ...]) -> layouts.ImageList:
    """The images to report on, with the classes of those to fit on.

    Raises:
        ValueError: they have other classes, or only one of the two folders has any.
    """
    if classes:
        return layouts.image_folders(folder, classes)
    listed = layouts.class_or_plain_folder(folder)
    if listed.classes:
        raise ValueError(f'"{folder}" has class folders, "{folder.parent / "train"}" has none; use one layout for both')
    return listed


def _subset(members: layouts.ImageList, indices: Int[np.ndarray, "images"]) -> layouts.ImageList:
    return members._replace(paths=[members.paths[i] for i in indices], labels=members.labels[indices])


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
