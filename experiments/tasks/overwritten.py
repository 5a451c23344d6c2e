"""What a task that scores single patches does where a condition overwrites some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from experiments.tasks.base import FeatureSource, MetricResult

LEFT_OUT = "left out of this and of full"
"""What protocol ids say of overwritten patches."""
RAW_NOTE = "overwritten patches are scored too: what is read there is what was written there"
Overwritten = Mapping[str, Bool[np.ndarray, "images patches"]]
"""By part the patches that a condition overwrites where they are read; empty where it overwrites none."""


def besides_overwritten(
    features: FeatureSource, parts: Sequence[str], score: Callable[[FeatureSource, Overwritten], list[MetricResult]]
) -> list[MetricResult]:
    """The results of a task that scores single patches, fair to conditions that overwrite some of them.

    A patch that is overwritten at the last block holds a constant (or noise, or another image's patch): scored, the condition would lose
    by construction. It is left out, also of the scores of the full condition that the condition is compared with: a condition that does
    nothing to other patches then has differences of exactly 0. The numbers with all patches stand beside, as metrics of their own that
    end in "_raw" and hold by construction.

    Args:
        parts: that the task reads.
        score: the task's results from features, with the given patches left out of all that is fitted, searched and scored.
    """
    marks = {part: features.overwritten(part) for part in parts}
    overwritten = {part: patches for part, patches in marks.items() if patches is not None}
    if not overwritten:
        return score(features, {})
    pairs = zip(score(features, overwritten), score(features.full, overwritten), strict=True)
    raw = [r._replace(metric=f"{r.metric}_raw", counterpart=r.metric, by_construction=True, note=RAW_NOTE) for r in score(features, {})]
    return [*(result._replace(reference=full.scores) for result, full in pairs), *raw]


def left_out(overwritten: Overwritten) -> dict[str, str]:
    """What protocol ids of scores without these patches say besides."""
    return {"overwritten": LEFT_OUT} if overwritten else {}
