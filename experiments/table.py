"""The table of conditions and tasks as cells: one for the scores of each draw, one for intervals and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from experiments import measures
from experiments.cells import Store
from experiments.study import Arrays, Job, Row, Subject, key, rows_of
from experiments.tasks import TASKS
from jaxvit.statistics import value

Draws = Sequence[tuple[str, int]]
"""Conditions and seeds whose scores are averaged."""


def jobs(subject: Subject, wanted: Iterable[str] | None = None, tasks: Iterable[str] | None = None) -> Iterator[Job]:
    """Cells of the conditions in their order; the full condition of a task stands before those that are compared with it.

    Args:
        wanted: conditions beside "full"; those that the subject does not have are left out. By default all.
        tasks: by default all that the data have what it takes for.
    """
    names = [n for n in subject.conditions if n == "full" or wanted is None or n in set(wanted)]
    todo = [t for t in possible(subject) if tasks is None or t in set(tasks)]
    for condition in names:
        draws = [(condition, seed) for seed in subject.draws(condition)]
        for draw in draws:
            for number, task in enumerate(todo):
                yield _scores(subject, *draw, task, first=number == 0)
        for task in todo:
            yield _rows(subject, condition, task, draws)
    singles = [(name, subject.settings.seed) for name in names if name.removeprefix("zero_r").isdigit()]
    if len(singles) > 1:
        for task in todo:
            yield _rows(subject, SINGLE_MEAN, task, singles)


SINGLE_MEAN = "zero_single_mean"
"""Mean over zeroing each register alone: the first point of the published cumulative lesion."""


def possible(subject: Subject) -> list[str]:
    """Tasks that are run on a subject."""
    wanted = subject.settings.tasks
    return [name for name, task in TASKS.items() if task.possible(subject.data) and (not wanted or name in wanted)]


def parts_read(subject: Subject) -> set[str]:
    """Parts of the data that the tasks of a subject read."""
    parts = {part for name in possible(subject) for part in TASKS[name].parts(subject.data)}
    return parts - {"sample"} if "test" in parts else parts


def _scores_key(subject: Subject, condition: str, draw: int, task: str) -> dict:
    return key(subject, "scores", task=task, condition=condition, draw=draw)


def _scores(subject: Subject, condition: str, draw: int, task: str, first: bool) -> Job:
    """The scores of a task under one draw of a condition, and in the full condition the read-outs."""

    def compute(store: Store) -> tuple[list[Row], Arrays]:
        if condition == "full":
            return [], measures.pack(TASKS[task].run(subject.reader(condition, draw), subject.context, {}))
        full = store.load(_scores_key(subject, "full", subject.settings.seed, task)).arrays
        context = subject.context._replace(ablated=True)
        if subject.conditions[condition].random:
            context = context._replace(seeds=(draw,))
        found = TASKS[task].run(subject.reader(condition, draw), context, measures.kept_of(full))
        return [], measures.pack([m._replace(kept={}) for m in found])

    images = sum(subject.images(part) for part in parts_read(subject)) if first and subject.model is not None else 0
    label = f"{subject.name}, {condition}: {task}"
    return Job(_scores_key(subject, condition, draw, task), label, 4 if first else 1, compute, images)


def _rows(subject: Subject, condition: str, task: str, draws: Draws) -> Job:
    """Intervals, and paired comparisons with the full condition, over all draws."""

    def compute(store: Store) -> tuple[list[Row], Arrays]:
        found = measures.joined([measures.unpack(store.load(_scores_key(subject, *draw, task)).arrays) for draw in draws])
        layer = subject.settings.readouts.where["layer"]
        told = [{name: getattr(m, name) for name in measures.TOLD} | {"layer": layer} for m in found]
        for entry, m in zip(told, found, strict=True):
            # the single lesions are not seeds of one another
            entry["by_seed"] = [value(measures.as_one(m.scores))] if condition == SINGLE_MEAN else [value(s) for s in m.scores]
        scores = [measures.as_one(m.scores) for m in found]
        if condition == "full":
            return rows_of(subject, condition, task, told, scores), {}
        clean = measures.unpack(store.load(_scores_key(subject, "full", subject.settings.seed, task)).arrays)
        by_name = {(m.metric, m.feature): m.scores for m in clean}
        full = [measures.as_one(by_name[m.full or m.metric, m.feature], len(m.scores)) for m in found]
        return rows_of(subject, condition, task, told, scores, full), {}

    cell = key(subject, "rows", task=task, condition=condition, draws=draws, resamples=subject.settings.resamples)
    return Job(cell, f"{subject.name}, {condition}: {task}, intervals", 0.5, compute)
