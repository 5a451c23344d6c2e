"""The table of ablations: every condition against every task, as values and as differences from the full condition."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go

from experiments.demo import label
from experiments.plotting.columns import Column, ScoreKey, filled, refitted, score_key
from experiments.plotting.elements import interval_cell, plot, table
from experiments.plotting.escape import escaped, joined
from experiments.plotting.hover import hover, meter_lines, scaled
from experiments.rows import Row, select
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "What an ablation costs"
NOTE = (
    "Tokens are overwritten at the output of every block. Point at a cell for its exact "
    "value and interval, its protocol, and the paired difference from the full condition with its p-value. Read-outs are "
    "fitted anew for each condition; <i>frozen</i> ones are fitted in the full condition and applied unchanged: they show that features "
    "changed, not whether the information is still there. † marks what holds by construction: with CLS overwritten by a constant, "
    "nothing can be read from it, so only the dense tasks say anything about zero_cls and mean_cls. Patches that a condition overwrites "
    "are left out of scores of single patches, in the full condition that they are compared with too. A zeroed token "
    "is not removed: LayerNorm maps it to its bias, so that other tokens still attend to it, as to a constant key. Values of random "
    "conditions and random read-outs are means over draws."
)


def jobs(target: Target) -> Iterator[Job]:
    """Every task under every condition."""
    return grid.jobs(target)


def section(results: StudyResults) -> str:
    """The table of models and baselines without ablation, and the heat map of all conditions."""
    shown = filled(results.columns, results.rows)
    if not shown:
        return ""
    return html_table(results.rows, shown) + plot(heat_map(results.rows, shown, results.models))


def heat_map(rows: Sequence[Row], shown: Sequence[Column], models: Sequence[str]) -> go.Figure:
    """Model and condition against score: values, or differences from the full condition."""
    keys = {column.key for column in shown}
    scores = [r for r in rows if score_key(r) in keys]
    by_key = {(r["model"], r["condition"], *score_key(r)): r for r in scores}
    runs = list(dict.fromkeys((m, r["condition"]) for m in models for r in select(scores, model=m)))
    meters = meter_lines(rows)
    largest = {column.key: max(abs(r["value"]) for r in scores if score_key(r) == column.key) or 1 for column in shown}
    values: dict[str, list[list]] = {name: [] for name in ("raw", "delta", "raw_text", "delta_text", "hover")}
    for model, condition in runs:
        line = [by_key.get((model, condition, *column.key)) for column in shown]
        marks = ["†" if r and r["by_construction"] else "" for r in line]
        values["raw"].append([None if r is None else _shade(r, "value", largest) for r in line])
        values["delta"].append([None if r is None else _shade(r, "delta", largest) for r in line])
        values["raw_text"].append(["" if r is None else scaled(r) + mark for r, mark in zip(line, marks, strict=True)])
        values["delta_text"].append(
            ["" if r is None or r["delta"] is None else scaled(r, "delta", "+.1f") + mark for r, mark in zip(line, marks, strict=True)]
        )
        meter = meters.get((model, condition), "")
        values["hover"].append([hover(r) + (f"<br>{meter}" if r and meter else "") for r in line])
    # differences that hold by construction are the largest: a colour scale that spans them would hide all others
    shades = [_shade(r, "delta", largest) for r in scores if r["delta"] is not None and not r["by_construction"]]
    span = max(map(abs, shades), default=0) or 1
    return _switchable(values, [escaped(joined(label(m), c)) for m, c in runs], [column.heading for column in shown], span)


def _wrapped(heading: str) -> str:
    """A heading in lines that fit over a column of the heat map."""
    return "<br>".join(
        part for line in heading.split("<br>") for part in textwrap.wrap(line.replace("(k ", "(k\u00a0"), 10, break_long_words=False)
    )


def _shade(row: Row, field: str, largest: Mapping[ScoreKey, float]) -> float:
    """The colour of a number, in percent: of a score that is no share, percent of the largest in its column."""
    return float(100 * (row[field] or 0) / (1 if row["unit"] == "%" else largest[score_key(row)]))


def _switchable(values: dict[str, list[list]], names: list[str], headings: list[str], span: float) -> go.Figure:
    """Two heat maps of the same cells and the buttons that show one of them."""
    common = {"x": headings, "y": names, "customdata": values["hover"], "hovertemplate": "%{customdata}<extra></extra>"}
    common["texttemplate"] = "%{text}"
    raw = {"colorscale": "Viridis", "zmin": 0, "zmax": 100, "colorbar": {"title": "percent"}}
    delta = {"colorscale": "RdBu", "zmin": -span, "zmax": span, "colorbar": {"title": "points"}}
    figure = go.Figure(
        [
            go.Heatmap(z=values["raw"], text=values["raw_text"], **raw, **common),
            go.Heatmap(z=values["delta"], text=values["delta_text"], visible=False, **delta, **common),
        ]
    )
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [i == k for i in range(2)]}]}
        for k, name in enumerate(("raw", "difference from full"))
    ]
    position = {"x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "pad": {"b": 66}}
    figure.update_layout(
        updatemenus=[{"type": "buttons", "direction": "right", "buttons": buttons, **position}],
        xaxis={"side": "top", "tickangle": 0, "tickfont": {"size": 11}, "tickvals": headings, "ticktext": [*map(_wrapped, headings)]},
        yaxis={"autorange": "reversed"},
        height=190 + 26 * len(names),
        margin={"l": 250, "r": 20, "t": 160, "b": 20},
    )
    return figure


def full_table(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[str], list[tuple[str, list[Row | None]]]]:
    """Scores without ablation, by refitted read-outs: headings, and of every model and baseline its name and its row for each heading."""
    shown = refitted(filled(columns, rows))
    by_key = {(r["model"], *score_key(r)): r for r in select(rows, condition="full")}
    models = dict.fromkeys(r["model"] for r in rows)
    units = {score_key(r): r["unit"] for r in rows}
    headings = [column.heading + (f"<br>{units[column.key]}" if units[column.key] not in ("%", "") else "") for column in shown]
    return headings, [(m, [by_key.get((m, *column.key)) for column in shown]) for m in models]


def html_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Scores of models and baselines without ablation, as an HTML table: percent, or the unit in the heading, with 95 % intervals."""
    headings, lines = full_table(rows, columns)
    return table("full", headings, [(label(model), [interval_cell(score, ".1f") for score in scores]) for model, scores in lines])
