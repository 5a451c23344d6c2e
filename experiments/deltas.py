"""Bars of differences from the full condition: what several experiments show of the ablation table."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.demo import label
from experiments.figures import COLOURS, Finished, columns, delta_errors, hover, meter_lines


def bars(study: Finished, conditions: Sequence[str]) -> go.Figure | None:
    """Differences under some conditions in every task, one panel for each model that ran any; None where none did."""
    shown = columns(study.rows)
    index = {(r["model"], r["condition"], r["task"], r["metric"], r["feature"]): r for r in study.rows if r["delta"] is not None}
    models = [m for m in study.models if any(key[0] == m and key[1] in conditions for key in index)]
    if not models or not conditions:
        return None
    meters = meter_lines(study.rows)
    figure = make_subplots(
        len(models), 1, subplot_titles=[label(m) for m in models], shared_xaxes=True, vertical_spacing=min(0.08, 0.5 / len(models))
    )
    for line, model in enumerate(models, start=1):
        for colour, condition in zip(COLOURS, conditions, strict=False):
            pairs = [(column[3], index.get((model, condition, *column[:3]))) for column in shown]
            # what is so by construction says nothing
            found = [(heading, row) for heading, row in pairs if row is not None and not row.get("note")]
            rows = [row for _, row in found]
            bar = go.Bar(
                x=[heading for heading, _ in found],
                y=[100 * r["delta"] for r in rows],
                error_y=delta_errors(rows),
                customdata=[f"{hover(r)}<br>{meters.get((model, condition), '')}" for r in rows],
                hovertemplate="%{customdata}<extra></extra>",
                name=condition,
                legendgroup=condition,
                showlegend=line == 1,
                marker_color=colour,
            )
            figure.add_trace(bar, row=line, col=1)
    figure.update_layout(height=120 + 230 * len(models), margin={"t": 40, "b": 60}, template="plotly_white", barmode="group")
    figure.update_xaxes(tickfont={"size": 10})
    figure.update_yaxes(title_text="points")
    return figure
