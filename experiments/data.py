"""The data of a study: scenes to fit on, to choose on, to report on, and pairs of views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments import scenes
from experiments.scenes import Pairs, Scenes

SCENES_VERSION = 2  # raise it when the same seed gives other scenes
CLASSES = 10
MASK_CLASSES = 11
_FIRST_ID = {"bank": 0, "choose": 1_000_000, "test": 2_000_000, "first": 3_000_000, "second": 4_000_000}


@dataclass(frozen=True)
class DataSize:
    """How many digit scenes a study uses.

    Attributes:
        bank: scenes that read-outs are fitted on.
        choose: scenes that regularisation is chosen on; their digits are in no other part.
        test: scenes that are reported.
        pairs: pairs of views, of test digits.
        segmentation: scenes of the bank whose patches the segmentation read-out is fitted on.
        calibration: scenes of the bank that means and variances come from.
        flow: test scenes for attention flow and effective rank.
    """

    bank: int = 1600
    choose: int = 400
    test: int = 2200
    pairs: int = 300
    segmentation: int = 500
    calibration: int = 512
    flow: int = 200

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 10:
                raise ValueError(f"{name} is {value}; use at least 10 scenes")
        for part, whole in (("segmentation", "bank"), ("calibration", "bank"), ("flow", "test")):
            if getattr(self, part) > getattr(self, whole):
                raise ValueError(f"{part} ({getattr(self, part)}) is more than {whole} ({getattr(self, whole)}); lower it")


class StudyData(NamedTuple):
    """The data, and the key that determines it."""

    bank: Scenes
    choose: Scenes
    test: Scenes
    pairs: Pairs
    size: DataSize
    key: dict[str, Any]


def digit_scenes(size: DataSize, seed: int) -> StudyData:
    """Digit scenes; bank and choose use training digits and ground, test and pairs use test digits and ground."""
    key = {"name": "digit_scenes", "version": SCENES_VERSION, "seed": seed, **vars(size)}
    bank, choose, test = (scenes.scenes(split, getattr(size, split), seed) for split in ("bank", "choose", "test"))
    return StudyData(bank, choose, test, scenes.pairs("test", size.pairs, seed), size, key)


def first_id(part: str) -> int:
    """Example ids of a part of the data count from here, so that no two parts share a random draw."""
    return _FIRST_ID[part]
