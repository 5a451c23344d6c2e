"""How far from the usual an ablation goes: divergence of attention, and the rest of the off-manifold meter, at every block."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments import manifold
from experiments.cells import Store
from experiments.data import first_id
from experiments.demo import label
from experiments.figures import COLOURS, Finished, hover, plot, select
from experiments.measures import as_one, protocol_id
from experiments.study import Arrays, Job, Row, Subject, key, rows_of
from jaxvit.statistics import mean_scores, value

TITLE = "How far from the usual an ablation goes"
NOTE = (
    "Above, the divergence of attention from the clean run by block (exactly 0 at block 0, which attends before anything is replaced). "
    "Below, patches leaving the last block, before the final norm: means over test images with 95 % intervals. An ablation that leaves "
    "the manifold (low cosine, changed norm, many standard deviations) shows what a model does with input it never saw, not what the "
    "token carries. What calibration saw lies about 1 s.d. from its mean."
)
TASK = "off_manifold"
METER = (
    ("patch_cosine", "cosine of patches<br>with the clean run"),
    ("patch_norm_ratio", "norm of patches<br>against the clean run"),
    ("patch_mahalanobis", "distance of patches from<br>their calibrated mean, s.d."),
    ("attention_divergence", "divergence of attention<br>from the clean run"),
)
"""(metric, heading) of the off-manifold meter."""


def jobs(subject: Subject) -> Iterator[Job]:
    """The meter under every condition but full."""
    if subject.baseline or subject.model is None:
        return
    for condition in list(subject.conditions)[1:]:
        cell = key(subject, TASK, condition=condition, protocol=manifold.METRICS, resamples=subject.settings.resamples)
        images = 2 * len(subject.data.sample) * len(subject.draws(condition))
        yield Job(cell, f"{subject.name}, {condition}: off-manifold meter", 1, functools.partial(_compute, subject, condition), images)


def _compute(subject: Subject, condition: str, store: Store) -> tuple[list[Row], Arrays]:
    draws = [
        manifold.measure(subject.runner, subject.data.sample, subject.ablation(condition, draw), subject.statistics, first_id("test"))
        for draw in subject.draws(condition)
    ]
    told, scores = [], []
    for metric in manifold.METRICS:
        for layer in range(len(draws[0][metric])):
            by_draw = [mean_scores(draw[metric][layer]) for draw in draws]
            protocol = protocol_id(metric, definition=manifold.METRICS[metric], norm="none")
            told.append(
                {"metric": metric, "feature": "patches", "layer": layer, "protocol": protocol, "by_seed": [value(s) for s in by_draw]}
            )
            scores.append(as_one(by_draw))
    arrays = {metric: np.stack([draw[metric] for draw in draws]) for metric in manifold.METRICS}
    return rows_of(subject, condition, TASK, told, scores), arrays


def section(study: Finished) -> str:
    """Lines over blocks, and the meter at the last block."""
    models = [m for m in study.models if study.conditions(m, TASK)]
    return plot(_lines(study, models)) + _meter(study, models) if models else ""


def _lines(study: Finished, models: list[str]) -> go.Figure:
    figure = make_subplots(1, len(models), subplot_titles=[label(m) for m in models], shared_yaxes=True, horizontal_spacing=0.04)
    names = list(dict.fromkeys(c for m in models for c in study.conditions(m, TASK)))
    first: set[str] = set()
    for column, model in enumerate(models, start=1):
        for number, condition in enumerate(names):
            rows = select(study.rows, model=model, condition=condition, task=TASK, metric="attention_divergence")
            if not rows:
                continue
            line = go.Scatter(
                x=[r["layer"] for r in rows],
                y=[r["value"] for r in rows],
                customdata=[hover(r, scale=1) for r in rows],
                hovertemplate="%{customdata}<extra></extra>",
                name=condition,
                legendgroup=condition,
                showlegend=condition not in first,
                line={"color": COLOURS[number % len(COLOURS)], "dash": ("solid", "dash", "dot")[number // len(COLOURS) % 3]},
            )
            first.add(condition)
            figure.add_trace(line, row=1, col=column)
    figure.update_layout(height=420, margin={"t": 40, "b": 40}, template="plotly_white")
    figure.update_xaxes(title_text="block", dtick=1)
    figure.update_yaxes(title_text="bits", col=1)
    return figure


def _meter(study: Finished, models: list[str]) -> str:
    heads = "".join(f"<th>{heading}</th>" for _, heading in METER)
    body = ""
    for model in models:
        for condition in study.conditions(model, TASK):
            last = {r["metric"]: r for r in select(study.rows, model=model, condition=condition, task=TASK)}  # layers come in order
            cells = [last[metric] for metric, _ in METER]
            shown = [f"<td>{r['value']:.3f}<small>{r['ci_low']:.3f} – {r['ci_high']:.3f}</small></td>" for r in cells]
            body += f"<tr><td>{html.escape(label(model))} · {condition}</td>{''.join(shown)}</tr>"
    return f"<details open><summary>all conditions</summary><table><tr><th>last block</th>{heads}</tr>{body}</table></details>"


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("attention_divergence", __doc__)
