"""The grid of conditions x tasks as cells: one for the scores under each seed, one for intervals and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from experiments.features.conditions import FULL
from experiments.rows import Row
from experiments.study.cells import Key, Needed, cell_hash
from experiments.study.compare import ENOUGH_DRAWS, compared_rows
from experiments.study.jobs import Arrays, Job, rows_key, scores_key
from experiments.study.target import Target
from experiments.tasks import base
from experiments.tasks.base import MetricResult
from jaxvit.inference import Scores

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
    names = [name for name in target.conditions if name == FULL or conditions is None or name in set(conditions)]
    chosen = [task for task in runnable_tasks(target) if tasks is None or task in set(tasks)]
    for condition in names:
        runs = runs_of(target, condition)
        for run in runs:
            for number, task in enumerate(chosen):
                yield _scores_job(target, *run, task, first=number == 0)
        for task in chosen:
            yield _rows_job(target, condition, task, runs)
    single = [(name, target.settings.seed) for name in names if name.removeprefix("zero_r").isdigit()]
    if target.model is not None and 1 < len(single) == target.model.config.registers:
        for task in chosen:
            yield _rows_job(target, SINGLE_MEAN, task, single)


def runnable_tasks(target: Target) -> list[str]:
    """Names of the tasks that are chosen and that the data have what it takes for."""
    return [name for name, task in target.settings.tasks.items() if task.possible(target.data)]


def parts_read(target: Target) -> set[str]:
    """Parts of the data that the tasks of a target read."""
    parts = {part for name in runnable_tasks(target) for part in target.settings.tasks[name].parts(target.data)}
    return parts - {"analysis"} if "test" in parts else parts


def parts_of_patches(target: Target) -> set[str]:
    """Parts of the data that the target's tasks on single patches read."""
    tasks = [target.settings.tasks[name] for name in runnable_tasks(target)]
    return {part for task in tasks if task.scores_patches for part in task.parts(target.data)}


def _task_seeds(target: Target, condition: str, seed: int) -> tuple[int, ...]:
    """Seeds of what is random in a task: all of the study, or in a random condition the one that it is drawn with."""
    return (seed,) if target.is_random(condition) else target.settings.all_seeds


def _task_draws(target: Target, condition: str, seed: int) -> tuple[int, ...]:
    """Seeds of a drawn read-out: all; under each of a few seeds of a random condition its share, so that there are as many in all; under
    each of enough seeds one, so that intervals cover draws of both together."""
    draws, seeds = target.settings.all_draws, target.seeds_of(condition)
    position = seeds.index(seed)
    return draws[position : position + 1] if len(seeds) >= ENOUGH_DRAWS else draws[position :: len(seeds)]


def _scores_key(target: Target, condition: str, seed: int, task: str) -> Key:
    """The key of the scores of a task under one seed of a condition. An ablated condition is read with the read-outs of the full one."""
    chosen = target.settings.tasks[task]
    definition: dict[str, Any] = {
        "ablation": target.ablation_key(condition, seed),
        "task": task,
        "version": chosen.version,
        "settings": chosen.settings(target.settings.readouts),
        "seeds": [target.settings.seed, *_task_seeds(target, condition, seed)],
    }
    if chosen.drawn:
        definition["draws"] = list(_task_draws(target, condition, seed))
    if condition != FULL:
        definition["readouts"] = cell_hash(_scores_key(target, FULL, target.settings.seed, task))
    return scores_key(target, "scores", **definition)


