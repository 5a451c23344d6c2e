"""The data of a study from digit scenes: the bundled demo, which needs no files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from experiments.datasets import scenes
from experiments.datasets.base import PARTS_OF, DataSize, Masks, Part, Shown, StudyData, Views, first_ids
from experiments.numerics import pinned_thread

SCENES_VERSION = 2  # raise it when the same seed gives other scenes

# multiples of the preset's batch of 128, so that no batch is padded
DEMO_SIZE = DataSize(
    train=1536,
    val=384,
    test=1280,
    pairs=256,
    segmentation=384,
    segmentation_test=512,
    calibration=512,
    analysis_images=128,
    gallery=128,
    sink_train=128,
    sink_test=256,
)


QUICK_SIZE = DataSize(
    train=256,
    val=64,
    test=256,
    pairs=64,
    segmentation=64,
    segmentation_test=64,
    calibration=128,
    analysis_images=64,
    gallery=64,
    sink_train=128,
    sink_test=256,
)
"""For a look in about two minutes: intervals are about twice as wide as those of `DEMO_SIZE`."""


def digit_scenes(requested: DataSize, seed: int, default: DataSize = DEMO_SIZE) -> StudyData:
    """Digit scenes of `requested` numbers, where those are not given of `default`. "train" and "val" show training digits on training
    grounds; "test" and the pairs of views show test digits on test grounds.

    Raises:
        ValueError: a subset of a part is larger than the part.
    """
    size = requested.filled(default, (*PARTS_OF, ("segmentation", "train"), ("segmentation_test", "test")))
    with ThreadPoolExecutor(1) as beside:  # the time goes to compiling two programs
        views = beside.submit(_pinned, scenes.pairs, "test", size["pairs"], seed)
        train, val, test = (scenes.scenes(split, size[split], seed) for split in ("train", "val", "test"))
        pairs = views.result()
    test_masks = test.masks[: size["segmentation_test"]]
    parts = {
        "train": Part(train.images, size["segmentation"]),
        "val": Part(val.images),
        "test": Part(test.images, max(size["segmentation_test"], size["analysis_images"], size["gallery"])),
        "first": Part(pairs.first, len(pairs.first)),
        "second": Part(pairs.second, len(pairs.second)),
    }
    return StudyData(
        title="digit scenes",
        parts=parts,
        labels={"train": train.labels, "val": val.labels, "test": test.labels},
        classes=tuple(str(digit) for digit in range(10)),
        views=Views(pairs.warp, {"digit_patches": pairs.digit}),
        masks=Masks(
            train_part="train",
            test_part="test",
            train=train.masks[: size["segmentation"]],
            test=test_masks,
            sizes=np.full((len(test_masks), 2), test_masks.shape[1:]),
            classes=("ground", *(f"digit {digit}" for digit in range(10))),
        ),
        keypoints=None,
        size=size,
        protocols={"views": "rotation, scale, translation", "masks": "64 px", "labels": "digits apart"},
        key={
            "name": "digit_scenes",
            "version": SCENES_VERSION,
            "seed": seed,
            "first_ids": first_ids(parts),
            "scenes": {split: scenes.definition(split) for split in ("train", "val", "test")},
            **vars(size),
        },
        subjects={part: Shown("digits", numbers[:, None]) for part, numbers in (("test", test.number), ("first", pairs.number))},
    )


def _pinned(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a thread of its own, which does not inherit what the main thread has pinned."""
    with pinned_thread():
        return function(*arguments)
