"""From scores to rows: values with intervals, paired comparisons with the full condition, conditions that are one intervention, families of
tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.datasets.base import Shown
from experiments.features.conditions import FULL
from experiments.features.recipes import effect
from experiments.rows import Row, make_row
from experiments.tasks.base import MetricResult, scores_array
from jaxvit.inference import Scores, bootstrap_all, compare_all, holm, independent_units, over_seeds, value, weighted_median

ENOUGH_DRAWS = 5
"""Draws from which on intervals cover them; fewer stand in `by_seed` alone."""
UNITS, AND_DRAWS, AND_READOUT = "units", "units and draws", "units and draws of the read-out"
"""What intervals cover: sampling of the units; besides, everything that is drawn; or what is drawn in the read-out, but not the few draws
of the condition."""


class Inference(NamedTuple):
    """How intervals and tests are made.

    Attributes:
        resamples, seed: of bootstrap and permutations.
        shown: what units of a part of the data show that others show too.
    """

    resamples: int
    seed: int
    shown: Mapping[str, Shown]


def compared_rows(
    run: Mapping[str, Any],
    results: Sequence[MetricResult],
    inference: Inference,
    full: Sequence[Sequence[Scores]] = (),
    condition_draws: int = 0,
    average: bool = False,
) -> list[Row]:
    """Rows with intervals and, where scores of the full condition are given, paired comparisons with it.

    A metric that nothing is left of (the IoU of a class that is neither true nor predicted, a score without any point) is undefined and has
    no row; where only that of the full condition is undefined, the row has no comparison.

    Args:
        run: fields that all rows share: model, condition, tokens, ablation, window, task, layer, ...
        results: metrics with the scores of every draw; the number is their mean.
        full: scores of the full condition that each score of each result is compared with; empty where none are.
        condition_draws: how often the condition was drawn; 0 where it is not random.
        average: the scores are of several conditions, of which only the mean is a number (`by_seed` holds it alone).
    """
    scores = [mean_of_draws(result, result.scores, inference, average) for result in results]
    clean = [mean_of_draws(result, one, inference, average) for result, one in zip(results, full, strict=True)] if full else []
    defined = [i for i, score in enumerate(scores) if np.isfinite(value(score))]
    comparable = [i for i in defined if full and np.isfinite(value(clean[i]))]
    options = inference.resamples, inference.seed
    intervals = dict(zip(defined, bootstrap_all([scores[i] for i in defined], *options), strict=True))
    compared = compare_all([clean[i] for i in comparable], [scores[i] for i in comparable], *options)
    comparisons = dict(zip(comparable, compared, strict=True))
    rows = []
    for i in defined:
        result, score, (low, high), comparison = results[i], scores[i], intervals[i], comparisons.get(i)
        by_seed = [value(score)] if average else [value(single) for single in result.scores]
        numbers = {"value": value(score), "ci_low": low, "ci_high": high, "ci_covers": covers(score, condition_draws)}
        numbers |= {"n": independent_units(score), "n_unit": unit_name(result, inference)}
        numbers |= {"seeds": len(by_seed), "by_seed": by_seed, "scores_array": scores_array(i)}
        if comparison:
            numbers |= {"reference": {"model": run["model"], "condition": FULL, "value": value(clean[i])}}
            numbers |= {"delta": comparison.delta, "p_value": comparison.p_value}
            numbers |= {"delta_ci_low": comparison.low, "delta_ci_high": comparison.high}
        rows.append(make_row(**{"primary": False, "quick": False, **run, **result.row_fields, **numbers}))
    return rows


def mean_of_draws(result: MetricResult, scores: Sequence[Scores], inference: Inference, average: bool = False) -> Scores:
    """The mean of a metric over its draws, which know what their units show; where there are enough of them, its interval covers draws."""
    shown = inference.shown.get(result.units_of or "")
    if shown is not None:
        scores = [score._replace(clusters=shown.number[: len(score.contributions)]) for score in scores]
    if result.draws:  # conditions that are averaged share the draws of their read-outs
        by_draw = {draw: [s for s, d in zip(scores, result.draws, strict=True) if d == draw] for draw in dict.fromkeys(result.draws)}
        scores = [same[0] if len(same) == 1 else over_seeds(same) for same in by_draw.values()]
    enough = len(scores) >= ENOUGH_DRAWS and (not average or bool(result.draws))
    smooth = scores[0].finish is not weighted_median  # a median hardly moves where one unit is deleted: its error is not to be had so
    return over_seeds(scores, drawn=enough and smooth)


def covers(score: Scores, condition_draws: int) -> str:
    """What the interval of a mean over draws covers."""
    if not score.drawn:
        return UNITS
    return AND_READOUT if 0 < condition_draws < ENOUGH_DRAWS else AND_DRAWS


def unit_name(result: MetricResult, inference: Inference) -> str:
    """What the independent units of a result are."""
    shown = inference.shown.get(result.units_of or "")
    return result.n_unit if shown is None else shown.unit


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
    "n",
)
"""Fields that tell one number of a condition from another."""


PRIMARY, SECONDARY = "primary", "secondary"


def add_holm(rows: Sequence[Row]) -> list[Row]:
    """Rows with `p_holm`: p-values adjusted by Holm within their family, which `holm_family` says in words; `holm_tests` is its size.

    The study's main scores are one family, over all models and conditions: its correction is for the whole study. All others are
    secondary: a family is a model's metric by one read-out, over all conditions and features. Numbers that are what they are by
    construction are no tests, and those that repeat another condition's are none a second time.
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
    if row["primary"]:
        return f"{PRIMARY}: the main scores of all models under all conditions"
    readout = f", {row['readout']} read-outs" if row["readout"] else ""
    if row["analysis"] == "content_or_sink" and row["window"] not in (None, "all"):
        readout += " in windows of blocks"
    if row["analysis"] == "model_differences":
        return f"{SECONDARY}: {row['metric']} of {row['task']} of {row['model']} against {row['reference']['model']}, all conditions"
    return f"{SECONDARY}: {row['metric']} of {row['task']} of {row['model']}{readout}, all conditions and features"
