"""The data of a study: named parts with images, and what is known of them (classes, masks, pairs of views, keypoints)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments import scenes

SCENES_VERSION = 2  # raise it when the same seed gives other scenes
_FIRST_ID = {
    part: number * 10_000_000
    for number, part in enumerate(("bank", "choose", "test", "first", "second", "segmentation_bank", "segmentation_test", "keypoints"))
}

PARTS_OF = (("calibration", "bank"), ("flow", "test"), ("gallery", "test"))
"""Counts that are parts of others."""


@dataclass(frozen=True)
class DataSize:
    """How many images a study uses of each kind; what is not given is the preset's.

    Attributes:
        bank: images that read-outs are fitted on.
        choose: images that regularisation is chosen on.
        test: images that are reported.
        pairs: pairs of views for correspondence and Recall@1.
        segmentation: images with masks whose patches the segmentation read-outs are fitted on.
        segmentation_test: images with masks that are reported.
        keypoints: pairs of images with keypoints.
        calibration: images of the bank that means and variances come from.
        flow: test images for attention flow, divergence and geometry.
        gallery: test images that registers look for their nearest patches in.
    """

    bank: int | None = None
    choose: int | None = None
    test: int | None = None
    pairs: int | None = None
    segmentation: int | None = None
    segmentation_test: int | None = None
    keypoints: int | None = None
    calibration: int | None = None
    flow: int | None = None
    gallery: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 2:
                raise ValueError(f"{name} is {value}; use at least 2 images")

    def filled(self, default: DataSize, parts: tuple[tuple[str, str], ...] = PARTS_OF) -> DataSize:
        """With the default in the place of what is not given; a part of a part is by default no larger than the whole.

        Raises:
            ValueError: a given part of a part is larger than the whole.
        """
        size = replace(default, **{name: value for name, value in vars(self).items() if value is not None})
        for part, whole in parts:
            if size[part] > size[whole] and self[part]:
                raise ValueError(f"{part} ({size[part]}) is more than {whole} ({size[whole]}); lower it")
            size = replace(size, **{part: min(size[part], size[whole])})
        return size

    def __getitem__(self, name: str) -> int:
        return getattr(self, name) or 0


DEMO_SIZE = DataSize(
    bank=1536,
    choose=384,
    test=1280,
    pairs=256,
    segmentation=384,
    segmentation_test=512,
    calibration=512,
    flow=128,
    gallery=128,
)
"""Whole batches of 128."""


class Part(NamedTuple):
    """Images that a model runs on.

    Attributes:
        images: pixels; may lie in a file.
        dense: so many of them, from the first on, keep the features of every patch; the others keep their mean only.
    """

    images: UInt8[np.ndarray, "images height width 3"]
    dense: int = 0


class Views(NamedTuple):
    """Pairs of views: what maps the first to the second, and named sets of pixels of the first that are told apart.

    Attributes:
        warp: affine map of pixel coordinates (x, y), pixel centres at integer + 0.5.
        pixels: name of a set, pixels that belong to it.
    """

    warp: Float[np.ndarray, "pairs 2 3"]
    pixels: dict[str, Bool[np.ndarray, "pairs height width"]]


class Masks(NamedTuple):
    """Which class every pixel belongs to; 255 is ignored.

    Attributes:
        bank_part, test_part: whose images they are masks of, from the first on.
        bank: at the size of the images.
        test: at their own size, in the upper left of a canvas for all.
        sizes: height and width of each test mask.
        classes: names, in the order of the labels.
    """

    bank_part: str
    test_part: str
    bank: UInt8[np.ndarray, "bank height width"]
    test: UInt8[np.ndarray, "test rows columns"]
    sizes: Int[np.ndarray, "test 2"]
    classes: tuple[str, ...]


class Keypoints(NamedTuple):
    """Pairs of images of part "keypoints" with points that correspond.

    Attributes:
        source, target: positions of the images in the part.
        source_points, target_points: pixels of the images as the model sees them; valid: which of the slots hold a point.
        scale: pixels of the target as it was, for one pixel (x and y) as the model sees it.
        box, size: longer side of the target's bounding box and of the target, in its own pixels.
        category: number of the pair's category in `categories`.
    """

    source: Int[np.ndarray, "pairs"]
    target: Int[np.ndarray, "pairs"]
    source_points: Float[np.ndarray, "pairs points 2"]
    target_points: Float[np.ndarray, "pairs points 2"]
    valid: Bool[np.ndarray, "pairs points"]
    scale: Float[np.ndarray, "pairs 2"]
    box: Float[np.ndarray, "pairs"]
    size: Float[np.ndarray, "pairs"]
    category: Int[np.ndarray, "pairs"]
    categories: tuple[str, ...]


@dataclass(frozen=True)
class StudyData:
    """The data, and the key that determines it.

    Attributes:
        title: what the images are, for the page.
        parts: "bank", "choose" and "test" have labels; "first" and "second" are views; others belong to masks and keypoints.
        labels: class of every image of the parts that have one.
        classes: their names.
        protocols: how images were resized and pairs drawn, by task, for the protocol ids.
    """

    title: str
    parts: dict[str, Part]
    labels: dict[str, Int[np.ndarray, "images"]]
    classes: tuple[str, ...]
    views: Views | None
    masks: Masks | None
    keypoints: Keypoints | None
    size: DataSize
    protocols: dict[str, str]
    key: dict[str, Any]

    @property
    def sample(self) -> UInt8[np.ndarray, "images height width 3"]:
        """The test images for measures without labels."""
        return self.parts["test"].images[: self.size["flow"]]


def digit_scenes(given: DataSize, seed: int) -> StudyData:
    """Digit scenes; bank and choose use training digits and ground, test and pairs use test digits and ground."""
    size = given.filled(DEMO_SIZE, (*PARTS_OF, ("segmentation", "bank"), ("segmentation_test", "test")))
    key = {"name": "digit_scenes", "version": SCENES_VERSION, "seed": seed, **vars(size)}
    bank, choose, test = (scenes.scenes(split, size[split], seed) for split in ("bank", "choose", "test"))
    pairs = scenes.pairs("test", size["pairs"], seed)
    parts = {
        "bank": Part(bank.images, size["segmentation"]),
        "choose": Part(choose.images),
        "test": Part(test.images, max(size["segmentation_test"], size["flow"], size["gallery"])),
        "first": Part(pairs.first, len(pairs.first)),
        "second": Part(pairs.second, len(pairs.second)),
    }
    masks = test.masks[: size["segmentation_test"]]
    sizes = np.full((len(masks), 2), masks.shape[1:])
    names = ("ground", *(f"digit {d}" for d in range(10)))
    return StudyData(
        title="digit scenes",
        parts=parts,
        labels={"bank": bank.labels, "choose": choose.labels, "test": test.labels},
        classes=tuple(str(d) for d in range(10)),
        views=Views(pairs.warp, {"digit_patches": pairs.digit}),
        masks=Masks("bank", "test", bank.masks[: size["segmentation"]], masks, sizes, names),
        keypoints=None,
        size=size,
        protocols={"views": "rotation, scale, translation", "masks": "64 px", "labels": "digits apart"},
        key=key,
    )


def first_id(part: str) -> int:
    """Example ids of a part of the data count from here, so that no two parts share a random draw."""
    return _FIRST_ID[part]
