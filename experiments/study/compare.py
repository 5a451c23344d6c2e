"""From scores to rows: values with intervals, paired comparisons with the full condition, conditions that are one intervention, Holm's
correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.features.conditions import FULL
from experiments.features.recipes import effect
from experiments.rows import Row, make_row
from experiments.tasks.base import MetricResult, mean_over_seeds, scores_array
from jaxvit.inference import Scores, bootstrap_all, compare_all, holm, value

COVERS = "units"
"""What intervals cover: sampling of the units, with seeds and draws as they are."""


def compared_rows(
    run: Mapping[str, Any], results: Sequence[MetricResult], resamples: int, seed: int, full: Sequence[Scores] = (), average: bool = False
) -> list[Row]:
    """Rows with intervals and, where scores of the full condition are given, paired comparisons with it.

    A metric that nothing is left of (the IoU of a class that is neither true nor predicted, a score without any point) is undefined and has
    no row; where only that of the full condition is undefined, the row has no comparison.

    Args:
        run: fields that all rows share: model, condition, tokens, ablation, window, task, layer, ...
        results: metrics with the scores of every draw; intervals are of their mean over draws.
        full: scores that each result is compared with, means over draws; empty where none is.
        average: the draws are conditions of their own, of which only the mean is a number (`by_seed` holds it alone).
    """
    scores = [mean_over_seeds(result.scores) for result in results]
    defined = [i for i, score in enumerate(scores) if np.isfinite(value(score))]
    comparable = [i for i in defined if full and np.isfinite(value(full[i]))]
    intervals = _by_unit_count(scores, defined, lambda index: bootstrap_all([scores[i] for i in index], resamples, seed))
    comparisons = _by_unit_count(
        scores, comparable, lambda index: compare_all([full[i] for i in index], [scores[i] for i in index], resamples, seed)
    )
    rows = []
    for i in defined:
        result, score, (low, high), comparison = results[i], scores[i], intervals[i], comparisons.get(i)
        by_seed = [value(score)] if average else [value(single) for single in result.scores]
        numbers = {"value": value(score), "ci_low": low, "ci_high": high, "ci_covers": COVERS, "n": len(score.contributions)}
        numbers |= {"seeds": len(by_seed), "by_seed": by_seed, "scores_array": scores_array(i)}
        if comparison:
            numbers |= {"reference": {"model": run["model"], "condition": FULL, "value": value(full[i])}}
            numbers |= {"delta": comparison.delta, "p_value": comparison.p_value}
            numbers |= {"delta_ci_low": comparison.low, "delta_ci_high": comparison.high}
        rows.append(make_row(**{"primary": False, "quick": False, **run, **result.row_fields, **numbers}))
    return rows


def _by_unit_count(scores: Sequence[Scores], positions: Sequence[int], work: Callable[[list[int]], list[Any]]) -> dict[int, Any]:
    """Results of `work`, which takes the positions of scores with equal numbers of units together, by position."""
    results: dict[int, Any] = {}
    for units in dict.fromkeys(len(scores[i].contributions) for i in positions):
        index = [i for i in positions if len(scores[i].contributions) == units]
        results |= dict(zip(index, work(index), strict=True))
    return results


def mark_repeats(rows: Sequence[Row], ablations: Mapping[str, str]) -> list[Row]:
    """Rows with `repeats`: the name of an earlier condition of the model that is the same intervention for what is read.

    Args:
        ablations: the definition of every ablation by its hash.
    """
    by_effect: dict[tuple[Any, ...], str] = {}
    marked = []
    for row in rows:
        if row["ablation"] and row["condition"] != FULL:
            effects = tuple(effect(ablations[name], row["feature"]) for name in row["ablation"])
            number = tuple(row[name] for name in _NUMBER)
            first = by_effect.setdefault((effects, number), row["condition"])
            row = row | {"repeats": first if first != row["condition"] else None}
        marked.append(row)
    return marked


_NUMBER = (
    "model",
    "task",
    "metric",
    "feature",
    "readout",
    "layer",
    "head",
    "index",
    "source",
    "target",
    "register_a",
    "register_b",
    "analysis",
)
"""Fields that tell one number of a condition from another."""


def add_holm(rows: Sequence[Row]) -> list[Row]:
    """Rows with `p_holm`: p-values adjusted by Holm over all conditions and features of a model under the same metric and read-out.

    Numbers that are what they are by construction are no tests, and those that repeat another condition's are none a second time;
    `holm_family` says what the family is, `holm_tests` how many tests it has.
    """
    families: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["p_value"] is not None and not row["by_construction"] and not row["repeats"]:
            families.setdefault(_family(row), []).append(i)
    adjusted = {
        i: {"p_holm": float(p), "holm_family": family, "holm_tests": len(members)}
        for family, members in families.items()
        for i, p in zip(members, holm([rows[i]["p_value"] for i in members]), strict=True)
    }
    return [row | adjusted.get(i, {}) for i, row in enumerate(rows)]


def _family(row: Row) -> str:
    readout = f", {row['readout']} read-outs" if row["readout"] else ""
    return f"{row['model']}: {row['metric']} of {row['task']}{readout}, all conditions and features"
