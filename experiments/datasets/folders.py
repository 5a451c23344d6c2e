"""The data of a study from a user's folders of images, in the layouts of ImageNet, Pascal VOC and SPair-71k."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from experiments.datasets import images, layouts
from experiments.datasets.base import DataSize, Keypoints, Masks, Part, StudyData
from experiments.datasets.labels import ImageList
from experiments.datasets.parts import IMAGENET_SIZE, add_views, complete_size, data_key, draw_parts, hashes, labelled_parts, view_protocol
from experiments.datasets.plausibility import ReadMasks, refuse_blank, refuse_other_sides, refuse_unlabelled, repeated_images
from experiments.datasets.reading import MAX_PIXELS
from experiments.datasets.splits import any_images, images_by_split
from experiments.datasets.stored import ImageSource, PackedImage, name_and_size

FOLDERS_VERSION = 1  # raise it when the same folders give other data


@dataclass(frozen=True)
class Folders:
    """Folders of images; tasks whose folder is not given are left out.

    Attributes:
        images: class folders (ImageNet's layout), images with a table of labels, or images without classes: in train/ (to fit and choose
            on) and val/ (to report), or all in one place, to be split; or parquet files of the Hugging Face hub, tar files of WebDataset
            (a folder of them, or a pattern in quotes such as "data/validation-*.parquet"), or a pack (`python -m experiments.pack`).
        views: any folder of images that pairs of views are made from; by default the test images.
        voc: Pascal VOC's layout; its split train is fitted on, val is reported.
        mask_images: instead of `voc`, a plain folder of images that have masks; a fifth of them is reported.
        masks: the plain folder of the masks of `mask_images`, with the same names.
        spair: SPair-71k's layout; its split test is reported.
        label: column or field of the classes, where a table or an archive has several.
    """

    images: Path | None = None
    views: Path | None = None
    voc: Path | None = None
    mask_images: Path | None = None
    masks: Path | None = None
    spair: Path | None = None
    label: str = ""

    def __post_init__(self) -> None:
        for name, path in self.paths.items():
            object.__setattr__(self, name, path.expanduser())

    @property
    def paths(self) -> dict[str, Path]:
        """Folders that are named, by what they are for."""
        return {name: path for name, path in vars(self).items() if isinstance(path, Path)}


def prepared_folders(
    folders: Folders,
    protocols: Collection[str],
    requested: DataSize,
    image_size: int,
    seed: int,
    default: DataSize = IMAGENET_SIZE,
    max_pixels: int = MAX_PIXELS,
    keep_blank: bool = False,
) -> dict[str, StudyData]:
    """Classes, views, masks and keypoints from folders. Images are divided into parts at random by the seed, stratified by class where
    they have one.

    Args:
        folders: where the images are.
        protocols: names in `images.PROTOCOLS`. Each prepares the images of the parts train, val and test, which are the same ones in the
            same order, so that scores are paired; all else (views, images with masks, images with keypoints) they share.
        requested, default: numbers of images; a default is cut to what there is.
        image_size: pixels of a side.
        seed: of the division into parts, and of the views.
        max_pixels: of an original image.
        keep_blank: accept images of one colour and masks without a label.

    Returns:
        The data by protocol.

    Raises:
        ValueError: no images are named, a folder does not have its layout, more images are requested than there are, or files cannot be
            what they are taken for (`plausibility`).
    """
    if folders.images is None:
        raise ValueError("no images are given; name a folder of class folders or of images: --folders.images PATH")
    reading = _Reading(max_pixels, keep_blank)
    split = _split_images(folders.images, folders.label, requested, default, seed)
    for name in protocols:
        images.refuse_other_pack(split["train"].paths[0], image_size, images.PROTOCOLS[name])
    counts = {part: len(members.paths) for part, members in split.items()}
    size = complete_size(requested, default, counts, pairs_of_test=folders.views is None)
    notes = [line for members in split.values() for line in members.notes]
    view_sources: Sequence[ImageSource] = split["test"].paths
    if folders.views:
        view_sources, lines = any_images(folders.views)
        notes += lines
    parts: dict[str, Part] = {}
    views = add_views(parts, view_sources, size["pairs"], image_size, seed, *reading) if size["pairs"] else None
    masks = _masks(folders, size, image_size, seed, parts, reading, notes) if folders.voc or folders.mask_images or folders.masks else None
    keypoints = _keypoints(folders.spair, size, image_size, parts, reading) if folders.spair else None
    shown = " of squares" if isinstance(view_sources[0], PackedImage) else ""
    classes = split["train"].classes
    labels = {part: members.labels for part, members in split.items()} if classes else {}
    content = {
        **hashes("images", {name: part.images for name, part in parts.items()}),
        **hashes("labels", labels),
        **(hashes("views", {"warp": views.warp}) if views else {}),
        **(hashes("masks", masks._asdict()) if masks else {}),
        **(hashes("keypoints", keypoints._asdict()) if keypoints else {}),
    }
    shared = StudyData(
        title=_title(folders, labelled=bool(classes)),
        parts=parts,
        labels=labels,
        classes=classes,
        views=views,
        masks=masks,
        keypoints=keypoints,
        size=size,
        protocols={
            "views": view_protocol(image_size) + shown,
            "masks": f"stretch {image_size}",
            "keypoints": f"stretch {image_size}",
        },
        key={"content": content},
        notes=tuple(notes),
        files=_files_hash(members.paths for members in split.values()),
    )
    return {name: _with_images(shared, split, name, image_size, seed, reading) for name in protocols}


def _with_images(shared: StudyData, split: Mapping[str, ImageList], name: str, image_size: int, seed: int, reading: _Reading) -> StudyData:
    """The data with the images of the parts train, val and test under a protocol."""
    protocol = images.PROTOCOLS[name]
    pixels = _load_split(split, image_size, protocol, reading)
    parts = {**labelled_parts(pixels, shared.size), **shared.parts}
    content = {**hashes("images", pixels), **shared.key["content"]}
    notes = repeated_images(pixels, {part: _names(members.paths) for part, members in split.items()}, ("train", "val"), "test")
    return replace(
        shared,
        parts=parts,
        protocols={"labels": protocol.name(image_size), **shared.protocols},
        key={
            **data_key("folders", FOLDERS_VERSION, seed, parts, shared.classes, content, shared.size),
            "image_size": image_size,
            # where pixels are the same, protocol ids are not
            **({} if name == images.TORCHVISION else {"protocol": name}),
        },
        notes=tuple(dict.fromkeys((*shared.notes, *notes))),
    )


def _load_split(
    split: Mapping[str, ImageList], size: int, protocol: images.Protocol, reading: _Reading
) -> dict[str, UInt8[np.ndarray, "n size size 3"]]:
    """The images of the parts train, val and test under a protocol."""
    together = _load([path for members in split.values() for path in members.paths], size, protocol, reading)
    ends = np.cumsum([len(members.paths) for members in split.values()])[:-1]
    return dict(zip(split, np.split(together, ends), strict=True))


def _files_hash(paths_of_parts: Iterable[Sequence[ImageSource]]) -> str:
    """A hash of the names and the sizes in bytes of files, part by part."""
    listed = [[name_and_size(path) for path in paths] for paths in paths_of_parts]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:20]


def _names(paths: Sequence[ImageSource]) -> list[str]:
    """Files as notes name them, with their folder."""
    return [f"{path.parent.name}/{path.name}" for path in paths]


class _Reading(NamedTuple):
    """Which files are accepted; as in `prepared_folders`."""

    max_pixels: int
    keep_blank: bool


def _load(
    paths: Sequence[ImageSource], size: int, fit: images.Fit | images.Protocol, reading: _Reading
) -> UInt8[np.ndarray, "n size size 3"]:
    """Decode images in which there is something to see.

    Raises:
        ValueError: files cannot be read, or images show nothing; all such files are named.
    """
    pixels, _ = images.load(paths, size, fit, max_pixels=reading.max_pixels)
    if not reading.keep_blank:
        refuse_blank(pixels, paths)
    return pixels


def _title(folders: Folders, labelled: bool) -> str:
    """What the images are, as it stands in a sentence: "images of photos without classes, of VOC2012"."""
    assert folders.images is not None
    named = [path.resolve().name for path in (folders.images, folders.views, folders.voc, folders.mask_images, folders.spair) if path]
    first, *others = dict.fromkeys(named)
    return ", of ".join([f"images of {first}{'' if labelled else ' without classes'}", *others])


def _split_images(root: Path, label: str, requested: DataSize, default: DataSize, seed: int) -> dict[str, ImageList]:
    """The images of the parts train, val and test. What is divided on disk is for fitting and for reporting: the parts train and val both
    come from the one (train/), the part test from the other (val/).

    Raises:
        ValueError: images do not have their layout, more are requested than there are, or a class has no train image.
    """
    listed = images_by_split(root, label)
    labels = {name: members.labels for name, members in listed.items()}
    places = {name: members.place for name, members in listed.items()}
    drawn = draw_parts(labels, listed["train"].classes, requested, default, seed, places, "--data.")
    return {part: _subset(listed.get(part, listed["train"]), indices) for part, indices in drawn.items()}


def _subset(members: ImageList, indices: Int[np.ndarray, "images"]) -> ImageList:
    return members._replace(paths=[members.paths[i] for i in indices], labels=members.labels[indices])


def _mask_lists(folders: Folders, seed: int, max_pixels: int) -> tuple[layouts.MaskList, layouts.MaskList]:
    """Images with masks to fit on and to report: VOC's splits, or four fifths and a fifth of two plain folders.

    Raises:
        ValueError: only one of the two plain folders is named.
    """
    if folders.voc:
        return layouts.voc(folders.voc, "train"), layouts.voc(folders.voc, "val")
    if folders.mask_images is None or folders.masks is None:
        raise ValueError("images and their masks belong together; name both: --folders.mask-images PATH --folders.masks PATH")
    members = layouts.image_mask_folders(folders.mask_images, folders.masks, max_pixels=max_pixels)
    order = np.random.default_rng((seed, len(members.images))).permutation(len(members.images))

    def subset(indices: np.ndarray) -> layouts.MaskList:
        return members._replace(images=[members.images[i] for i in indices], masks=[members.masks[i] for i in indices])

    return subset(order[len(order) // 5 :]), subset(order[: len(order) // 5])


def _masks(
    folders: Folders, size: DataSize, image_size: int, seed: int, parts: dict[str, Part], reading: _Reading, notes: list[str]
) -> Masks:
    """Masks of images that are stretched to the square that models see, test masks at their own resolution; adds the parts
    segmentation_train and segmentation_test, and lines to the notes."""
    counts = {"segmentation_train": size["segmentation"], "segmentation_test": size["segmentation_test"]}
    lists = {
        part: members._replace(images=members.images[:count], masks=members.masks[:count])
        for (part, count), members in zip(counts.items(), _mask_lists(folders, seed, reading.max_pixels), strict=True)
    }
    train, test = lists.values()
    refuse_other_sides([*train.images, *test.images], [*train.masks, *test.masks], reading.max_pixels)
    read_train, read_test = (
        ReadMasks(*layouts.read_masks(members.masks, len(members.classes), reading.max_pixels), members.masks) for members in (train, test)
    )
    refuse_unlabelled((read_train, read_test), reading.keep_blank)
    pixels = _load([*train.images, *test.images], image_size, "stretch", reading)
    shown = dict(zip(lists, np.split(pixels, [len(train.images)]), strict=True))
    parts.update({part: Part(images_of_part, len(images_of_part)) for part, images_of_part in shown.items()})
    names = {part: _names(members.images) for part, members in lists.items()}
    notes += (*train.notes, *test.notes, *repeated_images(shown, names, ("segmentation_train",), "segmentation_test"))
    resized = [
        np.asarray(Image.fromarray(mask[: int(height), : int(width)]).resize((image_size, image_size), Image.Resampling.NEAREST))
        for mask, (height, width) in zip(read_train.masks, read_train.sizes, strict=True)
    ]
    return Masks("segmentation_train", "segmentation_test", np.stack(resized), read_test.masks, read_test.sizes, train.classes)


def _keypoints(root: Path, size: DataSize, image_size: int, parts: dict[str, Part], reading: _Reading) -> Keypoints:
    """Pairs of the test split, with images stretched to the square; adds the part keypoints."""
    pairs = layouts.spair(root, "test", max_pixels=reading.max_pixels)
    count = min(size["keypoints"], len(pairs.source))
    # pairs spread over the split, in which categories follow one another
    rows = np.unique(np.linspace(0, len(pairs.source) - 1, count).astype(int))
    used, positions = np.unique(np.concatenate([pairs.source[rows], pairs.target[rows]]), return_inverse=True)
    paths = [pairs.images[i] for i in used]
    pixels, affine = images.load(paths, image_size, "stretch", max_pixels=reading.max_pixels)
    if not reading.keep_blank:
        refuse_blank(pixels, paths)
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
