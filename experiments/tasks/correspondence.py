"""Does a patch know which patch of another view it belongs to?"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from experiments.datasets.base import StudyData
from experiments.features.extraction import patch_grid
from experiments.plotting.columns import Column
from experiments.tasks.base import Context, FeatureSource, FrozenReadouts, MetricResult, Readouts, Task, protocol_id
from experiments.tasks.overwritten import Overwritten, besides_overwritten, left_out
from jaxvit import metrics
from jaxvit.inference import ratio_scores

FOREGROUND = 0.25
"""A patch belongs to a set of pixels where more than this share of its pixels does."""
VIEWS = ("first", "second")
"""Parts of the data with the two views of every pair."""
PAIRS = "pairs of views"
"""The unit of scores of pairs."""


def has_views(data: StudyData) -> bool:
    """Whether there are pairs of views."""
    return data.views is not None


def correspondence(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Share of patches whose nearest patch in the other view is the true one within the tolerance, and share of closed cycles; of all
    patches and of every named set of pixels. An overwritten patch is no candidate, and neither it nor one whose true patch it is counts."""
    return besides_overwritten(features, VIEWS, functools.partial(_score, context))


def _score(context: Context, features: FeatureSource, overwritten: Overwritten) -> list[MetricResult]:
    """The results without overwritten patches."""
    data, views, tolerance = context.data, context.data.views, context.readouts.tolerance
    assert views is not None
    first, second = (features[part].patches for part in VIEWS)
    usable = tuple(~overwritten[part] for part in VIEWS) if overwritten else None
    rows, columns, side = patch_grid(first, data.parts["first"].images)
    sets = {"patches": None} | {name: _pixel_shares(pixels, side) > FOREGROUND for name, pixels in views.pixels.items()}
    protocol = protocol_id(
        "views",
        views=data.protocols["views"],
        match="cosine",
        tolerance=f"{tolerance:g} patch",
        **context.readouts.where,
        **left_out(overwritten),
    )
    results = []
    for name, mask in sets.items():
        matches = metrics.correspondence(first, second, views.warp, (rows, columns), side, tolerance, mask, usable=usable)
        results.append(MetricResult("accuracy", name, protocol, [ratio_scores(matches.hits, matches.points)], n_unit=PAIRS, part=VIEWS[0]))
        results.append(
            MetricResult("cycle_consistency", name, protocol, [ratio_scores(matches.cycles, matches.points)], n_unit=PAIRS, part=VIEWS[0])
        )
    return results


def _pixel_shares(pixels: Bool[np.ndarray, "images height width"], side: int) -> Float[np.ndarray, "images patches"]:
    """Share of each patch's pixels that belong to a set."""
    n, height, width = pixels.shape
    return pixels.reshape(n, height // side, side, width // side, side).mean(axis=(2, 4)).reshape(n, -1)


def _settings(readouts: Readouts) -> dict[str, Any]:
    return {"tolerance": readouts.tolerance, "foreground": FOREGROUND}


CORRESPONDENCE = Task(
    correspondence,
    parts=lambda data: VIEWS,
    possible=has_views,
    version=2,
    settings=_settings,
    scores_patches=True,
    columns=(
        Column("accuracy", "patches", "corre-<br>spondence<br>all patches", primary=True),
        Column("accuracy", "digit_patches", "corre-<br>spondence<br>digit patches"),
    ),
)
