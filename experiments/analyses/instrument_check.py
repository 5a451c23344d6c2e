"""A check of the method: zeroing tokens at the output of the last block only must change no other token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import jaxvit
from experiments.datasets.base import first_id
from experiments.demo import label
from experiments.features.extraction import Features
from experiments.features.recipes import Recipe, recipe_of
from experiments.plotting.elements import empty_cell, table
from experiments.plotting.escape import escaped, joined
from experiments.plotting.hover import protocol, sentence
from experiments.rows import Row, select
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import MetricResult, Unit, pack_scores, protocol_id, scores_array
from jaxvit import Ablation
from jaxvit.inference import mean_scores

TITLE = "Instrument check"
NOTE = (
    "Taken literally, the words of the post by Parodi & Segado (2026) say that only the output of the last block is overwritten. No block "
    "reads tokens there, so every other token must stay exactly what it was: the largest change of any of them, mean over test images, "
    "has to be 0."
)
TASK = "instrument_check"
VERSION = 1


def jobs(target: Target) -> Iterator[Job]:
    """CLS, and the registers where there are any, zeroed at the last block only."""
    if not target.baseline and target.model is not None:
        recipes = {tokens: _recipe(target, tokens) for tokens in (("cls", "registers") if target.model.config.registers else ("cls",))}
        texts = {recipe.hash: recipe.text for recipe in recipes.values()}
        key, label = rows_key(target, TASK, version=VERSION, ablations=list(texts)), f"{target.name}: instrument check"
        images = (1 + len(recipes)) * len(target.data.analysis_images)
        yield Job(key, target.name, label, 1, lambda store: _compute(target, recipes), images, ablations=texts, apart=True)


def _last_block(target: Target, tokens: str) -> Ablation:
    assert target.model is not None
    return jaxvit.zero(tokens, layers=[target.model.config.depth - 1])


def _recipe(target: Target, tokens: str) -> Recipe:
    assert target.model is not None
    return recipe_of(lambda config, moments, seed: _last_block(target, tokens), target.model.config, target.image_size, 0, "")


def _compute(target: Target, recipes: Mapping[str, Recipe]) -> tuple[list[Row], Arrays]:
    assert target.model is not None
    images, runner = target.data.analysis_images, target.runner
    protocol = protocol_id("largest_change", of="all other tokens", norm="final")
    clean = runner.extract(images, Ablation(), first_id("test"))
    rows: list[Row] = []
    arrays: Arrays = {}
    for tokens, recipe in recipes.items():
        condition = f"zero_{tokens}_last"
        ablated = runner.extract(images, _last_block(target, tokens), first_id("test"))
        scores = mean_scores(_largest_change(clean, ablated, tokens))
        results = [MetricResult("largest_change", "other tokens", protocol, [scores], Unit())]
        run: dict[str, Any] = {
            "model": target.name,
            "condition": condition,
            "tokens": recipe.tokens,
            "ablation": [recipe.hash],
            "window": recipe.window,
        }
        run |= {"task": TASK, "analysis": TASK, "layer": target.layer}
        for row in compared_rows(run, results, target.inference):
            rows.append(row | {"scores_array": scores_array(len(arrays))})
            arrays[scores_array(len(arrays))] = pack_scores(results)[scores_array(0)]
    return rows, arrays


def _largest_change(clean: Features, ablated: Features, tokens: str) -> np.ndarray:
    """The largest absolute difference of any channel of any token but the ablated ones, [images]."""
    change = np.abs(ablated.patches - clean.patches).max(axis=(1, 2))
    before, after = (f.registers if tokens == "cls" else f.cls[:, None] for f in (clean, ablated))
    return np.maximum(change, np.abs(after - before).max(axis=(1, 2), initial=0))


def verdicts(results: StudyResults) -> list[str]:
    """Whether any other token changed: one line."""
    rows = select(results.rows, task=TASK)
    changed = [f"{joined(label(r['model']), r['condition'])} ({r['value']:g})" for r in rows if r["value"] > 0]
    if not rows:
        return []
    if changed:
        return [f"failed: other tokens changed in {', '.join(changed)}; do not trust the numbers below before the cause is found"]
    return [f"passed: in {len(rows)} of {len(rows)} runs no other token changed"]


def section(results: StudyResults) -> str:
    """Whether the check holds, and a table of the largest changes: models against what was zeroed."""
    rows = select(results.rows, task=TASK)
    if not rows:
        return ""
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    found = {(row["model"], row["condition"]): row for row in rows}
    lines = [(label(m), [_cell(found.get((m, c))) for c in conditions]) for m in dict.fromkeys(row["model"] for row in rows)]
    said = "".join(f"<p><b>{escaped(line[0].upper() + line[1:])}.</b></p>" for line in verdicts(results))
    return said + table("largest change of another token", list(map(escaped, conditions)), lines)


def _cell(row: Row | None) -> str:
    """The largest change as it is: every digit of a number that has to be 0."""
    if row is None:
        return empty_cell()
    title = escaped("\n".join((sentence(row), protocol(row))))
    return f'<td title="{title}">{row["value"]:g}</td>'
