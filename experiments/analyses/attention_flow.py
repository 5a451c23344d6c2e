"""Where attention flows: from CLS, registers and patches to each of them, at every block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.demo import label
from experiments.features.conditions import FULL
from experiments.plotting.controls import Axis, not_shown, view, views, words
from experiments.plotting.escape import escaped
from experiments.plotting.hover import scaled, shown, token_label
from experiments.plotting.layer_lines import ends_of, layer_chart, legend, lines_of, side_by_side
from experiments.plotting.shares import share_cell, share_table
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
    "and over images, summed over the keys of the target. Every row sums to 100. Registers together are the mean of them as sources and "
    "their sum as targets. Where numbers are published for this model they stand beside, and protocols differ."
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
        yield Job(key, target.name, f"{target.name}: attention flow", 2, lambda store: _compute(target), images, apart=True)


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
    """For each model the flow of one block as tables, of groups and of single registers, and of all blocks as lines."""
    rows = select(results.rows, task=TASK)
    shown = {f"m{i}": select(rows, model=model) for i, model in enumerate(results.models) if any(r["model"] == model for r in rows)}
    if not shown:
        return ""
    axes = flow_axes({word: of_model[0]["model"] for word, of_model in shown.items()}, rows)
    page = ""
    for word, of_model in shown.items():
        name = axes[0].options[word]
        layers = sorted({r["layer"] for r in of_model})
        blocks = {layer: words(axes, word, str(layer)) for layer in layers}
        tables = "".join(_tables(view(axes, word, str(layer)), name, layer, select(of_model, layer=layer)) for layer in layers)
        none = '<p data-view="none">This model has no such block.</p>'
        page += f"<div {view(axes, word, None)}>{tables}{none}{_lines(name, of_model, blocks)}</div>"
    missing = not_shown([model for model in results.models if model not in {r["model"] for r in rows}])
    return f"{views('attention-flow', axes, page)}{missing}"


def flow_axes(models: Mapping[str, str], rows: Sequence[Row]) -> tuple[Axis, Axis]:
    """The choice of a model, at first one with registers, and of a block, at first the last. They move together with those of other
    sections.

    Args:
        models: by the words that stand for them, which are "m" and their place in the study.
        rows: of these models and all their blocks.
    """
    with_registers = {r["model"] for r in rows if "r1" in (r["source"], r["target"], r["feature"])}
    first = next((word for word, model in models.items() if model in with_registers), "")
    layers = sorted({r["layer"] for r in rows})
    blocks = {str(layer): str(layer) for layer in layers}
    names = {word: label(model) for word, model in models.items()}
    return Axis("model", names, first, group="model"), Axis("block", blocks, str(layers[-1]), slider=True, group="block")


def _groups(rows: Sequence[Row]) -> list[str]:
    """CLS, registers, patches: those that a model has."""
    names = {r["source"] for r in rows}
    return [name for name in ("cls", ALL_REGISTERS, "patches") if name in names]


def _tables(chosen: str, name: str, layer: int, rows: Sequence[Row]) -> str:
    """The flow of a block among groups, with intervals; and among single registers, where there are any."""
    groups = _groups(rows)
    by_pair = {(r["source"], r["target"]): r for r in rows}
    tables = _table(f"{name}, block {layer}: from (row) to (column), percent", groups, by_pair, with_interval=True)
    if ALL_REGISTERS in groups:
        single = [token for token in dict.fromkeys(r["source"] for r in rows) if token != ALL_REGISTERS]
        tables += _table(f"{name}, block {layer}, each register", single, by_pair, with_interval=False)
    published = [_published(row, other) for row in rows for other in row["published"] or ()]
    listed = f"<ul>{''.join(f'<li>{line}</li>' for line in published)}</ul>" if published else ""
    return f'<div {chosen}><div class="tables">{tables}</div>{listed}</div>'


def _table(caption: str, tokens: Sequence[str], by_pair: Mapping[tuple[str, str], Row], with_interval: bool) -> str:
    """The flow from every token (group) to every one."""
    lines = [(token_label(a), [_cell(by_pair.get((a, b)), with_interval) for b in tokens]) for a in tokens]
    return share_table(caption, "from", list(map(token_label, tokens)), lines)


def _cell(row: Row | None, with_interval: bool) -> str:
    if row is None:
        return "<td></td>"
    interval = f"{scaled(row, 'ci_low')} – {scaled(row, 'ci_high')}"
    published = "".join(f"<small>published {100 * other['value']:.1f}</small>" for other in row["published"] or ())
    small = f"<small>{interval}</small>" if with_interval else ""
    return share_cell(row["value"], scaled(row) + small + published, "" if with_interval else interval)


def _published(row: Row, other: Mapping[str, Any]) -> str:
    """A published number beside the measured one, and where it stands."""
    what = f"{token_label(row['source'])} to {token_label(row['target'])}"
    where = "inside" if other["in_interval"] else "outside"
    numbers = f"published {100 * other['value']:.2f}, here {shown(row)}: {where} this interval"
    return escaped(f"{what}: {numbers} ({other['source']})")


def _lines(name: str, rows: Sequence[Row], blocks: Mapping[int, str]) -> str:
    """The flow of every block as lines: a drawing for each group that attends, a line for each that is attended to."""
    groups = _groups(rows)
    names = {group: f"to {token_label(group)}" for group in ("cls", ALL_REGISTERS, "patches")}
    by_source = {
        source: lines_of([r for r in rows if r["source"] == source and r["target"] in groups], "target", names) for source in groups
    }
    every = [line for lines in by_source.values() for line in lines]
    charts = "".join(
        layer_chart(f"from {token_label(source)}", lines, ends_of(every), blocks) for source, lines in by_source.items() if lines
    )
    caption = f"{escaped(name)}: share of attention in percent, by block, with 95 % intervals over images."
    return f"<figure><figcaption>{caption}</figcaption>{legend(every)}{side_by_side(charts, f'attention flow of {name}')}</figure>"
