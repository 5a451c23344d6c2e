"""Interactive figures of the report, from the rows of `results.jsonl`; every one shows exact values on hover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.demo import label

Row = dict[str, Any]

HEAT_COLUMNS = (
    ("linear_probe", "top1", "cls", "linear probe<br>CLS"),
    ("linear_probe", "top1_frozen", "cls", "frozen probe<br>CLS"),
    ("linear_probe", "top1", "patch_mean", "linear probe<br>patch mean"),
    ("knn", "top1_k20", "cls", "k-NN (k 20)<br>CLS"),
    ("retrieval", "recall_at_1", "cls", "Recall@1<br>CLS"),
    ("correspondence", "accuracy", "patches", "correspondence<br>all patches"),
    ("correspondence", "accuracy", "digit_patches", "correspondence<br>digit patches"),
    ("segmentation", "miou", "patches", "mIoU<br>11 classes"),
    ("segmentation", "miou_frozen", "patches", "mIoU<br>frozen"),
)
"""(task, metric, feature, heading) of the metrics in the ablation table; all are shares of 1."""

_FONT = {"family": "system-ui, sans-serif", "size": 13}
_COLOURS = ("#1f4e79", "#c0504d", "#7f9f3f", "#7b5ea7", "#d9903d", "#3a9a9a")


def group_label(name: str) -> str:
    """Token groups as the conditions name them: registers[0] is R1."""
    return f"R{int(name[10:-1]) + 1}" if name.startswith("registers[") else {"cls": "CLS"}.get(name, name)


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows whose fields have the wanted values."""
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def ablation_heat_map(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    """Model x condition against task, raw values or differences from the full condition."""
    lines = list(dict.fromkeys((r["model"], r["condition"]) for r in rows if r["model"] in models and r["task"] == "linear_probe"))
    raw, delta, raw_text, delta_text, hover = [], [], [], [], []
    for model, condition in lines:
        found = [
            next(iter(select(rows, model=model, condition=condition, task=t, metric=m, feature=f)), None) for t, m, f, _ in HEAT_COLUMNS
        ]
        raw.append([None if r is None else 100 * r["value"] for r in found])
        delta.append([None if r is None else 100 * (r["delta"] or 0) for r in found])
        marks = ["†" if r and r.get("note") else "" for r in found]
        raw_text.append(["" if r is None else percent(r["value"]) + mark for r, mark in zip(found, marks, strict=True)])
        delta_text.append(
            ["" if r is None or r["delta"] is None else f"{100 * r['delta']:+.1f}{mark}" for r, mark in zip(found, marks, strict=True)]
        )
        meter = _meter(rows, model, condition)
        hover.append([_hover(r) + (f"<br>{meter}" if r and meter else "") for r in found])
    names = [f"{label(model)} · {condition}" for model, condition in lines]
    headings = [heading for *_, heading in HEAT_COLUMNS]
    # what is so by construction would drown the rest
    shown = {column[:3] for column in HEAT_COLUMNS}
    told = [r for r in rows if (r["task"], r["metric"], r["feature"]) in shown and r["delta"] is not None and not r.get("note")]
    span = 100 * max((abs(r["delta"]) for r in told), default=0) or 1
    common = {"x": headings, "y": names, "customdata": hover, "hovertemplate": "%{customdata}<extra></extra>", "texttemplate": "%{text}"}
    figure = go.Figure(
        [
            go.Heatmap(z=raw, text=raw_text, colorscale="Viridis", zmin=0, zmax=100, colorbar={"title": "percent"}, **common),
            go.Heatmap(
                z=delta, text=delta_text, colorscale="RdBu", zmin=-span, zmax=span, visible=False, colorbar={"title": "points"}, **common
            ),
        ]
    )
    buttons = [
        {"label": label, "method": "update", "args": [{"visible": [i == k for i in range(2)]}]}
        for k, label in enumerate(("raw", "difference from full"))
    ]
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": buttons,
                "x": 0,
                "xanchor": "left",
                "y": 1.0,
                "yanchor": "bottom",
                "pad": {"b": 48},
            }
        ],
        xaxis={"side": "top", "tickangle": 0, "tickfont": {"size": 9}},
        yaxis={"autorange": "reversed"},
        height=170 + 34 * len(names),
        margin={"l": 250, "r": 20, "t": 140, "b": 20},
        font=_FONT,
    )
    return figure


def attention_flow(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    """Share of attention from source to target groups, one heat map per model, with a slider over layers."""
    flow = select(rows, task="attention_flow")
    layers = sorted({r["layer"] for r in flow})
    figure = make_subplots(1, len(models), subplot_titles=[label(m) for m in models], horizontal_spacing=0.16)
    for layer in layers:
        for column, model in enumerate(models, start=1):
            found = select(flow, model=model, layer=layer)
            groups = list(dict.fromkeys(r["metric"] for r in found))
            by_pair = {(r["metric"], r["feature"]): r for r in found}
            cells = [[by_pair[s, t] for t in groups] for s in groups]
            heat = go.Heatmap(
                x=[group_label(g) for g in groups],
                y=[group_label(g) for g in groups],
                z=[[100 * r["value"] for r in line] for line in cells],
                text=[[percent(r["value"]) for r in line] for line in cells],
                customdata=[
                    [
                        f"{group_label(r['metric'])} → {group_label(r['feature'])}, block {layer}<br>{_interval(r)}<br>n = {r['n']} images"
                        for r in line
                    ]
                    for line in cells
                ],
                hovertemplate="%{customdata}<extra></extra>",
                texttemplate="%{text}",
                colorscale="Blues",
                zmin=0,
                zmax=100,
                visible=layer == layers[-1],
                showscale=column == len(models),
                colorbar={"title": "percent"},
            )
            figure.add_trace(heat, row=1, col=column)
    steps = [
        {"label": str(layer), "method": "update", "args": [{"visible": [layer == shown for shown in layers for _ in models]}]}
        for layer in layers
    ]
    figure.update_layout(
        sliders=[{"active": len(layers) - 1, "currentvalue": {"prefix": "block "}, "steps": steps, "pad": {"t": 70}}],
        height=520,
        margin={"t": 40, "b": 20, "l": 110},
        font=_FONT,
    )
    figure.update_yaxes(autorange="reversed", title_text="from", col=1)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="to")
    return figure


