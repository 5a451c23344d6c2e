"""Where attention flows: from CLS, registers and patches to each of them, at every block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.cells import Store
from experiments.demo import label
from experiments.figures import Finished, group_label, interval, percent, plot, select
from experiments.measures import protocol_id
from experiments.study import Arrays, Job, Row, Subject, key, plain_rows
from jaxvit import TokenLayout
from jaxvit.statistics import mean_scores

TITLE = "Where attention flows"
NOTE = (
    "Share of the attention that goes from a source (row) to a target (column): mean over heads, queries of the source and "
    "images, summed over the keys of the target. Every row sums to 100. Move the slider through the blocks."
)
TASK = "attention_flow"
PROTOCOL = protocol_id("flow", attention="softmax", heads="mean", queries="mean of the source", keys="sum of the target", images="mean")
ALL = "registers"
"""The registers together, beside each one alone."""


def jobs(subject: Subject) -> Iterator[Job]:
    """The flow of a model without ablation."""
    if subject.baseline or subject.model is None:
        return
    cell = key(subject, TASK, resamples=subject.settings.resamples)
    yield Job(cell, f"{subject.name}: attention flow", 2, lambda store: _compute(subject, store), len(subject.data.sample))


def _compute(subject: Subject, store: Store) -> tuple[list[Row], Arrays]:
    assert subject.model is not None
    flow = subject.sample("full", 0, "attention_flow").captured["attention_flow"].mean(axis=2)
    groups = TokenLayout.of(subject.model.config, subject.data.sample.shape[1:3]).groups
    flow, groups = _with_all(flow, groups)
    found = [
        (source, target, layer, PROTOCOL, mean_scores(flow[layer, :, s, t]))
        for layer in range(flow.shape[0])
        for s, source in enumerate(groups)
        for t, target in enumerate(groups)
    ]
    return plain_rows(subject, "full", TASK, found), {"flow": flow}


def _with_all(flow: np.ndarray, groups: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The registers together as one more group [layer, image, source, target]: mean of sources, sum of targets."""
    single = [i for i, name in enumerate(groups) if name.startswith("registers[")]
    if not single:
        return flow, groups
    flow = np.concatenate([flow, flow[:, :, single].mean(axis=2, keepdims=True)], axis=2)
    return np.concatenate([flow, flow[..., single].sum(axis=3, keepdims=True)], axis=3), (*groups, ALL)


def section(study: Finished) -> str:
    """One heat map for each model, with a slider over blocks."""
    rows = [r for r in study.rows if r["task"] == TASK and ALL not in (r["metric"], r["feature"])]
    models = [m for m in study.models if select(rows, model=m)]
    if not models:
        return ""
    layers = sorted({r["layer"] for r in rows})
    figure = make_subplots(1, len(models), subplot_titles=[label(m) for m in models], horizontal_spacing=0.5 / (1 + 2 * len(models)))
    shown: list[int] = []
    for column, model in enumerate(models, start=1):
        for layer in sorted({r["layer"] for r in select(rows, model=model)}):
            figure.add_trace(_panel(select(rows, model=model, layer=layer), layer == layers[-1]), row=1, col=column)
            shown.append(layer)
    steps = [{"label": str(layer), "method": "update", "args": [{"visible": [layer == of for of in shown]}]} for layer in layers]
    slider = {"active": len(layers) - 1, "currentvalue": {"prefix": "block "}, "steps": steps, "pad": {"t": 70}}
    figure.update_layout(sliders=[slider], height=520, margin={"t": 40, "b": 20, "l": 80})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="to")
    return plot(figure)


def _panel(rows: list[Row], visible: bool) -> go.Heatmap:
    groups = list(dict.fromkeys(r["metric"] for r in rows))
    by_pair = {(r["metric"], r["feature"]): r for r in rows}
    cells = [[by_pair[s, t] for t in groups] for s in groups]

    def told(r: Row) -> str:
        beside = "".join(f"<br>published {100 * p['value']:.2f}: {p['source'][:70]}" for p in r.get("published", ()))
        return (
            f"{group_label(r['metric'])} → {group_label(r['feature'])}, block {r['layer']}<br>{interval(r)}<br>n = {r['n']} images{beside}"
        )

    return go.Heatmap(
        x=[group_label(g) for g in groups],
        y=[group_label(g) for g in groups],
        z=[[100 * r["value"] for r in line] for line in cells],
        text=[[percent(r["value"]) for r in line] for line in cells],
        customdata=[[told(r) for r in line] for line in cells],
        hovertemplate="%{customdata}<extra></extra>",
        texttemplate="%{text}",
        colorscale="Blues",
        zmin=0,
        zmax=100,
        visible=visible,
        showscale=False,
    )


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("attention_flow", __doc__)
