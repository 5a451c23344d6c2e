"""At which block information appears: probes of CLS and means of tokens, and correspondence of patches, at every block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import SubElement

import numpy as np

from experiments.analyses import attention_flow, register_probes
from experiments.datasets.base import first_id
from experiments.demo import label
from experiments.features.conditions import FULL
from experiments.features.extraction import patch_grid
from experiments.plotting import svg
from experiments.plotting.controls import not_shown, view, views, words
from experiments.plotting.escape import escaped
from experiments.plotting.hover import scaled, shown, token_label
from experiments.plotting.layer_lines import Line, ends_of, layer_chart, legend, lines_of, plot_layer_lines, side_by_side
from experiments.rows import Row, select
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import MetricResult, pack_scores, protocol_id
from experiments.tasks.correspondence import PAIRS, VIEWS
from jaxvit import Ablation, metrics
from jaxvit.inference import ratio_scores

TITLE = "Probes and correspondence, layer by layer"
NOTE = (
    "Of the output of each block, before the final norm: where images have classes, top-1 of linear probes of CLS, of each register, of "
    "patch mean and register mean, with 95 % intervals over test images; and where there are pairs of views, the share of patches whose "
    "nearest patch in the other view is the true one, with 95 % intervals over pairs. Beside the probes stands where CLS attends at the "
    "same block: where CLS attends to registers at blocks at which their probes are still at chance, routing comes before content. That "
    "a probe finds nothing is not that nothing is there."
)
TASK = "layer_correspondence"
VERSION = 1
_BAR = 22  # pixels from one bar to the next
PAIRS_AT_ONCE = 128
"""Pairs of views whose patches of all blocks are held in memory."""


def jobs(target: Target) -> Iterator[Job]:
    """Probes and attention flow (the cells of `register_probes` and `attention_flow`) and correspondence at every block of a model
    without ablation."""
    yield from register_probes.jobs(target)
    yield from attention_flow.jobs(target)
    if target.data.views is not None and not target.baseline and target.model is not None:
        key = rows_key(target, TASK, version=VERSION, tolerance=target.settings.readouts.tolerance)
        images = 2 * len(target.data.views.warp)
        yield Job(key, target.name, f"{target.name}: correspondence at every layer", 2, lambda store: _compute(target), images)


def _compute(target: Target) -> tuple[list[Row], Arrays]:
    assert target.data.views is not None
    tolerance = target.settings.readouts.tolerance
    hits, cycles, points = _count_matches(target, tolerance)
    views = target.data.protocols["views"]
    protocol = protocol_id("views", views=views, match="cosine", tolerance=f"{tolerance:g} patch", norm="none")
    results = [
        MetricResult(
            metric, "patches", protocol, [ratio_scores(counts[layer], points[layer])], n_unit=PAIRS, part=VIEWS[0], fields={"layer": layer}
        )
        for metric, counts in (("accuracy", hits), ("cycle_consistency", cycles))
        for layer in range(len(points))
    ]
    run = target.run_fields(FULL) | {"task": TASK, "analysis": "layerwise_probes"}
    return compared_rows(run, results, target.inference), pack_scores(results)


def _count_matches(target: Target, tolerance: float) -> np.ndarray:
    """Hits, closed cycles and patches that have a true match, [3, layers, pairs].

    `PAIRS_AT_ONCE` at a time: the patches of all blocks of all pairs would fill the memory.
    """
    assert target.model is not None
    assert target.data.views is not None
    views, parts = target.data.views, target.data.parts
    step, prefix, counts = PAIRS_AT_ONCE, 1 + target.model.config.registers, []
    for start in range(0, len(views.warp), step):
        pairs = slice(start, start + step)
        first, second = (
            target.runner.extract(
                parts[part].images[pairs], Ablation(), first_id(part) + start, ("block_output",), patch_images=0
            ).captured["block_output"][:, :, prefix:]
            for part in ("first", "second")
        )
        rows, columns, side = patch_grid(first[0], parts["first"].images)
        by_layer = [
            metrics.correspondence(a, b, views.warp[pairs], (rows, columns), side, tolerance) for a, b in zip(first, second, strict=True)
        ]
        counts.append(np.array([[np.asarray(counted) for counted in (m.hits, m.cycles, m.points)] for m in by_layer]))
    return np.concatenate(counts, axis=2).swapaxes(0, 1)


def section(results: StudyResults) -> str:
    """Where CLS attends and what is read from CLS and registers, at one chosen block; lines of means of tokens and of correspondence."""
    rows = results.rows
    means = plot_layer_lines(rows, results.models, register_probes.TASK, "top1", ("cls", "patch_mean", "register_mean"), "Top-1, percent")
    matches = plot_layer_lines(rows, results.models, TASK, "accuracy", ("patches",), "Correspondence, percent")
    parts = [("Routing and content", _routing(results)), ("Means of tokens", means), ("Correspondence of patches", matches)]
    return "".join(f"<h3>{heading}</h3>{part}" for heading, part in parts if part)


def _routing(results: StudyResults) -> str:
    """Attention of CLS and probes of single tokens side by side, with one choice of a block; empty where there is neither."""
    probes = [r for r in select(results.rows, task=register_probes.TASK, metric="top1") if not r["feature"].endswith("_mean")]
    flow = [r for r in select(results.rows, task=attention_flow.TASK, source="cls") if r["target"] != attention_flow.ALL_REGISTERS]
    run = {row["model"] for row in (*probes, *flow)}
    models = {f"m{i}": model for i, model in enumerate(results.models) if model in run}
    if not models:
        return ""
    axes = attention_flow.flow_axes(models, [*probes, *flow])
    found = {*(r["feature"] for r in probes), *(r["target"] for r in flow)}
    tokens = {token: token_label(token) for token in sorted(found, key=_place)}
    ends = ends_of([Line("", 0, probes)])
    page = ""
    for word, model in models.items():
        read, attended = (lines_of(select(rows, model=model), field, tokens) for rows, field in ((probes, "feature"), (flow, "target")))
        layers = sorted({row["layer"] for line in (*read, *attended) for row in line.rows})
        blocks = {layer: words(axes, word, str(layer)) for layer in layers}
        charts = layer_chart("top-1 of a probe, percent", read, ends, blocks) if read else "<p>Probes: not run.</p>"
        if attended:
            charts += layer_chart("attention of CLS, percent", attended, ends_of(attended), blocks)
            high = ends_of(attended)[1]
            bars = "".join(_bars(view(axes, word, str(layer)), layer, _of_layer(attended, layer), high) for layer in layers)
            charts += f'<div>{bars}<p data-view="none">This model has no such block.</p></div>'
        else:
            charts += "<p>Attention flow: not run.</p>"
        key = legend([*read, *attended])
        caption = f"{escaped(label(model))}: what is read from a token, and where CLS attends, by block; bands are 95 % intervals."
        drawn = side_by_side(charts, f"routing and content of {label(model)}")
        page += f"<figure {view(axes, word, None)}><figcaption>{caption}</figcaption>{key}{drawn}</figure>"
    missing = not_shown([model for model in results.models if model not in run])
    return f"{views('routing', axes, page)}{missing}"


def _place(token: str) -> tuple[int, int]:
    """CLS, registers by their numbers, patches."""
    return (1, int(token[1:])) if re.fullmatch(r"r\d+", token) else (0 if token == "cls" else 2, 0)


def _of_layer(lines: Sequence[Line], layer: int) -> list[tuple[Line, Row]]:
    """The lines that have a number of a block, with it."""
    return [(line, row) for line in lines for row in line.rows if row["layer"] == layer]


def _bars(chosen: str, layer: int, lines: Sequence[tuple[Line, Row]], high: float) -> str:
    """The attention that CLS gives each token group at one block, as a drawing of bars with intervals."""
    names = 6 + max(svg.width_of(line.name) for line, _ in lines)
    bottom = 26 + _BAR * len(lines)
    described = "; ".join(f"{line.name} {shown(row)}" for line, row in lines)
    root = svg.drawing(svg.WIDTH, bottom + 20, f"attention of CLS at block {layer}", described, "chart bars")
    scale = svg.Scale(0, high, names + 6, svg.WIDTH - 44)
    svg.text(root, 0, 14, f"attention of CLS at block {layer}", kind="head")
    svg.axis_across(root, scale, 24, bottom)
    for i, (line, row) in enumerate(lines):
        y, (value, low, end) = (
            26 + _BAR * i,
            (max(scale.start, scale(row["scale"] * row[field])) for field in ("value", "ci_low", "ci_high")),
        )
        svg.text(root, names, y + 15, line.name, "end")
        bar = svg.group(root, f"mark {svg.series(line.style)}", f"{line.name}: {shown(row)}")
        size = {"x": scale.start, "y": y + 4, "width": value - scale.start, "height": _BAR - 8}
        SubElement(bar, "rect", {name: svg.pixels(length) for name, length in size.items()})
        svg.line(bar, low, y + _BAR / 2, end, y + _BAR / 2, "whisker")
        svg.text(root, svg.WIDTH, y + 15, scaled(row), "end")
    return f"<div {chosen}>{svg.written(root)}</div>"
