"""The data of a study: named parts of images and their annotations (classes, masks, pairs of views, keypoints)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments.datasets.images import TORCHVISION

_FIRST_IDS = {
    "train": 0,
    "val": 10_000_000,
    "test": 20_000_000,
    "first": 30_000_000,
    "second": 40_000_000,
    "segmentation_train": 50_000_000,
    "segmentation_test": 60_000_000,
    "keypoints": 70_000_000,
}

PARTS_OF = (
    ("calibration", "train"),
    ("analysis_images", "test"),
    ("gallery", "test"),
    ("sink_train", "train"),
    ("sink_test", "test"),
)
"""Numbers of images that are the leading ones of another: (subset, whole)."""


@dataclass(frozen=True)
class DataSize:
    """Numbers of images, by use; the preset's where not given.

    Attributes:
        train: images that read-outs are fitted on.
        val: images that regularisation is chosen on.
        test: images that results are reported on.
        pairs: pairs of views for correspondence and Recall@1.
        segmentation: images with masks that segmentation read-outs are fitted on.
        segmentation_test: images with masks that segmentation is reported on.
        keypoints: pairs of images with keypoints.
        calibration: leading train images that means and variances of activations are computed from.
        analysis_images: leading test images for attention flow, divergence and geometry.
        gallery: leading test images in which the patches nearest to registers are searched.
        sink_train: leading train images that the read-outs of content_or_sink are fitted on; of those with masks as many.
        sink_test: leading test images that it is scored on.
    """

    train: int | None = None
    val: int | None = None
    test: int | None = None
    pairs: int | None = None
    segmentation: int | None = None
    segmentation_test: int | None = None
    keypoints: int | None = None
    calibration: int | None = None
    analysis_images: int | None = None
    gallery: int | None = None
    sink_train: int | None = None
    sink_test: int | None = None

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if count is not None and count < 2:
                raise ValueError(f"{name} is {count}; use at least 2 images")

    def filled(self, default: DataSize, parts_of: tuple[tuple[str, str], ...] = PARTS_OF) -> DataSize:
        """These numbers, and those of `default` where none is given; a default for a subset is cut to the size of its whole.

        Raises:
            ValueError: a subset that is given is larger than its whole.
        """
        size = replace(default, **{name: count for name, count in vars(self).items() if count is not None})
        for subset, whole in parts_of:
            if size[subset] > size[whole] and self[subset]:
                raise ValueError(f"{subset} ({size[subset]}) is more than {whole} ({size[whole]}); lower it")
            size = replace(size, **{subset: min(size[subset], size[whole])})
        return size

    def __getitem__(self, name: str) -> int:
        return getattr(self, name) or 0


class Part(NamedTuple):
    """Images that a model runs on.

    Attributes:
        images: pixels; may be mapped from a file.
        patch_images: number of leading images whose patch features are kept one by one; of the others only their mean is.
    """

    images: UInt8[np.ndarray, "images height width 3"]
    patch_images: int = 0


class Views(NamedTuple):
    """Pairs of views of one scene or photograph each; their images are the parts "first" and "second".

    Attributes:
        warp: affine map from pixel coordinates (x, y) of the first view to those of the second; pixel centres at integer + 0.5.
        pixels: named sets of pixels of the first view that are also scored on their own.
    """

    warp: Float[np.ndarray, "pairs 2 3"]
    pixels: dict[str, Bool[np.ndarray, "pairs height width"]]


class Masks(NamedTuple):
    """The class of every pixel of the leading images of two parts; 255 is ignored.

    Attributes:
        train_part, test_part: names of the parts whose images the masks belong to.
        train: masks at the size of the images.
        test: masks at their own size, each in the upper left of a canvas that fits all.
        sizes: height and width of each test mask.
        classes: names, in the order of the labels.
    """

    train_part: str
    test_part: str
    train: UInt8[np.ndarray, "train height width"]
    test: UInt8[np.ndarray, "test rows columns"]
    sizes: Int[np.ndarray, "test 2"]
    classes: tuple[str, ...]


class Keypoints(NamedTuple):
    """Pairs of images of the part "keypoints", with points that correspond.

    Attributes:
        source, target: indices of the pair's images in the part.
        source_points, target_points: (x, y) in pixels of the images that the model sees; `valid` marks the slots that hold a point.
        scale: pixels of the original target in one pixel that the model sees, along x and y.
        box, size: longer side of the target's bounding box and of the target, in pixels of the original.
        category: index of the pair's category in `categories`.
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


class Shown(NamedTuple):
    """What images or pairs show that others show too, so that they are no independent observations.

    Attributes:
        unit: what is shown, in the plural.
        number: of the thing or things that each shows, such as the digit of a scene, or the two images of a pair.
    """

    unit: str
    number: Int[np.ndarray, "images things"]


@dataclass(frozen=True)
class StudyData:
    """Everything that a study reads, and the key that determines it.

    Attributes:
        title: what the images are, for the page.
        parts: "train", "val" and "test" have labels, if any have; "first" and "second" are views; the others belong to masks and
            keypoints.
        labels: class of every image of the parts that have one; empty where images have no classes.
        classes: names of the classes; empty likewise.
        size: numbers of images, none left open.
        protocols: how images were resized and pairs were drawn, by kind of annotation; stands in the protocol ids.
        key: what determines the data, as JSON.
        notes: lines about what was left out or looks wrong, for whoever reads the results.
        files: hash of the files that the parts train, val and test were read from, under whatever protocol; empty where there are none.
        subjects: what the images of a part, or pairs in its order, show that others of it show too; parts of independent images are not
            there.
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
    notes: tuple[str, ...] = ()
    files: str = ""
    subjects: Mapping[str, Shown] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """Name of the protocol in `images.PROTOCOLS` that the parts train, val and test are prepared by; images that are not decoded from
        files pass for torchvision's."""
        return self.key.get("protocol", TORCHVISION)

    @property
    def shown(self) -> dict[str, Shown]:
        """`subjects`, and for pairs with keypoints their two images: most images are in several pairs."""
        if self.keypoints is None:
            return dict(self.subjects)
        pairs = np.stack([self.keypoints.source, self.keypoints.target], axis=1)
        return {**self.subjects, "keypoints": Shown("source and target images", pairs)}

    @property
    def labelled(self) -> bool:
        """Whether the parts train, val and test have labels."""
        return bool(self.labels)

    @property
    def analysis_images(self) -> UInt8[np.ndarray, "images height width 3"]:
        """The leading test images, for measures without labels."""
        return self.parts["test"].images[: self.size["analysis_images"]]


def first_id(part: str) -> int:
    """The example id of the first image of a part; ranges do not overlap, so that no two parts share a random draw."""
    return _FIRST_IDS[part]


def first_ids(parts: Iterable[str]) -> dict[str, int]:
    """`first_id` of each part, for the key of the data: the random draws of a study depend on them."""
    return {part: first_id(part) for part in parts}
