"""From scores to rows: values with intervals, paired comparisons with the full condition, Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from experiments.rows import Row
from experiments.study.target import Target
from jaxvit.inference import Comparison, Scores, bootstrap_all, compare_all, holm, value


def compared_rows(
    target: Target,
    condition: str,
    task: str,
    metadata: Sequence[dict[str, Any]],
    scores: Sequence[Scores],
    full: Sequence[Scores] = (),
    tokens: str | None = None,
) -> list[Row]:
    """Rows with intervals and, where scores of the full condition are given, paired comparisons with it.

    Args:
        metadata: of each row: metric, feature, layer, protocol, and by_seed, its value under each seed.
        full: scores that each row is compared with; empty where none is.
        tokens: what is ablated, in words; by default what the target's condition says.
    """
    settings = target.settings
    intervals = _by_unit_count(scores, lambda index: bootstrap_all([scores[i] for i in index], settings.resamples, settings.seed))
    comparisons: list[Comparison | None] = [None] * len(scores)
    if full:
        comparisons = _by_unit_count(
            scores, lambda index: compare_all([full[i] for i in index], [scores[i] for i in index], settings.resamples, settings.seed)
        )
    rows = []
    common = {"model": target.name, "condition": condition, "tokens": target.conditions[condition].tokens if tokens is None else tokens}
    for entry, score, (low, high), comparison in zip(metadata, scores, intervals, comparisons, strict=True):
        row: Row = {**common, "task": task} | {name: entry[name] for name in ("metric", "protocol", "layer", "feature")}
        row |= {"value": value(score), "ci_low": low, "ci_high": high, "n": len(score.contributions), "seed": settings.seed}
        row |= {"seeds": len(entry["by_seed"]), "by_seed": entry["by_seed"]}
        row |= dict.fromkeys(("delta", "delta_ci_low", "delta_ci_high", "p_value", "p_holm"))
        if comparison:
            row |= {"delta": comparison.delta, "delta_ci_low": comparison.low, "delta_ci_high": comparison.high}
            row |= {"p_value": comparison.p_value}
        rows.append(row | {name: entry[name] for name in ("note", "flag", "detail") if entry.get(name)})
    return rows


def plain_rows(
    target: Target, condition: str, task: str, metrics: Iterable[tuple[str, str, int | str, str, Scores]], tokens: str | None = None
) -> list[Row]:
    """Rows of numbers that are not compared, from (metric, feature, layer, protocol, scores) of each; `tokens` as above."""
    metadata, scores = [], []
    for metric, feature, layer, protocol, score in metrics:
        metadata.append({"metric": metric, "feature": feature, "layer": layer, "protocol": protocol, "by_seed": [value(score)]})
        scores.append(score)
    return compared_rows(target, condition, task, metadata, scores, tokens=tokens)


def _by_unit_count(scores: Sequence[Scores], work: Callable[[list[int]], list[Any]]) -> list[Any]:
    """Results of `work`, which takes the positions of scores with equal numbers of units together, in the order of the scores."""
    results: dict[int, Any] = {}
    for units in dict.fromkeys(len(s.contributions) for s in scores):
        index = [i for i, s in enumerate(scores) if len(s.contributions) == units]
        results |= dict(zip(index, work(index), strict=True))
    return [results[i] for i in range(len(scores))]


def add_holm(rows: list[Row]) -> list[Row]:
    """Rows with `p_holm`: p-values adjusted by Holm over all conditions and features of a model under the same metric.

    Numbers that are what they are by construction are no tests; `holm_tests` says how many tests a family has.
    """
    families: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if row["p_value"] is not None and not row.get("note"):
            families.setdefault((row["model"], row["task"], row["metric"]), []).append(i)
    adjusted = {
        i: {"p_holm": float(p), "holm_tests": len(members)}
        for members in families.values()
        for i, p in zip(members, holm([rows[i]["p_value"] for i in members]), strict=True)
    }
    return [row | adjusted.get(i, {}) for i, row in enumerate(rows)]
