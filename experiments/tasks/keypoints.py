"""Does a patch know which part of an object it shows? Keypoints carried from image to image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.datasets.base import Keypoints
from experiments.features.extraction import patch_grid
from experiments.plotting.columns import Column
from experiments.tasks.base import Context, FeatureSource, FrozenReadouts, MetricResult, Readouts, Task, protocol_id
from jaxvit import metrics
from jaxvit.inference import Scores, mean_ratio, ratio_scores

PAIRS_AT_ONCE = 256
"""Pairs of images whose patches are gathered at a time."""


def keypoints(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """PCK of keypoints carried from image to image by the nearest patch (SPair-71k, Min et al. 2019): per point, per image (pair)
    and per category, normalised by the longer side of the target's bounding box or of the target."""
    data, pairs, alphas = context.data, context.data.keypoints, context.readouts.alphas
    assert pairs is not None
    predicted = _match(features["keypoints"].patches, data.parts["keypoints"].images, pairs)
    results = []
    for by, length in (("box", pairs.box), ("image", pairs.size)):
        hits, counts = metrics.pck(predicted, pairs.target_points, pairs.valid, length, alphas, pairs.scale)
        for alpha, hits_at_alpha in zip(alphas, hits.T, strict=True):
            protocol = protocol_id("pck", alpha=alpha, by=by, images=data.protocols["keypoints"], match="cosine", **context.readouts.where)
            metric = f"pck_{alpha:g}" + ("" if by == "box" else "_image_size")
            for suffix, feature, scores in _averages(hits_at_alpha, counts, pairs):
                results.append(MetricResult(metric + suffix, feature, protocol, [scores], n_unit="source images"))
    return results


def _match(patches: np.ndarray, images: np.ndarray, pairs: Keypoints) -> Float[np.ndarray, "pairs points 2"]:
    """Where the source keypoints of every pair are found in its target image."""
    rows, columns, side = patch_grid(patches, images)
    pieces = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(pairs.source), PAIRS_AT_ONCE)]
    return np.concatenate(
        [
            metrics.match_keypoints(patches[pairs.source[p]], patches[pairs.target[p]], pairs.source_points[p], (rows, columns), side)
            for p in pieces
        ]
    )


def _averages(hits: Float[np.ndarray, "pairs"], counts: Float[np.ndarray, "pairs"], pairs: Keypoints) -> Iterator[tuple[str, str, Scores]]:
    """The averages of PCK as scores whose units are source images: (suffix of the metric, feature, scores)."""
    unit = np.unique(pairs.source, return_inverse=True)[1]

    def ratios(numerators: np.ndarray, denominators: np.ndarray) -> Scores:
        """Sums over the pairs of each source image that has any."""
        above, below = (np.bincount(unit, values) for values in (numerators, denominators))
        return ratio_scores(above, below, below > 0)

    share = hits / np.maximum(counts, 1)
    yield "", "patches", ratios(hits, counts)
    yield "_per_image", "patches", ratios(share, (counts > 0).astype(float))
    for c, name in enumerate(pairs.categories):
        member = pairs.category == c
        yield "", f"patches: {name}", ratios(hits * member, counts * member)
        yield "_per_image", f"patches: {name}", ratios(share * member, ((counts > 0) & member).astype(float))
    by_category = [
        np.stack([np.bincount(unit, values * (pairs.category == c)) for c in range(len(pairs.categories))], axis=1)
        for values in (hits, counts)
    ]
    yield "_mean_of_categories", "patches", Scores(np.stack(by_category, axis=2), mean_ratio)


def _settings(readouts: Readouts) -> dict[str, Any]:
    return {"alphas": list(readouts.alphas)}


KEYPOINTS = Task(
    keypoints,
    parts=lambda data: ("keypoints",),
    possible=lambda data: data.keypoints is not None,
    settings=_settings,
    columns=(Column("pck_0.1", "patches", "keypoints<br>PCK@0.1 box", primary=True),),
)
