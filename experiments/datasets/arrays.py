"""The data of a study from arrays of images that are already decoded, with or without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int, UInt8

from experiments.datasets.base import DataSize, StudyData
from experiments.datasets.parts import IMAGENET_SIZE, add_views, complete_size, data_key, draw_parts, hashes, labelled_parts, view_protocol
from experiments.datasets.plausibility import BLACK, blank_images, repeated_images
from experiments.datasets.reading import named

ARRAYS_VERSION = 1  # raise it when the same arrays give other data
PARTS = ("train", "val", "test")

Images: TypeAlias = UInt8[np.ndarray, "images height width 3"]
Labels: TypeAlias = Int[np.ndarray, "images"]


def array_data(
    parts: Mapping[str, tuple[Images, Labels | None] | Images],
    requested: DataSize,
    seed: int,
    classes: Sequence[str] | None = None,
    title: str = "arrays",
) -> StudyData:
    """Classes and views from arrays. The images of a part are put into a random order by the seed, in which every class has its share
    of any number of leading ones, and are copied.

    Args:
        parts: images, or images and their labels, of "train", "test" and, if it is there, "val"; without "val" an eighth of "train" is
            chosen on. All parts have labels, or none.
        requested: numbers of images; by default all that there are, and pairs of views of up to 2,000 test images.
        seed: of the order of images and of the views.
        classes: name of each label 0, 1, ...; by default the labels of "train" in order, which are then counted from 0.
        title: what the images are, for the page.

    Raises:
        ValueError: a part is missing or unknown; images are no bytes [images, height, width, 3], too few, of several sizes, or all but
            black; labels do not belong to them; classes are missing in "train"; or more images are requested than there are.
    """
    images, given_labels = _checked_parts(parts)
    names, labels = _checked_classes(given_labels, classes)
    counts = {part: len(pixels) for part, pixels in images.items()}
    default = replace(IMAGENET_SIZE, **{"val": counts["train"], **counts}, segmentation=None, segmentation_test=None, keypoints=None)
    requested = replace(requested, segmentation=None, segmentation_test=None, keypoints=None)
    strata = labels or {part: np.zeros(count, np.int64) for part, count in counts.items()}
    drawn = draw_parts(strata, names, requested, default, seed, {part: f'the array "{part}"' for part in counts}, "requested.")
    size = complete_size(requested, default, {part: len(indices) for part, indices in drawn.items()}, pairs_of_test=True)
    study_parts = labelled_parts({part: images.get(part, images["train"])[indices] for part, indices in drawn.items()}, size)
    study_labels = {part: labels.get(part, labels["train"])[indices] for part, indices in drawn.items()} if labels else {}
    height, width = images["train"].shape[1:3]
    side = min(height, width)
    numbers = {part: [f"{part}[{i}]" if part in images else f"train[{i}]" for i in indices] for part, indices in drawn.items()}
    notes = repeated_images({name: part.images for name, part in study_parts.items()}, numbers, ("train", "val"), "test")
    views = add_views(study_parts, study_parts["test"].images, size["pairs"], side, seed)
    content = {
        **hashes("images", {name: part.images for name, part in study_parts.items()}),
        **hashes("labels", study_labels),
        **hashes("views", {"warp": views.warp}),
    }
    return StudyData(
        title=title,
        parts=study_parts,
        labels=study_labels,
        classes=names,
        views=views,
        masks=None,
        keypoints=None,
        size=size,
        protocols={"labels": f"as given {height}x{width}", "views": view_protocol(side)},
        key=data_key("arrays", ARRAYS_VERSION, seed, study_parts, names, content, size),
        notes=(*_blank_note(images), *notes),
    )


def _blank_note(images: Mapping[str, Images]) -> tuple[str, ...]:
    """A line for the study's notes about images that show nothing; none if there are none."""
    blank = [f"{part}[{i}] {reason}" for part, pixels in images.items() for i, reason in blank_images(pixels).items()]
    return (f"{len(blank)} images show nothing: {named(blank)}",) if blank else ()


def _checked_parts(parts: Mapping[str, tuple[Images, Labels | None] | Images]) -> tuple[dict[str, Images], dict[str, Labels]]:
    """Images and labels by part; no labels where no part has any.

    Raises:
        ValueError: as in `array_data`.
    """
    if unknown := [str(part) for part in parts if part not in PARTS]:
        raise ValueError(f'unknown part "{unknown[0]}"; parts are train, val and test')
    if missing := [part for part in ("train", "test") if part not in parts]:
        raise ValueError(
            f"part {missing[0]} is missing, there is {', '.join(parts) or 'none'}; give train and test (val is split off train)"
        )
    pairs = {part: _images_and_labels(part, parts[part]) for part in PARTS if part in parts}
    images = {part: _checked_images(part, pixels) for part, (pixels, _) in pairs.items()}
    labels = {part: _checked_labels(part, entries, len(images[part])) for part, (_, entries) in pairs.items() if entries is not None}
    if labels and (bare := [part for part in pairs if part not in labels]):
        raise ValueError(f"part {bare[0]} has no labels, {', '.join(labels)} has; give labels for all parts or for none")
    for part, pixels in images.items():
        if pixels.shape != (len(pixels), *images["train"].shape[1:]):
            sizes = ["x".join(map(str, array.shape[1:3])) for array in (pixels, images["train"])]
            raise ValueError(f"part {part} has images of {sizes[0]} pixels, train of {sizes[1]}; bring all to one size")
    return images, labels


