"""Does a patch know which part of an object it shows? Keypoints carried from image to image."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from experiments.datasets.base import Keypoints
from experiments.features.extraction import patch_grid
from experiments.plotting.columns import Column
from experiments.tasks.base import Context, FeatureSource, FrozenReadouts, MetricResult, Readouts, Task, protocol_id
from experiments.tasks.overwritten import Overwritten, besides_overwritten, left_out
from jaxvit import metrics
from jaxvit.inference import Scores, mean_ratio, ratio_scores

PART = "keypoints"
"""Part of the data with the images of the pairs."""
PAIRS_AT_ONCE = 256
"""Pairs of images whose patches are gathered at a time."""


def keypoints(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """PCK of keypoints carried from image to image by the nearest patch (SPair-71k, Min et al. 2019): per point, per image (pair)
    and per category, normalised by the longer side of the target's bounding box or of the target. An overwritten patch is no candidate, and
    a keypoint counts where none has a part in its feature, nor is its true patch in the target."""
    return besides_overwritten(features, (PART,), functools.partial(_score, context))


def _score(context: Context, features: FeatureSource, overwritten: Overwritten) -> list[MetricResult]:
    """The results without overwritten patches."""
    data, pairs, alphas = context.data, context.data.keypoints, context.readouts.alphas
    assert pairs is not None
    patches = features[PART].patches
    grid = patch_grid(patches, data.parts[PART].images)
    candidates = ~overwritten[PART] if overwritten else None
    predicted = _match(patches, candidates, grid, pairs)
    valid = pairs.valid & ~_touched(overwritten[PART], grid, pairs) if overwritten else pairs.valid
    where = {"images": data.protocols["keypoints"], "match": "cosine", **context.readouts.where, **left_out(overwritten)}
    results = []
    for by, length in (("box", pairs.box), ("image", pairs.size)):
        hits, counts = metrics.pck(predicted, pairs.target_points, valid, length, alphas, pairs.scale)
        for alpha, hits_at_alpha in zip(alphas, hits.T, strict=True):
            protocol = protocol_id("pck", alpha=alpha, by=by, **where)
            metric = f"pck_{alpha:g}" + ("" if by == "box" else "_image_size")
            for suffix, feature, scores in _averages(hits_at_alpha, counts, pairs):
                results.append(MetricResult(metric + suffix, feature, protocol, [scores], n_unit="pairs", part=PART))
    return results


def _match(
    patches: np.ndarray, candidates: Bool[np.ndarray, "images patches"] | None, grid: tuple[int, int, int], pairs: Keypoints
) -> Float[np.ndarray, "pairs points 2"]:
    """Where the source keypoints of every pair are found in its target image, among the candidates (all, where none are given)."""
    rows, columns, side = grid
    matched = []
    for start in range(0, len(pairs.source), PAIRS_AT_ONCE):
        source, target, points = (a[start : start + PAIRS_AT_ONCE] for a in (pairs.source, pairs.target, pairs.source_points))
        possible = None if candidates is None else candidates[target]
        matched.append(metrics.match_keypoints(patches[source], patches[target], points, (rows, columns), side, possible))
    return np.concatenate(matched)


def _touched(
    overwritten: Bool[np.ndarray, "images patches"], grid: tuple[int, int, int], pairs: Keypoints
) -> Bool[np.ndarray, "pairs points"]:
    """Which keypoints of every pair have an overwritten patch in their interpolated feature, or at their place in the target."""
    rows, columns, side = grid
    source = metrics.reads_patches(overwritten[pairs.source], pairs.source_points, (rows, columns), side)
    place = np.asarray(metrics.patch_at(pairs.target_points, (rows, columns), side))
    return np.asarray(source) | np.take_along_axis(overwritten[pairs.target], place, axis=1)


def _averages(hits: Float[np.ndarray, "pairs"], counts: Float[np.ndarray, "pairs"], pairs: Keypoints) -> Iterator[tuple[str, str, Scores]]:
    """The averages of PCK as scores by pair: (suffix of the metric, feature, scores). Pairs of other categories contribute nothing."""
    share, counted = hits / np.maximum(counts, 1), (counts > 0).astype(float)
    yield "", "patches", ratio_scores(hits, counts)
    yield "_per_image", "patches", ratio_scores(share, counted)
    for c, name in enumerate(pairs.categories):
        member = pairs.category == c
        yield "", f"patches: {name}", ratio_scores(hits * member, counts * member)
        yield "_per_image", f"patches: {name}", ratio_scores(share * member, counted * member)
    by_category = [values[:, None] * (pairs.category[:, None] == np.arange(len(pairs.categories))) for values in (hits, counts)]
    yield "_mean_of_categories", "patches", Scores(np.stack(by_category, axis=2), mean_ratio)


def _settings(readouts: Readouts) -> dict[str, Any]:
    return {"alphas": list(readouts.alphas)}


KEYPOINTS = Task(
    keypoints,
    parts=lambda data: (PART,),
    possible=lambda data: data.keypoints is not None,
    version=3,
    settings=_settings,
    scores_patches=True,
    columns=(Column("pck_0.1", "patches", "keypoints<br>PCK@0.1 box", primary=True),),
)
