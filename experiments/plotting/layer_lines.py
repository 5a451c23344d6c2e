"""Lines over blocks: one panel for each model, one line for each feature or condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.demo import label
from experiments.plotting.colours import Style, style
from experiments.plotting.elements import plot
from experiments.plotting.escape import escaped
from experiments.plotting.hover import errors, hover, token_label
from experiments.rows import Row, select


def plot_layer_lines(rows: Sequence[Row], models: Sequence[str], task: str, metric: str, features: Sequence[str], title: str) -> str:
    """A metric of some features over blocks, in percent with intervals, as HTML: a line for each feature. Empty where there are no rows."""
    shown = [r for r in select(rows, task=task, metric=metric) if r["feature"] in features]
    return _plot_panels(shown, models, "feature", {name: token_label(name) for name in features}, title, scale=100, intervals=True)


def plot_condition_lines(rows: Sequence[Row], models: Sequence[str], task: str, metric: str, title: str) -> str:
    """A metric over blocks, in its own unit, as HTML: a line for each condition. Empty where there are no rows."""
    shown = select(rows, task=task, metric=metric)
    conditions = dict.fromkeys(r["condition"] for model in models for r in select(shown, model=model))
    return _plot_panels(shown, models, "condition", {name: name for name in conditions}, title, scale=1, intervals=False)


def _plot_panels(
    rows: Sequence[Row], models: Sequence[str], field: str, names: Mapping[str, str], title: str, scale: float, intervals: bool
) -> str:
    """One panel for each model that has rows; one line for each value of the field `field`, named in the legend by `names`."""
    panels = [model for model in models if select(rows, model=model)]
    if not panels:
        return ""
    figure = make_subplots(1, len(panels), subplot_titles=[escaped(label(m)) for m in panels], shared_yaxes=True, horizontal_spacing=0.04)
    for index, (entry, name) in enumerate(names.items()):
        lines = {column: select(rows, model=model, **{field: entry}) for column, model in enumerate(panels, start=1)}
        drawn = [column for column, line in lines.items() if line]
        for column in drawn:
            trace = _line(lines[column], style(index), scale, intervals)
            figure.add_trace(trace.update(name=escaped(name), legendgroup=entry, showlegend=column == drawn[0]), row=1, col=column)
    figure.update_layout(height=420, margin={"t": 40, "b": 40}, template="plotly_white")
    figure.update_xaxes(title_text="block", dtick=1)
    figure.update_yaxes(title_text=title, col=1)
    return plot(figure)


def _line(rows: Sequence[Row], look: Style, scale: float, intervals: bool) -> go.Scatter:
    return go.Scatter(
        x=[r["layer"] for r in rows],
        y=[scale * r["value"] for r in rows],
        error_y=errors(rows, scale) if intervals else None,
        customdata=[hover(r) for r in rows],
        hovertemplate="%{customdata}<extra></extra>",
        line={"color": look.colour, "dash": look.dash},
        mode="lines+markers",
    )
