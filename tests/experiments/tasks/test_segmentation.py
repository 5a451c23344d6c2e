"""Semantic segmentation: its numbers, and the memory of the retrieval."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.datasets.base import Masks, Part
from experiments.tasks.base import FROZEN, REFITTED, Context, Readouts, pack, unpack
from experiments.tasks.segmentation import SEGMENTATION, balanced_memory, segment, uniform_memory
from jaxvit import metrics
from jaxvit.inference import value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features


@pytest.fixture(scope="module")
def context() -> Context:
    """Images of 8 x 8 pixels in 2 x 2 patches, whose halves are of one class each; no image shows the third class."""
    mask = np.repeat([[0, 1]], 8, axis=0).repeat(4, axis=1).astype(np.uint8)
    masks = Masks("train", "test", np.stack([mask] * 3), np.stack([mask] * 2), np.full((2, 2), 8), ("left", "right", "nowhere"))
    parts = {masks.train_part: Part(np.zeros((3, 8, 8, 3), np.uint8)), masks.test_part: Part(np.zeros((2, 8, 8, 3), np.uint8))}
    made = make_context(masks=masks, parts=parts, protocols={"masks": "halves"})
    return made._replace(readouts=Readouts(memory=6))


@pytest.fixture(scope="module")
def features(context) -> FeaturesByPart:
    """Patches that say which half they are of."""
    masks = context.data.masks
    sides = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    return FeaturesByPart(
        {
            part: make_features(count)._replace(patches=np.stack([sides] * count) + 0.01 * make_features(count, patches=4, width=2).patches)
            for part, count in ((masks.train_part, 3), (masks.test_part, 2))
        }
    )


def test_the_numbers_are_of_a_refitted_head_of_every_class_of_a_frozen_head_and_of_retrieval(context, features):
    full = segment(features, context, {})
    assert [(r.metric, r.feature, r.readout, len(r.scores)) for r in full] == [
        ("miou", "patches", REFITTED, 1),
        ("iou", "patches: left", REFITTED, 1),
        ("iou", "patches: right", REFITTED, 1),
        ("iou", "patches: nowhere", REFITTED, 1),
        ("miou_retrieval", "patches", REFITTED, 3),
        ("miou_retrieval_balanced", "patches", REFITTED, 3),
    ]
    assert [r.draws for r in full[4:]] == [(0, 1, 2)] * 2
    assert np.isnan(value(full[3].scores[0])), "neither true nor predicted: it has no IoU"
    assert value(full[0].scores[0]) == pytest.approx(np.mean([value(r.scores[0]) for r in full[1:3]]))
    assert value(full[0].scores[0]) > 0.8
    ablated = segment(features, context._replace(ablated=True), full[0].readouts)
    (frozen,) = [r for r in ablated if r.readout == FROZEN]
    assert frozen.identity == full[0].identity
    assert "fit=full" in frozen.protocol
    np.testing.assert_array_equal(frozen.scores[0].contributions, full[0].scores[0].contributions)


def test_confusion_matrices_survive_storage_with_the_finish_that_the_task_declares(context, features):
    results = segment(features, context, {})
    for one, other in zip(results, unpack(pack(results), SEGMENTATION), strict=True):
        assert [s.finish for s in other.scores] == [s.finish for s in one.scores]
        np.testing.assert_array_equal([value(s) for s in other.scores], [value(s) for s in one.scores])
    assert results[0].scores[0].finish is metrics.mean_iou


def restated_scores(shows: np.ndarray) -> np.ndarray:
    """Of the patches of one image: how many patches show each class that a patch shows, summed; by plain counting."""
    frequency = [sum(bool(patch[c]) for patch in shows) for c in range(shows.shape[1])]
    return np.array([sum(frequency[c] for c in range(shows.shape[1]) if patch[c]) for patch in shows])


def test_a_balanced_memory_takes_of_every_image_patches_of_classes_that_few_patches_show():
    """As open-hummingbird-eval takes them: the lowest products of score and uniform draw, the same number of every image."""
    generator = np.random.default_rng(0)
    common = generator.random((40, 64)) < 0.95
    shares = np.stack([common, ~common, generator.random((40, 64)) < 0.03], axis=-1) / 2.0
    usable = generator.random((40, 64)) < 0.9
    draws = [np.unravel_index(balanced_memory(shares, usable, 40 * 8 + 3, seed), (40, 64)) for seed in range(200)]
    for images, patches in draws[:5]:
        assert (np.bincount(images, minlength=40) == 8).all(), "the remainder is given to none"
        assert usable[images, patches].all()
    chosen = np.zeros((40, 64))
    for images, patches in draws:
        chosen[images, patches] += 1 / 200
    image = 3
    shows = (shares[image] > 0)[usable[image]]
    uniform = np.random.default_rng(1).random((4000, len(shows)))
    lowest = np.argsort(restated_scores(shows) * uniform, axis=1)[:, :8]
    expected = np.bincount(lowest.ravel(), minlength=len(shows)) / 4000
    np.testing.assert_allclose(chosen[image][usable[image]], expected, atol=0.15)
    rare, frequent = (usable & ~common), (usable & common & (shares[..., 2] == 0))
    assert chosen[rare].mean() > 3 * chosen[frequent].mean()
    with_uniform = uniform_memory(shares, usable, 320, 0)
    assert common.ravel()[with_uniform].mean() > 0.9 > common[draws[0]].mean()


def test_a_balanced_memory_smaller_than_the_images_takes_one_patch_of_some():
    memory = balanced_memory(np.ones((10, 4, 1)), np.ones((10, 4), bool), 6, 0)
    assert len(memory) == len(set(memory // 4)) == 6
    few = np.zeros((3, 4), bool)
    few[0, :2] = few[1] = True
    assert balanced_memory(np.ones((3, 4, 1)), few, 9, 0).size == 2 + 3


def test_the_memory_is_drawn_from_usable_patches_with_the_seed():
    usable, shares = (np.arange(50) % 2 == 0).reshape(5, 10), np.ones((5, 10, 1))
    for draw in (uniform_memory, balanced_memory):
        memory = draw(shares, usable, 10, 0)
        assert len(set(memory)) == 10
        assert usable.ravel()[memory].all()
        assert (draw(shares, usable, 10, 0) == memory).all()
        assert (draw(shares, usable, 10, 1) != memory).any()
        assert len(draw(shares, usable, 99, 0)) == 25
