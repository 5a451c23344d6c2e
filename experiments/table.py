"""The table of conditions and tasks as cells: one for the scores of each draw, one for intervals and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from experiments import measures
from experiments.cells import Store
from experiments.study import Arrays, Job, Row, Subject, key, rows_of
from experiments.tasks import TASKS
from jaxvit.statistics import value


def jobs(subject: Subject, wanted: Iterable[str] | None = None, tasks: Iterable[str] | None = None) -> Iterator[Job]:
    """Cells of the conditions in their order; the full condition of a task stands before those that are compared with it.

    Args:
        wanted: conditions beside "full"; those that the subject does not have are left out. By default all.
        tasks: by default all that the data have what it takes for.
    """
    names = [n for n in subject.conditions if n == "full" or wanted is None or n in set(wanted)]
    for condition in names:
        todo = [t for t in possible(subject) if tasks is None or t in set(tasks)]
        for draw in subject.draws(condition):
            for number, task in enumerate(todo):
                yield _scores(subject, condition, draw, task, first=number == 0)
        for task in todo:
            yield _rows(subject, condition, task)


def possible(subject: Subject) -> list[str]:
    """Tasks that are run on a subject."""
    wanted = subject.settings.tasks
    return [name for name, task in TASKS.items() if task.possible(subject.data) and (not wanted or name in wanted)]


def _scores_key(subject: Subject, condition: str, draw: int, task: str) -> dict:
    return key(subject, "scores", task=task, condition=condition, draw=draw)


def _scores(subject: Subject, condition: str, draw: int, task: str, first: bool) -> Job:
    """The scores of a task under one draw of a condition, and in the full condition the read-outs."""

    def compute(store: Store) -> tuple[list[Row], Arrays]:
        full = store.load(_scores_key(subject, "full", subject.settings.seed, task)).arrays if condition != "full" else {}
        found = TASKS[task].run(
            subject.reader(condition, draw), subject.context._replace(ablated=condition != "full"), measures.kept_of(full)
        )
        if condition != "full":
            found = [m._replace(kept={}) for m in found]
        return [], measures.pack(found)

    images = sum(len(part.images) for part in subject.data.parts.values()) if first and subject.model is not None else 0
    label = f"{subject.name}, {condition}: {task}"
    return Job(_scores_key(subject, condition, draw, task), label, 4 if first else 1, compute, images)


def _rows(subject: Subject, condition: str, task: str) -> Job:
    """Intervals, and paired comparisons with the full condition, over all draws."""
    draws = subject.draws(condition)

    def compute(store: Store) -> tuple[list[Row], Arrays]:
        found = measures.joined([measures.unpack(store.load(_scores_key(subject, condition, draw, task)).arrays) for draw in draws])
        layer = subject.settings.readouts.where["layer"]
        told = [
            {name: getattr(m, name) for name in measures.TOLD} | {"layer": layer, "by_seed": [value(s) for s in m.scores]} for m in found
        ]
        scores = [measures.as_one(m.scores) for m in found]
        if condition == "full":
            return rows_of(subject, condition, task, told, scores), {}
        clean = {
            (m.metric, m.feature): m for m in measures.unpack(store.load(_scores_key(subject, "full", subject.settings.seed, task)).arrays)
        }
        full = [measures.as_one(clean[m.full or m.metric, m.feature].scores, len(draws)) for m in found]
        return rows_of(subject, condition, task, told, scores, full), {}

    cell = key(subject, "rows", task=task, condition=condition, resamples=subject.settings.resamples)
    return Job(cell, f"{subject.name}, {condition}: {task}, intervals", 0.5, compute)
