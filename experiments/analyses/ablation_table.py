"""The table of ablations: every condition against every task, as values and as differences from the full condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.demo import label
from experiments.features.conditions import FULL
from experiments.plotting.columns import Column, filled, plain_heading, refitted, score_key
from experiments.plotting.controls import views
from experiments.plotting.elements import empty_cell, interval_cell, table
from experiments.plotting.escape import escaped, isolated, joined
from experiments.plotting.heat import SHOWN, Protocols, Shades, heat_cell
from experiments.plotting.hover import meter_lines, plain, read_of, signed
from experiments.rows import Row, select
from experiments.study import grid
from experiments.study.jobs import Job
from experiments.study.results import StudyResults
from experiments.study.target import Target

TITLE = "What an ablation costs"
NOTE = (
    "Tokens are overwritten at the output of every block. Point at a cell, or reach it by Tab and the arrow keys, for its value, the "
    "paired difference from the full condition with its interval and p-value, and its protocol. Read-outs are fitted anew for each "
    "condition; <i>frozen</i> ones are fitted in the full condition and applied unchanged: they show that features "
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
    """The table of models and baselines without ablation, then for each model that of all conditions."""
    shown = filled(results.columns, results.rows)
    if not shown:
        return ""
    shades = Shades([r for r in results.rows if score_key(r) in {column.key for column in shown}])
    protocols = Protocols()
    tables = "".join(condition_table(results.rows, shown, model, shades, protocols) for model in results.models)
    heats = views("ablation-table", [SHOWN], _KEY + tables)
    body = f'<h3>Without ablation</h3>{html_table(results.rows, shown)}<div class="heats">{heats}</div>'
    return body + protocols.listed() + published_table(results.rows, results.models)


_KEY = (
    '<p class="note">Shaded by the size of the change (by its root, so that small ones show): '
    '<span class="key costs">costs</span> <span class="key gains">gains</span>; '
    '<span class="key built">† by construction</span>; '
    "<b>Bold</b>: p below 0.05 after Holm. Numbers are percent and points, or in the unit of the heading.</p>"
)


def condition_table(rows: Sequence[Row], shown: Sequence[Column], model: str, shades: Shades, protocols: Protocols) -> str:
    """Conditions of one model against scores, with a sentence on scores that the model has none of; empty where it has none at all."""
    scores = {(r["condition"], *score_key(r)): r for r in select(rows, model=model)}
    columns = [column for column in shown if any(key[1:] == column.key for key in scores)]
    conditions = [name for name in dict.fromkeys(key[0] for key in scores) if any((name, *c.key) in scores for c in columns)]
    if not columns:
        return ""
    lines = [(name, [_cell(scores.get((name, *column.key)), name, column, shades, protocols) for column in columns]) for name in conditions]
    meters = {condition: text for (of, condition), text in meter_lines(rows).items() if of == model}
    heads = [heading.replace("(k ", "(k&nbsp;") for heading in headings(rows, columns)]
    table_of = table("condition", heads, lines, f"{isolated(label(model))}: conditions against scores", meters)
    absent = [plain_heading(column.heading) for column in shown if column not in columns]
    missing = f'<p class="note">Not run for this model: {escaped(", ".join(absent))}.</p>' if absent else ""
    return f"<h3>{escaped(label(model))}</h3>{table_of}{missing}"


def _cell(row: Row | None, condition: str, column: Column, shades: Shades, protocols: Protocols) -> str:
    """A number of the table. Where nothing is ablated, what was fitted once is what would be fitted anew."""
    if row is None and condition == FULL and column.readout == "frozen":
        return empty_cell("as refitted")
    return heat_cell(row, plain_heading(column.heading), shades, protocols)


def headings(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Headings of columns as HTML, each with its unit where that is not percent."""
    units = {score_key(r): r["unit"] for r in rows}
    return [column.heading + (f"<br>{units[column.key]}" if units[column.key] not in ("%", "") else "") for column in columns]


def published_table(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Published numbers beside measured ones, model by model: the difference, and whether the measured interval holds it; empty where there
    are none."""
    page, held, total = "", 0, 0
    for model in models:
        pairs = [(row, other) for row in select(rows, model=model) for other in row["published"] or ()]
        inside = sum(other["in_interval"] for _, other in pairs)
        held, total = held + inside, total + len(pairs)
        if pairs:
            heads = ["measured", "published", "difference", "in the interval", "source"]
            shown = table("number", heads, [_published_line(row, other) for row, other in pairs], f"{label(model)}: published and measured")
            page += f"<details><summary>{escaped(label(model))}: {inside} of {len(pairs)}</summary>{shown}</details>"
    said = f'<p class="note">Our 95 % interval holds {held} of {total} published numbers. It does not cover that protocols differ.</p>'
    return page and f'<h3>Published beside measured</h3>{said}<div class="published">{page}</div>'


def _published_line(row: Row, other: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A published number as a line of a table."""
    measured = f"<td>{plain(row, row['value'])}<small>{plain(row, row['ci_low'])} – {plain(row, row['ci_high'])}</small></td>"
    numbers = f"<td>{plain(row, other['value'])}</td><td>{signed(row, other['difference'])}</td>"
    source = f'<td>{"yes" if other["in_interval"] else "no"}</td><td class="text">{escaped(other["source"])}</td>'
    name = f"{row['task'].replace('_', ' ')}, {row['metric']}{read_of(row)}{', frozen' if row['readout'] == 'frozen' else ''}"
    return joined(row["condition"], name), [measured + numbers + source]


def full_table(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[str], list[tuple[str, list[Row | None]]]]:
    """Scores without ablation, by refitted read-outs: headings, and of every model and baseline its name and its row for each heading."""
    shown = refitted(filled(columns, rows))
    by_key = {(r["model"], *score_key(r)): r for r in select(rows, condition="full")}
    models = dict.fromkeys(r["model"] for r in rows)
    return headings(rows, shown), [(m, [by_key.get((m, *column.key)) for column in shown]) for m in models]


def html_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Scores of models and baselines without ablation, as an HTML table: percent, or the unit in the heading, with 95 % intervals."""
    heads, lines = full_table(rows, columns)
    return table("full", heads, [(label(model), [interval_cell(score, ".1f") for score in scores]) for model, scores in lines])
