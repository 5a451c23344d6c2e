"""Differences of differences: how much more a condition changes a score of one model than of another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.rows import Row, make_row
from experiments.study import grid
from experiments.study.cells import Needed, cell_hash
from experiments.study.compare import Inference, covers, mean_of_draws, unit_name
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.target import Target
from experiments.tasks.base import MetricResult
from jaxvit.inference import Scores, between, compare, independent_units, value

KIND = "model_differences"
"""Of the cells, and the analysis that their rows name."""
METRIC_ENDING = "_change"
"""What the metric of a change is called after its score."""
Changes = Mapping[tuple[Any, ...], tuple[MetricResult, Sequence[Scores]]]
"""Results of a model under a condition, by what identifies a number, each with the scores of the full condition beside its own."""


def changes_job(target: Target, other: Target, condition: str, task: str) -> Job:
    """The differences of a task's main scores between two models under one condition."""
    needs = [grid.scores_keys(model, condition, task) for model in (target, other)]
    cells = [[cell_hash(key) for key in keys] for keys in needs]
    run = target.run_fields(condition) | {"task": task, "layer": target.layer, "analysis": KIND, "scores_cell": None}

    def compute(store: Needed) -> tuple[list[Row], Arrays]:
        changes, others = (_main_scores(store, model, condition, task) for model in (target, other))
        draws = len(target.seeds_of(condition)) if target.is_random(condition) else 0
        return change_rows(run, other.name, changes, others, target.inference, draws), {}

    key = rows_key(target, KIND, condition=condition, task=task, run=run, other=other.name, scores=cells)
    label, keys = f"{target.name} - {other.name}, {condition}: {task}", tuple(itertools.chain(*needs))
    return Job(key, target.name, label, 0.3, compute, host_only=True, needs=keys, unit=f"{condition}, {other.name}")


def _main_scores(store: Needed, target: Target, condition: str, task: str) -> Changes:
    primary = {column.key[1:] for column in target.settings.tasks[task].columns if column.primary}
    results, full = grid.paired_results(store, target, condition, task, grid.runs_of(target, condition))
    return {
        (*r.identity, r.readout): (r, clean) for r, clean in zip(results, full, strict=True) if (r.metric, r.feature, r.readout) in primary
    }


def change_rows(
    run: Mapping[str, Any], other: str, changes: Changes, others: Changes, inference: Inference, condition_draws: int
) -> list[Row]:
    """Rows of changes in one model: the value is the change there, the reference that in the other model, delta their difference.

    What holds by construction in either model, or is undefined in one, is left out.

    Args:
        run: fields that all rows share.
        other: name of the other model.
        condition_draws: how often the condition was drawn; 0 where it is not random.
    """
    rows = []
    for identity, (result, full) in changes.items():
        theirs, their_full = others.get(identity, (None, ()))
        if theirs is None or result.by_construction or theirs.by_construction:
            continue
        means = [mean_of_draws(result, scores, inference) for scores in (full, result.scores, their_full, theirs.scores)]
        if not all(np.isfinite(value(mean)) for mean in means):
            continue
        change = compare(means[0], means[1], inference.resamples, inference.seed)
        apart = [[between(a, b) for a, b in zip(*pair, strict=True)] for pair in ((full, their_full), (result.scores, theirs.scores))]
        clean, ablated = (mean_of_draws(result, scores, inference) for scores in apart)
        difference = compare(clean, ablated, inference.resamples, inference.seed)
        by_seed = [value(after) - value(before) for before, after in zip(full, result.scores, strict=True)]
        numbers = {"value": change.delta, "ci_low": change.low, "ci_high": change.high, "ci_covers": covers(ablated, condition_draws)}
        numbers |= {"n": independent_units(ablated), "n_unit": unit_name(result, inference), "seeds": len(by_seed), "by_seed": by_seed}
        numbers |= {"reference": {"model": other, "condition": run["condition"], "value": value(means[3]) - value(means[2])}}
        numbers |= {"delta": difference.delta, "delta_ci_low": difference.low, "delta_ci_high": difference.high}
        fields = {**result.row_fields, "metric": f"{result.metric}{METRIC_ENDING}", "p_value": difference.p_value, **numbers}
        rows.append(make_row(**{"primary": False, "quick": False, **run, **fields}))
    return rows