def layer_probes(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    """Top-1 of a linear probe of CLS and of each register at every layer, with 95 % intervals."""
    probes = select(rows, task="layer_probe")
    figure = make_subplots(1, len(models), subplot_titles=[label(m) for m in models], shared_yaxes=True, horizontal_spacing=0.04)
    features = list(dict.fromkeys(r["feature"] for r in probes))
    for column, model in enumerate(models, start=1):
        for colour, feature in zip(_COLOURS, features, strict=False):
            found = select(probes, model=model, feature=feature)
            if not found:
                continue
            line = go.Scatter(
                x=[r["layer"] for r in found],
                y=[100 * r["value"] for r in found],
                error_y={
                    "array": [100 * (r["ci_high"] - r["value"]) for r in found],
                    "arrayminus": [100 * (r["value"] - r["ci_low"]) for r in found],
                    "thickness": 1,
                },
                customdata=[_hover(r) for r in found],
                hovertemplate="%{customdata}<extra></extra>",
                name=group_label(feature),
                legendgroup=feature,
                showlegend=column == 1 + [bool(select(probes, model=m, feature=feature)) for m in models].index(True),
                line={"color": colour},
                mode="lines+markers",
            )
            figure.add_trace(line, row=1, col=column)
    figure.update_layout(height=420, margin={"t": 40, "b": 40}, font=_FONT, template="plotly_white")
    figure.update_xaxes(title_text="block", dtick=1)
    figure.update_yaxes(title_text="top-1, percent", col=1)
    return figure


def effective_rank(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    """Mean effective rank of the patches under each condition, with 95 % intervals."""
    figure = go.Figure()
    for colour, model in zip(_COLOURS, models, strict=False):
        found = select(rows, model=model, task="effective_rank", metric="gram_eigenvalues")
        bars = go.Bar(
            x=[r["condition"] for r in found],
            y=[r["value"] for r in found],
            error_y={"array": [r["ci_high"] - r["value"] for r in found], "arrayminus": [r["value"] - r["ci_low"] for r in found]},
            customdata=[_hover(r, scale=1) for r in found],
            hovertemplate="%{customdata}<extra></extra>",
            name=label(model),
            marker_color=colour,
        )
        figure.add_trace(bars)
    figure.update_layout(height=380, margin={"t": 20, "b": 40}, font=_FONT, template="plotly_white", barmode="group")
    figure.update_yaxes(title_text="effective rank")
    return figure


METER = (
    ("patch_cosine", "cosine of patches<br>with the clean run"),
    ("patch_norm_ratio", "norm of patches<br>against the clean run"),
    ("patch_mahalanobis", "distance of patches from<br>their calibrated mean, s.d."),
    ("attention_divergence", "divergence of attention<br>from the clean run"),
)
"""(metric, heading) of the off-manifold meter."""


def meter_rows(rows: Sequence[Row], model: str, condition: str) -> list[Row]:
    """The off-manifold meter of a condition at the last block, in the order of `METER`; empty where it was not measured."""
    found = select(rows, model=model, condition=condition, task="off_manifold")
    last = max((r["layer"] for r in found), default=None)
    return [r for metric, _ in METER for r in found if (r["metric"], r["layer"]) == (metric, last)]


def _meter(rows: Sequence[Row], model: str, condition: str) -> str:
    values = [f"{r['metric'].replace('_', ' ')} {r['value']:.3f}" for r in meter_rows(rows, model, condition)]
    return f"off manifold, last block: {', '.join(values)}" if values else ""


def _interval(row: Row, scale: float = 100) -> str:
    return f"{scale * row['value']:.3f} [{scale * row['ci_low']:.3f}, {scale * row['ci_high']:.3f}]"


def _hover(row: Row | None, scale: float = 100) -> str:
    if row is None:
        return "not run"
    lines = [f"{label(row['model'])} · {row['condition']}", f"{row['task']}: {row['metric']} of {row['feature']}, layer {row['layer']}"]
    lines.append(f"value {_interval(row, scale)}, n = {row['n']}")
    if row["delta"] is not None:
        corrected = "" if row["p_holm"] is None else f", by Holm {row['p_holm']:.4f}"
        change = [scale * row[k] for k in ("delta", "delta_ci_low", "delta_ci_high")]
        lines.append(f"against full {change[0]:+.3f} [{change[1]:+.3f}, {change[2]:+.3f}], p = {row['p_value']:.4f}{corrected}")
    if row.get("note"):
        lines.append(f"† {row['note']}")
    return "<br>".join([*lines, f"cell {row['cell']}"])
