"""Bars of differences from the full condition."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.demo import label
from experiments.plotting.colours import Style, style
from experiments.plotting.columns import Column, score_key
from experiments.plotting.elements import plot
from experiments.plotting.escape import escaped
from experiments.plotting.hover import delta_errors, hover, meter_lines
from experiments.rows import Row


def plot_deltas(rows: Sequence[Row], columns: Sequence[Column], models: Sequence[str], conditions: Sequence[str]) -> str:
    """The differences from the full condition in the scores of some columns, as HTML: a panel for each model that ran any of the
    conditions, a bar style for each condition. Empty where no model did."""
    compared = [r for r in rows if r["delta"] is not None and r["condition"] in conditions]
    shown = [model for model in models if any(r["model"] == model for r in compared)]
    if not shown:
        return ""
    headings = {column.key: column.heading for column in columns}
    meters = meter_lines(rows)
    figure = make_subplots(
        len(shown), 1, subplot_titles=[escaped(label(m)) for m in shown], shared_xaxes=True, vertical_spacing=min(0.08, 0.5 / len(shown))
    )
    for panel, model in enumerate(shown, start=1):
        for index, condition in enumerate(conditions):
            by_score = {score_key(r): r for r in compared if (r["model"], r["condition"]) == (model, condition)}
            # a difference that holds by construction shows nothing, and what repeats another condition shows it again
            shown_keys = [k for k in headings if k in by_score and not by_score[k]["by_construction"] and not by_score[k]["repeats"]]
            bars = {headings[key]: by_score[key] for key in shown_keys}
            meter = meters.get((model, condition), "")
            figure.add_trace(_bars(bars, condition, meter, style(index), named=panel == 1), row=panel, col=1)
    figure.update_layout(height=120 + 230 * len(shown), margin={"t": 40, "b": 60}, template="plotly_white", barmode="group")
    figure.update_xaxes(tickfont={"size": 11})
    shares = all(r["unit"] == "%" for r in compared if score_key(r) in headings)
    figure.update_yaxes(title_text="points" if shares else "difference, in each score's unit")
    return plot(figure)


def _bars(bars: dict[str, Row], condition: str, meter: str, look: Style, named: bool) -> go.Bar:
    """The bars of one condition in one panel, by heading; `named` gives it an entry in the legend."""
    rows = list(bars.values())
    return go.Bar(
        x=list(bars),
        y=[r["scale"] * r["delta"] for r in rows],
        error_y=delta_errors(rows),
        customdata=[f"{hover(r)}<br>{meter}" for r in rows],
        hovertemplate="%{customdata}<extra></extra>",
        name=escaped(condition),
        legendgroup=condition,
        showlegend=named,
        marker={"color": look.colour, "pattern": {"shape": look.pattern}},
    )
