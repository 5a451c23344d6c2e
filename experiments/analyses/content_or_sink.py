"""What are registers for: their content, a constant, or a place for attention to go? Edits inside attention tell."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from experiments.demo import label
from experiments.plotting.escape import escaped, joined
from experiments.sinks import experiment
from experiments.sinks.verdicts import all_verdicts
from experiments.study.jobs import Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "Content or sink: what registers are for"
NOTE = "To be written."
TASK = experiment.TASK
_TARGETS = {"cls": "CLS", "patches": "patches"}


def jobs(target: Target) -> Iterator[Job]:
    """One cell for each token group of a model whose images have classes or masks."""
    for question in experiment.questions(target):
        recipes = {spec.name: question.recipe(spec) for spec in question.specs()}
        texts = {recipe.hash: recipe.text for recipe in recipes.values()}
        definition = {"group": question.group.name, "ablations": {name: recipe.hash for name, recipe in recipes.items()}}
        key = rows_key(target, TASK, version=experiment.VERSION, scope=target.settings.sink_scope, **definition)
        compute = functools.partial(_compute, question)
        images = experiment.images_run(question)
        yield Job(key, target.name, f"{target.name}, {question.group.name}: content or sink", 8, compute, images, ablations=texts)


def _compute(question: experiment.Question, store: object) -> Any:
    return experiment.compute(question)


def words(results: StudyResults) -> dict[str, Any]:
    """The verdicts as run.json holds them: words by model, group and target."""
    return {
        model: {group: {target: str(verdict) for target, verdict in of_group.items()} for group, of_group in of_model.items()}
        for model, of_model in all_verdicts(results.rows).items()
    }


def verdicts(results: StudyResults) -> list[str]:
    """One line for each group of each model."""
    return [
        f"{joined(label(model), group.replace('_', ' '))}: " + ", ".join(f"{_TARGETS[target]}: {verdict}" for target, verdict in of_group.items())
        for model, of_model in all_verdicts(results.rows).items()
        for group, of_group in of_model.items()
    ]


def section(results: StudyResults) -> str:
    """The verdicts, and all rows."""
    lines = verdicts(results)
    if not lines:
        return ""
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>"
