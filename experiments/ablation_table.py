"""What an ablation costs: every condition against every task, with the difference from the full condition."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from experiments import table
from experiments.demo import label
from experiments.figures import Finished, Row, columns, hover, meter_lines, percent, plot, select
from experiments.study import Job, Subject

TITLE = "What an ablation costs"
NOTE = (
    "Tokens are overwritten at the output of every block (fix_reg_mean: at the input). Point at a cell for the exact value, its interval, "
    "its protocol, and the paired difference from the full condition with its permutation p-value. Read-outs are refitted for each "
    "condition; <i>frozen</i> ones are those of the full condition, applied as they are: they say what changed, not what is still there. "
    "† by construction: with CLS overwritten by a constant, a read-out of CLS can only name the majority class, so only the dense tasks "
    "say anything about zero_cls and mean_cls. A zeroed token is not gone: LayerNorm maps it to its bias, so it still acts as a constant "
    "key. Random conditions and read-outs are means over seeds."
)


def jobs(subject: Subject) -> Iterator[Job]:
    """Every task under every condition."""
    return table.jobs(subject)


def section(study: Finished) -> str:
    """The table of the full condition beside the baselines, and the heat map."""
    if not study.conditions(study.models[0], "linear_probe"):
        return ""
    return html_table(study.rows) + plot(heat_map(study.rows, study.models))


def heat_map(rows: Sequence[Row], models: Sequence[str]) -> go.Figure:
    """Model x condition against task, raw values or differences from the full condition."""
    shown = columns(rows)
    index = {(r["model"], r["condition"], r["task"], r["metric"], r["feature"]): r for r in rows}
    lines = list(dict.fromkeys((r["model"], r["condition"]) for r in rows if r["model"] in models and r["task"] == "linear_probe"))
    meters = meter_lines(rows)
    values: dict[str, list[list]] = {name: [] for name in ("raw", "delta", "raw_text", "delta_text", "hover")}
    for model, condition in lines:
        found = [index.get((model, condition, *column[:3])) for column in shown]
        marks = ["†" if r and r.get("note") else "" for r in found]
        values["raw"].append([None if r is None else 100 * r["value"] for r in found])
        values["delta"].append([None if r is None else 100 * (r["delta"] or 0) for r in found])
        values["raw_text"].append(["" if r is None else percent(r["value"]) + mark for r, mark in zip(found, marks, strict=True)])
        values["delta_text"].append(
            ["" if r is None or r["delta"] is None else f"{100 * r['delta']:+.1f}{mark}" for r, mark in zip(found, marks, strict=True)]
        )
        meter = meters.get((model, condition), "")
        values["hover"].append([hover(r) + (f"<br>{meter}" if r and meter else "") for r in found])
    # what is so by construction would drown the rest
    told = [r for r in rows if (r["task"], r["metric"], r["feature"]) in {c[:3] for c in shown} and r["delta"] is not None]
    span = 100 * max((abs(r["delta"]) for r in told if not r.get("note")), default=0) or 1
    return _switchable(values, [f"{label(m)} · {c}" for m, c in lines], [heading for *_, heading in shown], span)


def _switchable(values: dict[str, list[list]], names: list[str], headings: list[str], span: float) -> go.Figure:
    """Two heat maps of the same cells and the buttons that show one of them."""
    common = {"x": headings, "y": names, "customdata": values["hover"], "hovertemplate": "%{customdata}<extra></extra>"}
    common["texttemplate"] = "%{text}"
    scale = {"colorscale": "RdBu", "zmin": -span, "zmax": span, "colorbar": {"title": "points"}}
    raw = {"colorscale": "Viridis", "zmin": 0, "zmax": 100, "colorbar": {"title": "percent"}}
    figure = go.Figure(
        [
            go.Heatmap(z=values["raw"], text=values["raw_text"], **raw, **common),
            go.Heatmap(z=values["delta"], text=values["delta_text"], visible=False, **scale, **common),
        ]
    )
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [i == k for i in range(2)]}]}
        for k, name in enumerate(("raw", "difference from full"))
    ]
    place = {"x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "pad": {"b": 48}}
    figure.update_layout(
        updatemenus=[{"type": "buttons", "direction": "right", "buttons": buttons, **place}],
        xaxis={"side": "top", "tickangle": 0, "tickfont": {"size": 9}},
        yaxis={"autorange": "reversed"},
        height=170 + 26 * len(names),
        margin={"l": 250, "r": 20, "t": 140, "b": 20},
    )
    return figure


def table_lines(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, list[Row | None]]]]:
    """Headings, and the full condition of every model and baseline under the refitted metrics."""
    shown = [c for c in columns(rows) if not c[1].endswith("_frozen")]
    index = {(r["model"], r["task"], r["metric"], r["feature"]): r for r in select(rows, condition="full")}
    names = dict.fromkeys(r["model"] for r in rows)
    return [c[3] for c in shown], [(m, [index.get((m, *c[:3])) for c in shown]) for m in names]


def html_table(rows: Sequence[Row]) -> str:
    """The full condition of models and baselines: percent with 95 % intervals."""
    headings, lines = table_lines(rows)
    body = ""
    for name, cells in lines:
        shown = [
            "<td></td>" if r is None else f"<td>{percent(r['value'])}<small>{percent(r['ci_low'])} – {percent(r['ci_high'])}</small></td>"
            for r in cells
        ]
        body += f"<tr><td>{html.escape(label(name))}</td>{''.join(shown)}</tr>"
    return f"<table><tr><th>full, percent</th>{''.join(f'<th>{h}</th>' for h in headings)}</tr>{body}</table>"


if __name__ == "__main__":
    from experiments.reproduce import alone

    alone("ablation_table", __doc__)
