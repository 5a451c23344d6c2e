"""PCK of keypoints on hand-made matches, against plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.datasets.base import Keypoints, Part
from experiments.features.extraction import Features
from experiments.tasks.keypoints import keypoints
from jaxvit.inference import value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features


def one_hot_patches(images: int) -> Features:
    """Every patch of a 2 x 2 grid has a feature of its own, the same in all images: patch i is found at patch i."""
    patches = np.broadcast_to(np.eye(4, dtype=np.float32), (images, 4, 4))
    return make_features(images)._replace(patches=patches)


def test_pck_is_over_points_over_pairs_and_over_categories_with_pairs_as_units():
    """Images of 20 x 20 pixels seen as 8 x 8, patches of 4: centres at 2 and 6, that is at 5 and 15 of the original's pixels."""
    true = np.array([[[2.0, 2], [6, 6]], [[2, 2], [0, 0]], [[6, 2], [2, 2]]])
    true[2, 0, 1] += 2  # found 2 seen pixels away: 5 of the original's
    pairs = Keypoints(
        source=np.array([0, 0, 1]),
        target=np.array([1, 2, 2]),
        source_points=np.array([[[2.0, 2], [6, 6]], [[2, 2], [0, 0]], [[6, 2], [2, 2]]]),
        target_points=true,
        valid=np.array([[True, True], [True, False], [True, True]]),
        scale=np.full((3, 2), 2.5),
        box=np.array([20.0, 20, 40]),
        size=np.array([20.0, 20, 100]),
        category=np.array([0, 0, 1]),
        categories=("car", "dog"),
    )
    images = np.zeros((3, 8, 8, 3), np.uint8)
    context = make_context(keypoints=pairs, parts={"keypoints": Part(images)}, protocols={"keypoints": "stretch 8"})
    scores = {(r.metric, r.feature): r.scores[0] for r in keypoints(FeaturesByPart(keypoints=one_hot_patches(3)), context, {})}
    assert value(scores["pck_0.1", "patches"]) == pytest.approx(4 / 5), "5 pixels are more than 0.1 x 40"
    assert value(scores["pck_0.15", "patches"]) == 1
    assert value(scores["pck_0.05_image_size", "patches"]) == 1, "5 pixels are 0.05 x 100"
    assert value(scores["pck_0.1_per_image", "patches"]) == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert value(scores["pck_0.1", "patches: car"]) == 1
    assert value(scores["pck_0.1", "patches: dog"]) == pytest.approx(1 / 2)
    assert value(scores["pck_0.1_mean_of_categories", "patches"]) == pytest.approx((1 + 1 / 2) / 2)
    assert value(scores["pck_0.1_per_image", "patches: dog"]) == pytest.approx(1 / 2)
    assert {len(score.contributions) for score in scores.values()} == {3}, "pairs, in their order"
    assert scores["pck_0.1", "patches: dog"].contributions.any(axis=1).tolist() == [False, False, True]
