"""Is the overwrite where it should be: zeroing tokens at the output of the last block alone must change no other token."""

from __future__ import annotations

import html
from collections.abc import Iterator

import numpy as np

import jaxvit
from experiments.cells import Store
from experiments.data import first_id
from experiments.demo import label
from experiments.figures import Finished, select
from experiments.measures import protocol_id
from experiments.study import Arrays, Job, Row, Subject, key, plain_rows
from jaxvit import Ablation
from jaxvit.statistics import mean_scores

TITLE = "Instrument check"
NOTE = (
    "The seed post's literal wording overwrites the output of the last block only. No block reads it there, so every other token must be "
    "what it was, exactly: the largest change of any of them, mean over test images, has to be 0."
)
TASK = "instrument_check"


def jobs(subject: Subject) -> Iterator[Job]:
    """Both overwrites at the last block."""
    if not subject.baseline and subject.model is not None:
        cell = key(subject, TASK, resamples=subject.settings.resamples)
        yield Job(cell, f"{subject.name}: instrument check", 1, lambda store: _compute(subject, store), 3 * len(subject.data.sample))


def _compute(subject: Subject, store: Store) -> tuple[list[Row], Arrays]:
    assert subject.model is not None
    config, images, runner = subject.model.config, subject.data.sample, subject.runner
    clean = runner.extract(images, Ablation(), first_id("test"))
    rows = []
    for tokens in ("cls", "registers") if config.registers else ("cls",):
        found = runner.extract(images, jaxvit.zero(tokens, layers=[config.depth - 1]), first_id("test"))
        other = "registers" if tokens == "cls" else "cls"
        change = np.abs(found.patches - clean.patches).max(axis=(1, 2))
        if config.registers or other == "cls":
            a, b = (getattr(f, other).reshape(len(images), -1) for f in (found, clean))
            change = np.maximum(change, np.abs(a - b).max(axis=1, initial=0))
        told = protocol_id("largest_change", of="all other tokens", norm="final")
        rows += plain_rows(subject, f"zero_{tokens}_last", TASK, [("largest_change", "other tokens", "last", told, mean_scores(change))])
    return rows, {}


def section(study: Finished) -> str:
    """A table of changes."""
    rows = select(study.rows, task=TASK)
    body = "".join(f"<tr><td>{html.escape(label(r['model']))} · {r['condition']}</td><td>{r['value']:g}</td></tr>" for r in rows)
    return f"<table><tr><th></th><th>largest change of another token</th></tr>{body}</table>" if rows else ""


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("instrument_check", __doc__)
