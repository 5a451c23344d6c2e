"""From scores to rows: values with intervals, paired comparisons with the full condition, Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.features.conditions import FULL
from experiments.rows import Row, make_row
from experiments.tasks.base import MetricResult, mean_over_seeds, scores_array
from jaxvit.inference import Comparison, Scores, bootstrap_all, compare_all, holm, value

COVERS = "units"
"""What intervals cover: sampling of the units, with seeds and draws as they are."""


def compared_rows(
    run: Mapping[str, Any], results: Sequence[MetricResult], resamples: int, seed: int, full: Sequence[Scores] = (), average: bool = False
) -> list[Row]:
    """Rows with intervals and, where scores of the full condition are given, paired comparisons with it.

    Args:
        run: fields that all rows share: model, condition, tokens, ablation, window, task, layer, ...
        results: metrics with the scores of every draw; intervals are of their mean over draws.
        full: scores that each result is compared with, means over draws; empty where none is.
        average: the draws are conditions of their own, of which only the mean is a number (`by_seed` holds it alone).
    """
    scores = [mean_over_seeds(result.scores) for result in results]
    intervals = _by_unit_count(scores, lambda index: bootstrap_all([scores[i] for i in index], resamples, seed))
    comparisons: list[Comparison | None] = [None] * len(scores)
    if full:
        comparisons = _by_unit_count(
            scores, lambda index: compare_all([full[i] for i in index], [scores[i] for i in index], resamples, seed)
        )
    reference = {"model": run["model"], "condition": FULL}
    rows = []
    for position, (result, score, (low, high), comparison) in enumerate(zip(results, scores, intervals, comparisons, strict=True)):
        by_seed = [value(score)] if average else [value(single) for single in result.scores]
        numbers = {"value": value(score), "ci_low": low, "ci_high": high, "ci_covers": COVERS, "n": len(score.contributions)}
        numbers |= {"seeds": len(by_seed), "by_seed": by_seed, "scores_array": scores_array(position)}
        if comparison:
            numbers |= {"reference": reference, "delta": comparison.delta, "p_value": comparison.p_value}
            numbers |= {"delta_ci_low": comparison.low, "delta_ci_high": comparison.high}
        rows.append(make_row(**{"primary": False, "quick": False, **run, **result.row_fields, **numbers}))
    return rows


def _by_unit_count(scores: Sequence[Scores], work: Callable[[list[int]], list[Any]]) -> list[Any]:
    """Results of `work`, which takes the positions of scores with equal numbers of units together, in the order of the scores."""
    results: dict[int, Any] = {}
    for units in dict.fromkeys(len(s.contributions) for s in scores):
        index = [i for i, s in enumerate(scores) if len(s.contributions) == units]
        results |= dict(zip(index, work(index), strict=True))
    return [results[i] for i in range(len(scores))]


def add_holm(rows: Sequence[Row]) -> list[Row]:
    """Rows with `p_holm`: p-values adjusted by Holm over all conditions and features of a model under the same metric and read-out.

    Numbers that are what they are by construction are no tests; `holm_family` says what the family is, `holm_tests` how many tests it has.
    """
    families: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["p_value"] is not None and not row["by_construction"]:
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
