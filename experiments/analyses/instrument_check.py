"""A check of the method: zeroing tokens at the output of the last block only must change no other token."""

from __future__ import annotations

import html
from collections.abc import Iterator

import numpy as np

import jaxvit
from experiments.datasets.base import first_id
from experiments.demo import label
from experiments.features.extraction import Features
from experiments.rows import Row, select
from experiments.study.cells import Store
from experiments.study.compare import plain_rows
from experiments.study.jobs import Arrays, Job, cell_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import protocol_id
from jaxvit import Ablation
from jaxvit.inference import mean_scores

TITLE = "Instrument check"
NOTE = (
    "Taken literally, the words of the post by Parodi & Segado (2026) say that only the output of the last block is overwritten. No block "
    "reads tokens there, so every other token must stay exactly what it was: the largest change of any of them, mean over test images, "
    "has to be 0."
)
TASK = "instrument_check"


def jobs(target: Target) -> Iterator[Job]:
    """CLS, and the registers where there are any, zeroed at the last block only."""
    if not target.baseline and target.model is not None:
        key = cell_key(target, TASK, resamples=target.settings.resamples)
        images = 3 * len(target.data.analysis_images)
        yield Job(key, f"{target.name}: instrument check", 1, lambda store: _compute(target, store), images)


def _compute(target: Target, store: Store) -> tuple[list[Row], Arrays]:
    assert target.model is not None
    config, images, runner = target.model.config, target.data.analysis_images, target.runner
    protocol = protocol_id("largest_change", of="all other tokens", norm="final")
    clean = runner.extract(images, Ablation(), first_id("test"))
    rows = []
    for tokens in ("cls", "registers") if config.registers else ("cls",):
        ablated = runner.extract(images, jaxvit.zero(tokens, layers=[config.depth - 1]), first_id("test"))
        change = _largest_change(clean, ablated, tokens)
        metrics = [("largest_change", "other tokens", "last", protocol, mean_scores(change))]
        rows += plain_rows(target, f"zero_{tokens}_last", TASK, metrics, tokens)
    return rows, {}


def _largest_change(clean: Features, ablated: Features, tokens: str) -> np.ndarray:
    """The largest absolute difference of any channel of any token but the ablated ones, [images]."""
    change = np.abs(ablated.patches - clean.patches).max(axis=(1, 2))
    before, after = (f.registers if tokens == "cls" else f.cls[:, None] for f in (clean, ablated))
    return np.maximum(change, np.abs(after - before).max(axis=(1, 2), initial=0))


def section(results: StudyResults) -> str:
    """A table of the largest changes."""
    rows = select(results.rows, task=TASK)
    body = "".join(f"<tr><td>{html.escape(label(r['model']))} · {r['condition']}</td><td>{r['value']:g}</td></tr>" for r in rows)
    return f"<table><tr><th></th><th>largest change of another token</th></tr>{body}</table>" if rows else ""