def _scores_job(target: Target, condition: str, seed: int, task: str, first: bool) -> Job:
    """The scores of a task under one seed of a condition and, in the full condition, its read-outs."""
    chosen = target.settings.tasks[task]

    def compute(store: Needed) -> tuple[list[Row], Arrays]:
        if condition == FULL:
            return [], base.pack(chosen.run(target.features(condition, seed), target.context, {}))
        full = store.load(_scores_key(target, FULL, target.settings.seed, task)).arrays
        seeds, draws = _task_seeds(target, condition, seed), _task_draws(target, condition, seed)
        context = target.context._replace(ablated=True, seeds=seeds, draws=draws)
        results = chosen.run(target.features(condition, seed), context, base.frozen_readouts_of(full))
        shuffle = target.shuffle_protocol(condition, seed)
        return [], base.pack([result._replace(readouts={}, protocol=base.extended(result.protocol, shuffle)) for result in results])

    images = sum(target.image_count(part) for part in parts_read(target)) if first else 0
    if first and seed == target.settings.seed and target.overwrites_patches(condition):
        images += sum(target.data.parts[part].patch_images for part in parts_of_patches(target))  # in full too, once for all seeds
    images = 0 if target.model is None else images + chosen.made_images(target.data)
    draw = f", seed {seed}" if target.is_random(condition) else ""
    label, unit = f"{target.name}, {condition}{draw}: {task}", f"{condition}, seed {seed}"
    key = _scores_key(target, condition, seed, task)
    needs = () if condition == FULL else (_scores_key(target, FULL, target.settings.seed, task),)
    return Job(key, target.name, label, 4 if first else 1, compute, images, condition, needs=needs, unit=unit)


def runs_of(target: Target, condition: str) -> Runs:
    """The runs of a condition: one for each of its seeds."""
    return [(condition, seed) for seed in target.seeds_of(condition)]


def paired_results(
    store: Needed, target: Target, condition: str, task: str, runs: Runs
) -> tuple[list[MetricResult], list[Sequence[Scores]]]:
    """The results of a task over runs of a condition, and the scores of the full condition that each score of each is compared with; none
    of the full condition itself."""
    chosen = target.settings.tasks[task]
    results = base.join_draws([base.unpack(store.load(_scores_key(target, *run, task)).arrays, chosen) for run in runs])
    if condition == FULL:
        return results, []
    clean = base.unpack(store.load(_scores_key(target, FULL, target.settings.seed, task)).arrays, chosen)
    by_identity = {result.identity: result for result in clean}
    return results, [base.matched(by_identity[result.identity], result) for result in results]


def scores_keys(target: Target, condition: str, task: str) -> list[Key]:
    """Keys of the cells with the scores of a task: of the full condition, then of every run of a condition."""
    return [_scores_key(target, *run, task) for run in [(FULL, target.settings.seed), *runs_of(target, condition)]]


def _rows_job(target: Target, condition: str, task: str, runs: Runs) -> Job:
    """Intervals, and paired comparisons with the full condition, over all runs."""
    chosen, settings, average = target.settings.tasks[task], target.settings, condition == SINGLE_MEAN
    full_key = _scores_key(target, FULL, settings.seed, task)
    run_keys = [_scores_key(target, *run, task) for run in runs]
    primary = {column.key[1:] for column in chosen.columns if column.primary}
    run: dict[str, Any] = {"model": target.name, "condition": condition, "tokens": "each register alone", "ablation": None, "window": "all"}
    if not average:
        run = target.run_fields(condition, [seed for _, seed in runs])
    run |= {"task": task, "layer": target.layer, "scores_cell": [cell_hash(key) for key in run_keys]}

    def compute(store: Needed) -> tuple[list[Row], Arrays]:
        results, full = paired_results(store, target, condition, task, runs)
        drawn = 0 if average or not target.is_random(condition) else len(runs)
        rows = compared_rows(run, results, target.inference, full, drawn, average)
        return [row | {"primary": (row["metric"], row["feature"], row["readout"]) in primary} for row in rows], {}

    columns = [list(column) for column in chosen.columns if column.primary]
    definition = {"task": task, "condition": condition, "run": run, "full": cell_hash(full_key), "primary": columns}
    key = rows_key(target, "rows", **definition)
    label, needs = f"{target.name}, {condition}: {task}, intervals", (full_key, *run_keys)
    return Job(key, target.name, label, 0.5, compute, host_only=True, needs=needs, unit=f"{condition}, intervals")
