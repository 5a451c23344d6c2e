"""Does a patch know which classes its pixels show? Semantic segmentation by a linear head and by retrieval."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments.datasets.base import Masks, StudyData
from experiments.features.extraction import patch_grid
from experiments.plotting.columns import Column
from experiments.tasks.base import (
    FROZEN,
    REFITTED,
    Context,
    FeatureSource,
    FrozenReadouts,
    MetricResult,
    Readouts,
    Task,
    pack_readout,
    protocol_id,
    unpack_readout,
)
from experiments.tasks.overwritten import Overwritten, besides_overwritten, left_out
from jaxvit import metrics
from jaxvit.inference import Scores, ratio_scores
from jaxvit.probes import knn, logistic
from jaxvit.probes.segmentation import class_shares, predict_padded

L2 = 1e-4
"""Penalty of the linear head."""
NEIGHBOURS, TEMPERATURE = 30, 0.02
"""Of the retrieval, as in Hummingbird."""
IGNORED = 255
"""Label of pixels that are not counted."""
_READOUT = "segmentation"


def segment(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """mIoU of softmax regression on patches, logits upsampled to pixels before the argmax: refitted for the condition and, beside it, of
    the full condition's read-out unchanged; and, without training, of soft labels retrieved from memories of patches.

    Overwritten patches are left out of fits and memories, and pixels out of the scores where the upsampling mixes one in."""
    return besides_overwritten(features, _parts(context.data), functools.partial(_score, context, frozen_readouts))


def _score(context: Context, frozen_readouts: FrozenReadouts, features: FeatureSource, overwritten: Overwritten) -> list[MetricResult]:
    """The results without overwritten patches."""
    masks, standardised = context.data.masks, context.readouts.standardised
    assert masks is not None
    train = features[masks.train_part].patches[: len(masks.train)]
    test = features[masks.test_part].patches[: len(masks.test)]
    rows, columns, side = patch_grid(train, context.data.parts[masks.train_part].images)
    shares, weights = map(np.asarray, class_shares(masks.train, len(masks.classes), side))
    targets = masks.test
    if overwritten:
        weights = weights * ~overwritten[masks.train_part][: len(train)]
        targets = _without_mixed_pixels(masks, overwritten[masks.test_part][: len(test)].reshape(-1, rows, columns))
    patches, labels, queries = (array.reshape(-1, array.shape[-1]) for array in (train, shares, test))

    def confusion(scores: np.ndarray) -> np.ndarray:
        """Of the classes predicted from scores [test patches, classes]."""
        grid = jnp.asarray(scores).reshape(len(test), rows, columns, -1)
        predicted = predict_padded(grid, masks.sizes, masks.test.shape[1:3])
        return np.asarray(metrics.confusion(predicted, targets, len(masks.classes)))

    def protocol(name: str, **settings: object) -> str:
        where = {**context.readouts.where, **left_out(overwritten)}
        return protocol_id(name, **settings, masks=context.data.protocols["masks"], upsample="bilinear logits", **where)

    results: list[MetricResult] = []
    if not (weights > 0).any():
        return results
    readout = logistic.fit(patches, labels, L2, weights.ravel(), standardised=standardised)
    head = protocol("linear_head", L2=L2, standardised=standardised, fit="condition")
    refitted = confusion(logistic.predict(readout, queries))
    results.append(_miou("miou", refitted, head)._replace(readouts=pack_readout(_READOUT, readout)))
    results += _iou_per_class(refitted, masks, head)
    if frozen_readouts:
        frozen = confusion(logistic.predict(unpack_readout(_READOUT, frozen_readouts, logistic.Logistic), queries))
        results.append(_miou("miou", frozen, protocol("linear_head", L2=L2, standardised=standardised, fit="full"), FROZEN))
    for metric, sampling, draw in MEMORIES:
        retrieved = []
        for seed in context.draws:
            memory = draw(shares, weights > 0, context.readouts.memory, seed)
            neighbours = min(NEIGHBOURS, len(memory))
            retrieved_labels = knn.retrieve(patches[memory], labels[memory], queries, neighbours, TEMPERATURE, mesh=context.mesh)
            retrieved.append(Scores(confusion(np.asarray(retrieved_labels)), metrics.mean_iou))
        settings = {"k": neighbours, "temperature": TEMPERATURE, "memory": context.readouts.memory, "sampling": sampling}
        result = MetricResult(metric, "patches", protocol("hummingbird", **settings), retrieved, readout=REFITTED, draws=context.draws)
        results.append(result)
    return [result._replace(part=masks.test_part) for result in results]


def _without_mixed_pixels(masks: Masks, overwritten: Bool[np.ndarray, "test rows columns"]) -> UInt8[np.ndarray, "test height width"]:
    """The test masks, with pixels ignored to whose scores an overwritten patch contributes by the upsampling, however little."""
    # the upsampling itself finds them: scores of 0, and of 1 where overwritten, have the second class where any weight is on a 1
    scores = np.stack([np.zeros(overwritten.shape), overwritten], axis=-1).astype(np.float32)
    mixed = np.asarray(predict_padded(scores, masks.sizes, masks.test.shape[1:3])) == 1
    return np.where(mixed, np.uint8(IGNORED), masks.test)


def _miou(metric: str, confusion: Int[np.ndarray, "images classes classes"], protocol: str, readout: str = REFITTED) -> MetricResult:
    return MetricResult(metric, "patches", protocol, [Scores(confusion, metrics.mean_iou)], readout=readout)


def _iou_per_class(confusion: Int[np.ndarray, "images classes classes"], masks: Masks, protocol: str) -> Iterator[MetricResult]:
    """Intersection over union of every class. One that is neither true nor predicted anywhere has none, and no row; the mean of the
    others is the mIoU."""
    overlap = metrics.class_overlap(confusion)
    for c, name in enumerate(masks.classes):
        yield MetricResult("iou", f"patches: {name}", protocol, [ratio_scores(overlap[:, c, 0], overlap[:, c, 1])], readout=REFITTED)


def uniform_memory(
    shares: Float[np.ndarray, "images patches classes"], usable: Bool[np.ndarray, "images patches"], size: int, seed: int
) -> Int[np.ndarray, "memory"]:
    """Positions, image by image, of the patches in a memory: `size` of the usable ones (all, where there are fewer), drawn without
    replacement."""
    positions = np.flatnonzero(usable)
    return np.sort(np.random.default_rng((seed, len(positions))).choice(positions, min(size, len(positions)), replace=False))


def balanced_memory(
    shares: Float[np.ndarray, "images patches classes"], usable: Bool[np.ndarray, "images patches"], size: int, seed: int
) -> Int[np.ndarray, "memory"]:
    """Positions of the patches in a memory that represents classes evenly, as Hummingbird draws it (Balazevic et al. 2023, appendix;
    open-hummingbird-eval, `sample_features`).

    Every image gives size / images patches, rounded down. The score of a class is the number of the image's patches that show it in any
    pixel, that of a patch the sum of the scores of the classes that it shows, times a uniform draw from [0, 1); the patches with the
    lowest are taken. Unlike there, pixels to ignore are no background, an image with fewer usable patches gives fewer, and where there
    are more images than `size`, so many images, drawn at random, give one patch each.
    """
    generator = np.random.default_rng((seed, int(usable.sum()), 1))
    shows = (shares > 0) & usable[..., None]
    scores = np.array([image @ image.sum(axis=0) for image in shows]) * generator.random(usable.shape)
    scores[~usable] = np.inf
    taken = np.argsort(np.argsort(scores, axis=1), axis=1) < max(1, size // len(usable))
    if size < len(usable):
        taken[generator.permutation(len(usable))[size:]] = False
    return np.flatnonzero(taken & usable)


MEMORIES = (("miou_retrieval", "uniform", uniform_memory), ("miou_retrieval_balanced", "class-balanced by image", balanced_memory))
"""Retrieval from memories: metric, what protocols say of the sampling, and the draw."""


def _parts(data: StudyData) -> Sequence[str]:
    return (data.masks.train_part, data.masks.test_part) if data.masks else ()


def _settings(readouts: Readouts) -> dict[str, Any]:
    constants = {"L2": L2, "neighbours": NEIGHBOURS, "temperature": TEMPERATURE}
    return {"standardised": readouts.standardised, "memory": readouts.memory, **constants}


SEGMENTATION = Task(
    segment,
    parts=_parts,
    possible=lambda data: data.masks is not None,
    version=4,
    settings=_settings,
    drawn=True,
    scores_patches=True,
    columns=(
        Column("miou", "patches", "mIoU<br>linear head", REFITTED, primary=True),
        Column("miou", "patches", "mIoU<br>frozen head", FROZEN),
        Column("miou_retrieval", "patches", "mIoU<br>retrieval", REFITTED, primary=True),
        Column("miou_retrieval_balanced", "patches", "mIoU<br>retrieval,<br>balanced", REFITTED),
    ),
    finishes=(metrics.mean_iou,),
)
