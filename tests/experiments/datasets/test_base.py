"""Numbers of images, and the ids of examples."""

from __future__ import annotations

import pytest

from experiments.datasets.base import PARTS_OF, DataSize, first_id, first_ids

DEFAULT = DataSize(train=100, val=30, test=50, calibration=40, analysis_images=20, gallery=10, sink_train=30, sink_test=5)


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="train is 1; use at least 2"):
        DataSize(train=1)


def test_numbers_that_are_not_given_are_the_defaults():
    size = DataSize(train=60).filled(DEFAULT)
    assert (size["train"], size["val"], size["test"], size["calibration"]) == (60, 30, 50, 40)
    assert size["keypoints"] == 0, "what neither gives is none"


def test_the_default_of_a_subset_is_cut_to_its_whole():
    size = DataSize(train=25, test=12).filled(DEFAULT)
    cut = {"calibration": 25, "analysis_images": 12, "gallery": 10, "sink_train": 25, "sink_test": 5}
    assert {subset: size[subset] for subset, _ in PARTS_OF} == cut


@pytest.mark.parametrize(("subset", "whole"), PARTS_OF)
def test_a_subset_larger_than_its_whole_is_refused(subset: str, whole: str):
    with pytest.raises(ValueError, match=rf"{subset} \(9\) is more than {whole} \(8\); lower it"):
        DataSize(**{subset: 9, whole: 8}).filled(DEFAULT)


def test_every_part_has_ten_million_example_ids_of_its_own():
    parts = ("train", "val", "test", "first", "second", "segmentation_train", "segmentation_test", "keypoints")
    assert [first_id(part) for part in parts] == [10_000_000 * number for number in range(8)]
    assert first_ids(("test", "train")) == {"test": 20_000_000, "train": 0}
