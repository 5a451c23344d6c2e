"""Does a patch know which classes its pixels show? Semantic segmentation by a linear head and by retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

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
from jaxvit import metrics
from jaxvit.inference import Scores, ratio_scores
from jaxvit.probes import knn, logistic
from jaxvit.probes.segmentation import class_shares, predict_padded

L2 = 1e-4
"""Penalty of the linear head."""
NEIGHBOURS, TEMPERATURE = 30, 0.02
"""Of the retrieval, as in Hummingbird."""
_READOUT = "segmentation"


def segment(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """mIoU of softmax regression on patches, logits upsampled to pixels before the argmax: refitted for the condition and, beside it, of
    the full condition's read-out unchanged; and, without training, of soft labels retrieved from a memory of patches."""
    masks, standardised = context.data.masks, context.readouts.standardised
    assert masks is not None
    train = features[masks.train_part].patches[: len(masks.train)]
    test = features[masks.test_part].patches[: len(masks.test)]
    rows, columns, side = patch_grid(train, context.data.parts[masks.train_part].images)
    shares, weights = (np.asarray(a).reshape(len(train) * train.shape[1], -1) for a in class_shares(masks.train, len(masks.classes), side))
    weights = weights[:, 0]
    patches, queries = train.reshape(len(shares), -1), test.reshape(-1, test.shape[-1])

    def confusion(scores: np.ndarray) -> np.ndarray:
        """Of the classes predicted from scores [test patches, classes]."""
        grid = jnp.asarray(scores).reshape(len(test), rows, columns, -1)
        predicted = predict_padded(grid, masks.sizes, masks.test.shape[1:3])
        return np.asarray(metrics.confusion(predicted, masks.test, len(masks.classes)))

    def protocol(name: str, **settings: object) -> str:
        return protocol_id(name, **settings, masks=context.data.protocols["masks"], upsample="bilinear logits", **context.readouts.where)

    readout = logistic.fit(patches, shares, L2, weights, standardised=standardised)
    refitted = confusion(logistic.predict(readout, queries))
    head = protocol("linear_head", L2=L2, standardised=standardised, fit="condition")
    results = [
        MetricResult(
            "miou", "patches", head, [Scores(refitted, metrics.mean_iou)], readout=REFITTED, readouts=pack_readout(_READOUT, readout)
        )
    ]
    results += _iou_per_class(refitted, masks, head)
    if frozen_readouts:
        frozen = confusion(logistic.predict(unpack_readout(_READOUT, frozen_readouts, logistic.Logistic), queries))
        head = protocol("linear_head", L2=L2, standardised=standardised, fit="full")
        results.append(MetricResult("miou", "patches", head, [Scores(frozen, metrics.mean_iou)], readout=FROZEN))
    retrieved = []
    for seed in context.seeds:
        memory = draw_memory(weights > 0, context.readouts.memory, seed)
        neighbours = min(NEIGHBOURS, len(memory))
        labels = knn.retrieve(patches[memory], shares[memory], queries, neighbours, TEMPERATURE, mesh=context.mesh)
        retrieved.append(Scores(confusion(np.asarray(labels)), metrics.mean_iou))
    hummingbird = protocol("hummingbird", k=neighbours, temperature=TEMPERATURE, memory=context.readouts.memory)
    return [*results, MetricResult("miou_retrieval", "patches", hummingbird, retrieved, readout=REFITTED)]


def draw_memory(usable: Bool[np.ndarray, "patches"], size: int, seed: int) -> Int[np.ndarray, "memory"]:
    """Positions of the patches in the memory: `size` of the usable ones (all, where there are fewer), drawn without replacement."""
    positions = np.flatnonzero(usable)
    return np.sort(np.random.default_rng((seed, len(positions))).choice(positions, min(size, len(positions)), replace=False))


def _iou_per_class(confusion: Int[np.ndarray, "images classes classes"], masks: Masks, protocol: str) -> Iterator[MetricResult]:
    """Intersection over union of every class that the test masks show."""
    for c, name in enumerate(masks.classes):
        hits, true, predicted = confusion[:, c, c], confusion[:, c].sum(axis=1), confusion[:, :, c].sum(axis=1)
        if true.sum():
            yield MetricResult("iou", f"patches: {name}", protocol, [ratio_scores(hits, true + predicted - hits)], readout=REFITTED)


def _parts(data: StudyData) -> Sequence[str]:
    return (data.masks.train_part, data.masks.test_part) if data.masks else ()


def _settings(readouts: Readouts) -> dict[str, Any]:
    constants = {"L2": L2, "neighbours": NEIGHBOURS, "temperature": TEMPERATURE}
    return {"standardised": readouts.standardised, "memory": readouts.memory, **constants}


SEGMENTATION = Task(
    segment,
    parts=_parts,
    possible=lambda data: data.masks is not None,
    settings=_settings,
    columns=(
        Column("miou", "patches", "mIoU<br>linear head", REFITTED, primary=True),
        Column("miou", "patches", "mIoU<br>frozen head", FROZEN),
        Column("miou_retrieval", "patches", "mIoU<br>retrieval", REFITTED, primary=True),
    ),
    finishes=(metrics.mean_iou,),
)
