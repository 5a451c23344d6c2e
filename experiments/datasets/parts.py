"""What folders and arrays share: the division of images into parts, their numbers, pairs of views, and hashes for keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from experiments.datasets.base import PARTS_OF, DataSize, Part, Views, first_ids
from experiments.datasets.pairs import PairRecipe, view_pairs
from experiments.datasets.reading import MAX_PIXELS
from experiments.datasets.stored import ImageSource

IMAGENET_SIZE = DataSize(
    train=35_000, val=5_000, test=10_000, pairs=2_000, segmentation=1_464, segmentation_test=1_449, keypoints=12_234,
    calibration=5_000, analysis_images=200, gallery=500, sink_train=10_000, sink_test=5_000,
)  # fmt: skip
"""40,000 images to fit and choose on and 10,000 to report; the full splits of VOC 2012 and SPair-71k."""


def draw_parts(
    labels: Mapping[str, Int[np.ndarray, "images"]],
    classes: Sequence[str],
    requested: DataSize,
    default: DataSize,
    seed: int,
    places: Mapping[str, str],
    option: str,
) -> dict[str, Int[np.ndarray, "images"]]:
    """Indices of the images of the parts train, val and test, at random by the seed and stratified by class. A part that has no images
    of its own is drawn from those for "train": a fifth of them for test, then an eighth for val.

    Args:
        labels: of the images for "train" and, where they are apart, for "val" and "test"; all the same where there are no classes.
        classes: names of the labels, for errors.
        requested: numbers of images; `default` stands for those that are not given, as far as there are images.
        seed: of the order of the images; the images of a part are the leading ones.
        places: where the images are, for errors, by the keys of `labels`.
        option: what stands before the name of a number where it is requested, for errors.

    Raises:
        ValueError: more images are requested than there are, too few for a part, or a class has no train image.
    """

    def count(part: str, available: int, usual: int | None = None) -> int:
        """The requested number of images; else the default, but no more than `usual`, by default all that are available."""
        place = places.get(part, places["train"])
        if available < 2:
            raise ValueError(f"{place} has too few images for part {part} ({max(available, 0)} of at least 2); add images")
        if requested[part] > available:
            raise ValueError(f"{part} is {requested[part]}, but {place} has {available} images for it; lower {option}{part}")
        return requested[part] or min(default[part], available if usual is None else usual)

    orders = {name: stratified_order(entries, seed) for name, entries in labels.items()}
    remaining = orders["train"]
    if "test" in orders:
        test = orders["test"]
    else:
        # the leading fifth is as evenly divided between the classes as the rest
        test, remaining = np.split(remaining, [len(remaining) // 5])
    test = test[: count("test", len(test))]
    if "val" in orders:
        train, val = remaining[: count("train", len(remaining))], orders["val"][: count("val", len(orders["val"]))]
    else:
        val_count = count("val", len(remaining) - 2, max(2, len(remaining) // 8))
        train_count = count("train", len(remaining) - val_count)
        train, val = remaining[:train_count], remaining[train_count : train_count + val_count]
    parts = {"train": train, "val": val, "test": test}
    drawn = {part: labels.get(part, labels["train"])[indices] for part, indices in parts.items()}
    if missing := np.setdiff1d(np.concatenate([drawn["val"], drawn["test"]]), drawn["train"]).tolist():
        names = ", ".join(classes[label] for label in missing[:5])
        raise ValueError(f"none of the {len(train)} images of part train is of {names}; raise {option}train, or take the class out")
    return parts


def complete_size(requested: DataSize, default: DataSize, counts: Mapping[str, int], pairs_of_test: bool) -> DataSize:
    """All numbers of images of data whose parts train, val and test have `counts`.

    Args:
        requested: numbers of images that are given.
        default: those that stand where none is given, cut to what there is.
        counts: numbers of images in the parts.
        pairs_of_test: whether pairs of views are made from the test images, of which there must be as many.

    Raises:
        ValueError: a subset of a part that is requested is larger than the part.
    """
    parts_of = (*PARTS_OF, ("pairs", "test")) if pairs_of_test else PARTS_OF
    return replace(requested, **counts).filled(replace(default, **counts), parts_of)


def labelled_parts(pixels: Mapping[str, UInt8[np.ndarray, "images height width 3"]], size: DataSize) -> dict[str, Part]:
    """The parts train, val and test of these pixels; patches are kept of the test images that are read patch by patch."""
    patch_images = {"test": max(size["analysis_images"], size["gallery"])}
    return {name: Part(pixels[name], patch_images.get(name, 0)) for name in ("train", "val", "test")}


def add_views(
    parts: dict[str, Part],
    images: Sequence[ImageSource] | UInt8[np.ndarray, "images height width 3"],
    count: int,
    side: int,
    seed: int,
    max_pixels: int = MAX_PIXELS,
    keep_blank: bool = True,
) -> Views:
    """Pairs of views, each of an image of its own; adds the parts first and second."""
    pairs = view_pairs(images, count, side, seed, PairRecipe(), max_pixels, keep_blank)
    parts["first"], parts["second"] = Part(pairs.first, len(pairs.first)), Part(pairs.second, len(pairs.second))
    return Views(pairs.warp, {})


def view_protocol(side: int) -> str:
    """How pairs of views are made, for protocol ids."""
    return f"{PairRecipe()} {side}"


def data_key(
    name: str, version: int, seed: int, parts: Mapping[str, Part], classes: Sequence[str], content: Mapping[str, Any], size: DataSize
) -> dict[str, Any]:
    """What determines the data, as JSON: how they were made, by name and version, and what they are (`hashes`)."""
    made = {"name": name, "version": version, "seed": seed, "first_ids": first_ids(parts)}
    return {**made, "classes": tuple(classes), "content": dict(content), **vars(size)}


def hashes(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the key for these fields: arrays by their SHA-256, anything else as it is."""
    return {f"{kind} {name}": _hash(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()}


def stratified_order(labels: Int[np.ndarray, "images"], seed: int) -> Int[np.ndarray, "images"]:
    """A random order of all images in which every class has its share of any number of leading ones."""
    generator = np.random.default_rng((seed, len(labels)))
    order = generator.permutation(len(labels))
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(quantile[order], kind="stable")]


def _hash(array: np.ndarray) -> str:
    """A hash of an array's shape and content, read in pieces: the array may be mapped from a file larger than memory."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    for start in range(0, len(array), 256):
        digest.update(array[start : start + 256].tobytes())
    return digest.hexdigest()[:20]
