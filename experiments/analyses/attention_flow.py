"""Where attention flows: from CLS, registers and patches to each of them, at every block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.demo import label
from experiments.features.conditions import FULL
from experiments.plotting.elements import plot
from experiments.plotting.escape import escaped
from experiments.plotting.hover import interval, percent, token_label
from experiments.rows import Row, select, token_name
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import MetricResult, Unit, pack_scores, protocol_id
from jaxvit import TokenLayout
from jaxvit.inference import mean_scores

TITLE = "Where attention flows"
NOTE = (
    "Share of attention that goes from a source (row) to a target (column), in percent: mean over heads, over the queries of the source "
    "and over images, summed over the keys of the target. Every row sums to 100. Move the slider to see other blocks."
)
TASK = "attention_flow"
VERSION = 1
METRIC = "attention"
PROTOCOL = protocol_id("flow", attention="softmax", heads="mean", queries="mean of the source", keys="sum of the target", images="mean")
ALL_REGISTERS = "registers"
"""Name of all registers together, in rows next to those of each register."""


def jobs(target: Target) -> Iterator[Job]:
    """The attention flow of a model without ablation."""
    if not target.baseline and target.model is not None:
        key = rows_key(target, TASK, version=VERSION, protocol=PROTOCOL)
        images = len(target.data.analysis_images)
        yield Job(key, target.name, f"{target.name}: attention flow", 2, lambda store: _compute(target), images)


def _compute(target: Target) -> tuple[list[Row], Arrays]:
    assert target.model is not None
    by_head = target.extract_analysis("full", 0, "attention_flow").captured["attention_flow"]
    groups = TokenLayout.of(target.model.config, target.data.analysis_images.shape[1:3]).groups
    flow, names = _with_all_registers(by_head.mean(axis=2), [token_name(group) for group in groups], target.model.config.registers)
    results = [
        MetricResult(
            METRIC,
            None,
            PROTOCOL,
            [mean_scores(flow[layer, :, i, j])],
            Unit("%", 100.0),
            fields={"layer": layer, "source": from_token, "target": to_token},
        )
        for layer in range(flow.shape[0])
        for i, from_token in enumerate(names)
        for j, to_token in enumerate(names)
    ]
    run = target.run_fields(FULL) | {"task": TASK, "analysis": TASK}
    return compared_rows(run, results, target.inference), pack_scores(results)


def _with_all_registers(flow: np.ndarray, names: list[str], registers: int) -> tuple[np.ndarray, list[str]]:
    """The flow [layers, images, sources, targets] and its names with all registers together as one more group: the mean of them as
    sources, their sum as targets."""
    if not registers:
        return flow, names
    single = list(range(1, 1 + registers))
    flow = np.concatenate([flow, flow[:, :, single].mean(axis=2, keepdims=True)], axis=2)
    return np.concatenate([flow, flow[..., single].sum(axis=3, keepdims=True)], axis=3), [*names, ALL_REGISTERS]


def section(results: StudyResults) -> str:
    """One heat map for each model, with a slider over blocks."""
    rows = [r for r in results.rows if r["task"] == TASK and ALL_REGISTERS not in (r["source"], r["target"])]
    models = [model for model in results.models if select(rows, model=model)]
    if not models:
        return ""
    layers = sorted({r["layer"] for r in rows})
    figure = make_subplots(
        1, len(models), subplot_titles=[escaped(label(m)) for m in models], horizontal_spacing=0.5 / (1 + 2 * len(models))
    )
    panel_layers: list[int] = []
    for column, model in enumerate(models, start=1):
        for layer in sorted({r["layer"] for r in select(rows, model=model)}):
            figure.add_trace(_panel(select(rows, model=model, layer=layer), layer == layers[-1]), row=1, col=column)
            panel_layers.append(layer)
    steps = [
        {"label": str(layer), "method": "update", "args": [{"visible": [layer == panel for panel in panel_layers]}]} for layer in layers
    ]
    slider = {"active": len(layers) - 1, "currentvalue": {"prefix": "block "}, "steps": steps, "pad": {"t": 70}}
    figure.update_layout(sliders=[slider], height=520, margin={"t": 40, "b": 20, "l": 80})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="to")
    return plot(figure)


def _panel(rows: Sequence[Row], visible: bool) -> go.Heatmap:
    """The flow of one model at one block."""
    tokens = list(dict.fromkeys(r["source"] for r in rows))
    by_pair = {(r["source"], r["target"]): r for r in rows}
    cells = [[by_pair[from_token, to_token] for to_token in tokens] for from_token in tokens]
    names = [token_label(token) for token in tokens]
    return go.Heatmap(
        x=names,
        y=names,
        z=[[100 * r["value"] for r in line] for line in cells],
        text=[[percent(r["value"]) for r in line] for line in cells],
        customdata=[[_hover(r) for r in line] for line in cells],
        hovertemplate="%{customdata}<extra></extra>",
        texttemplate="%{text}",
        colorscale="Blues",
        zmin=0,
        zmax=100,
        visible=visible,
        showscale=False,
    )


def _hover(row: Row) -> str:
    lines = [f"{token_label(row['source'])} → {token_label(row['target'])}, block {row['layer']}", interval(row), f"n = {row['n']} images"]
    lines += [f"published {100 * other['value']:.2f}: {other['source'][:70]}" for other in row["published"] or ()]
    return "<br>".join(map(escaped, lines))
