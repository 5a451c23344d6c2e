"""The grid of conditions x tasks as cells: one for the scores under each seed, one for intervals and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from experiments.rows import Row
from experiments.study.cells import Store
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, cell_key
from experiments.study.target import Target
from experiments.tasks import base
from experiments.tasks.table import TASKS
from jaxvit.inference import value

Runs = Sequence[tuple[str, int]]
"""(condition, seed) of runs whose scores are averaged."""

SINGLE_MEAN = "zero_single_mean"
"""Mean over zeroing each register alone: the first point of the published cumulative lesion."""


def jobs(target: Target, conditions: Iterable[str] | None = None, tasks: Iterable[str] | None = None) -> Iterator[Job]:
    """Cells of the conditions in their order; the full condition of a task comes before those that are compared with it.

    Args:
        conditions: besides "full"; those that the target does not have are left out. By default all.
        tasks: by default all that can be run.
    """
    names = [name for name in target.conditions if name == "full" or conditions is None or name in set(conditions)]
    chosen = [task for task in runnable_tasks(target) if tasks is None or task in set(tasks)]
    for condition in names:
        runs = [(condition, seed) for seed in target.seeds_of(condition)]
        for run in runs:
            for number, task in enumerate(chosen):
                yield _scores_job(target, *run, task, first=number == 0)
        for task in chosen:
            yield _rows_job(target, condition, task, runs, target.conditions[condition].tokens)
    single = [(name, target.settings.seed) for name in names if name.removeprefix("zero_r").isdigit()]
    if len(single) > 1:
        for task in chosen:
            yield _rows_job(target, SINGLE_MEAN, task, single, "each register alone")


def runnable_tasks(target: Target) -> list[str]:
    """Names of the tasks that are chosen and that the data have what it takes for."""
    chosen = target.settings.tasks
    return [name for name, task in TASKS.items() if task.possible(target.data) and (not chosen or name in chosen)]


def parts_read(target: Target) -> set[str]:
    """Parts of the data that the tasks of a target read."""
    parts = {part for name in runnable_tasks(target) for part in TASKS[name].parts(target.data)}
    return parts - {"analysis"} if "test" in parts else parts


def _scores_key(target: Target, condition: str, seed: int, task: str) -> dict[str, Any]:
    return cell_key(target, "scores", task=task, condition=condition, condition_seed=seed)


def _scores_job(target: Target, condition: str, seed: int, task: str, first: bool) -> Job:
    """The scores of a task under one seed of a condition and, in the full condition, its read-outs."""

    def compute(store: Store) -> tuple[list[Row], Arrays]:
        if condition == "full":
            return [], base.pack(TASKS[task].run(target.features(condition, seed), target.context, {}))
        full = store.load(_scores_key(target, "full", target.settings.seed, task)).arrays
        context = target.context._replace(ablated=True)
        if target.conditions[condition].random:
            context = context._replace(seeds=(seed,))
        results = TASKS[task].run(target.features(condition, seed), context, base.frozen_readouts_of(full))
        return [], base.pack([result._replace(readouts={}) for result in results])

    images = sum(target.image_count(part) for part in parts_read(target)) if first and target.model is not None else 0
    label = f"{target.name}, {condition}: {task}"
    return Job(_scores_key(target, condition, seed, task), label, 4 if first else 1, compute, images)


def _rows_job(target: Target, condition: str, task: str, runs: Runs, tokens: str) -> Job:
    """Intervals, and paired comparisons with the full condition, over all runs."""

    def compute(store: Store) -> tuple[list[Row], Arrays]:
        results = base.join_draws([base.unpack(store.load(_scores_key(target, *run, task)).arrays) for run in runs])
        layer = target.settings.readouts.where["layer"]
        metadata = [{name: getattr(result, name) for name in base.METADATA} | {"layer": layer} for result in results]
        for entry, result in zip(metadata, results, strict=True):
            # the single lesions are not seeds of one another
            by_seed = [base.mean_over_seeds(result.scores)] if condition == SINGLE_MEAN else result.scores
            entry["by_seed"] = [value(scores) for scores in by_seed]
        scores = [base.mean_over_seeds(result.scores) for result in results]
        if condition == "full":
            return compared_rows(target, condition, task, metadata, scores, tokens=tokens), {}
        clean = base.unpack(store.load(_scores_key(target, "full", target.settings.seed, task)).arrays)
        by_name = {(result.metric, result.feature): result.scores for result in clean}
        full = [base.mean_over_seeds(by_name[r.full_metric or r.metric, r.feature], len(r.scores)) for r in results]
        return compared_rows(target, condition, task, metadata, scores, full, tokens), {}

    key = cell_key(target, "rows", task=task, condition=condition, runs=runs, resamples=target.settings.resamples)
    return Job(key, f"{target.name}, {condition}: {task}, intervals", 0.5, compute, host_only=True)