def _images_and_labels(part: str, entry: object) -> tuple[Any, Any]:
    """Images and labels of a part, None where it has no labels."""
    if not isinstance(entry, tuple):
        return entry, None
    if len(entry) != 2:
        raise ValueError(f"part {part} is a tuple of {len(entry)}; give (images, labels), or images alone")
    return entry


def _checked_images(part: str, pixels: Any) -> Images:
    images = _array(f"images of part {part}", pixels)
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images of part {part} have the shape {images.shape}, not (images, height, width, 3); {_to_rgb(images.shape)}")
    if len(images) < 2:
        raise ValueError(f"part {part} has too few images ({len(images)}); give at least 2")
    if images.dtype != np.uint8:
        low, high = (f"{bound:.6g}" for bound in (images.min(), images.max())) if images.dtype.kind in "fiu" else ("?", "?")
        values = f"{images.dtype} from {low} to {high}, not uint8 from 0 to 255"
        raise ValueError(f"images of part {part} are {values}; {_to_bytes(images)}")
    if images.max() < BLACK:
        largest = f"no value is above {images.max()} of 255"
        raise ValueError(f"images of part {part} look black: {largest}; scale them to 0 to 255 before they become bytes")
    return images


def _to_rgb(shape: tuple[int, ...]) -> str:
    """How images of a wrong shape become images of the right one."""
    if len(shape) == 3:
        return "np.stack them" if shape[-1] == 3 else "repeat grey as colours: np.repeat(images[..., None], 3, axis=-1)"
    if len(shape) != 4 or 0 in shape[1:]:
        return "np.stack images of one size"
    if shape[1] == 3:
        return "put channels last: images.transpose(0, 2, 3, 1)"
    return {1: "repeat grey as colours: np.repeat(images, 3, axis=-1)", 4: "leave out opacity: images[..., :3]"}.get(
        shape[-1], "choose three channels that are red, green and blue"
    )


def _to_bytes(images: np.ndarray) -> str:
    """How images of a wrong type become bytes."""
    if images.dtype.kind == "b" or (images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1):
        return "convert them: np.round(255 * images).astype(np.uint8)"
    if images.dtype.kind in "fiu" and images.min() >= 0 and images.max() <= 255:
        return "convert them: np.round(images).astype(np.uint8)"
    if images.dtype.kind == "f" and images.min() < 0:
        return "undo the normalisation (models have their own): np.round(255 * (images * std + mean)).clip(0, 255).astype(np.uint8)"
    return "scale them to 0 to 255, then convert them: np.round(images).astype(np.uint8)"


def _checked_labels(part: str, entries: Any, count: int) -> Labels:
    labels = _array(f"labels of part {part}", entries)
    if labels.dtype.kind not in "iufb":
        remedy = (
            "number them: labels = [classes.index(label) for label in labels] with classes = sorted(set(train_labels)), and pass classes"
        )
        raise ValueError(f"labels of part {part} are strings or objects, not integers; {remedy}")
    if labels.ndim == 2:
        remedy = "use labels[:, 0]" if labels.shape[1] == 1 else "use labels.argmax(axis=1)"
        raise ValueError(f"labels of part {part} have the shape {labels.shape}, not one number an image; {remedy}")
    if labels.shape != (count,):
        raise ValueError(f"labels of part {part} have the shape {labels.shape}, for {count} images; give one number an image")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels of part {part} are {labels.dtype}, not integers; convert them: labels.astype(int)")
    if labels.min() < 0:
        raise ValueError(f"a label of part {part} is {labels.min()}; count classes from 0, and leave out images without a class")
    return labels.astype(np.int64)


def _checked_classes(labels: dict[str, Labels], classes: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Names of the classes, and labels that index them.

    Raises:
        ValueError: as in `array_data`.
    """
    if not labels:
        if classes is not None:
            raise ValueError(f"{len(classes)} classes are given and no labels; give (images, labels) for every part, or no classes")
        return (), {}
    present = np.unique(labels["train"])
    names = tuple(map(str, present if classes is None else classes))
    largest = max(int(entries.max()) for entries in labels.values())
    if classes is not None and largest >= len(names):
        raise ValueError(f"a label is {largest}, but {len(names)} classes have labels 0 to {len(names) - 1}; name all, counted from 0")
    if len(set(names)) < len(names):
        raise ValueError(f"classes name {next(name for name in names if names.count(name) > 1)} twice; give every class a name of its own")
    if len(present) < 2:
        raise ValueError(f"all train labels are {present[0]}: a probe of one class is always right; add classes, or give no labels")
    for part, entries in labels.items():
        if extra := np.setdiff1d(entries, present).tolist():
            listed = ", ".join(str(label) if classes is None else names[label] for label in extra[:5])
            raise ValueError(f"part {part} has images of class {listed}, train has none of them; add some, or leave the class out")
    return names, labels if classes is not None else {part: np.searchsorted(present, entries) for part, entries in labels.items()}


def _array(what: str, entries: Any) -> np.ndarray:
    try:
        return np.asarray(entries)
    except ValueError as error:
        raise ValueError(f"{what} are of different sizes and make no array; bring them to one size") from error
