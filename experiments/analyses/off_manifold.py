"""How far from its usual activations an ablation takes a model: change of attention and of patches at every block."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from experiments.datasets.base import first_id
from experiments.demo import label
from experiments.plotting import dots
from experiments.plotting.columns import plain_heading
from experiments.plotting.deltas import NOT_RUN
from experiments.plotting.dots import Entry, Panel
from experiments.plotting.elements import interval_cell, table
from experiments.plotting.escape import escaped, joined
from experiments.plotting.hover import plain, sentence
from experiments.plotting.layer_lines import plot_condition_lines
from experiments.rows import Row, select
from experiments.study.cells import Needed
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import MetricResult, Unit, pack_scores, protocol_id
from experiments.tasks.off_manifold import METRICS, measure
from jaxvit.inference import mean_scores

TITLE = "How far off the manifold an ablation goes: divergence of attention, norms, cosines"
NOTE = (
    "Above, the Jensen-Shannon divergence of attention from the clean run at each block (exactly 0 at block 0, which attends before "
    "anything is replaced), averaged over heads and over the queries of all tokens, those that are overwritten among them. Below, patches "
    "leaving the last block, before the final norm. "
    "An ablation that takes activations off the manifold (low cosine, changed norm, many standard deviations from the calibrated mean) "
    "shows what the model does with inputs that it never saw, not what the token carries. The images of calibration lie about 1 s.d. from "
    "their mean."
)
TASK = "off_manifold"
VERSION = 1
UNITS = {"attention_divergence": Unit("bits"), "patch_mahalanobis": Unit("s.d.")}
"""Units of the metrics; the others are plain numbers."""
METRIC_HEADINGS = {
    "patch_cosine": "cosine of patches<br>with the clean run",
    "patch_norm_ratio": "norm of patches<br>against the clean run",
    "patch_mahalanobis": "patches from their<br>calibrated mean, s.d.",
    "attention_divergence": "divergence of attention<br>from the clean run",
}
"""The metrics in the order of the table, with their headings."""


def jobs(target: Target) -> Iterator[Job]:
    """The off-manifold metrics under every condition but full."""
    if target.baseline or target.model is None:
        return
    for condition in target.conditions:
        if condition != "full":
            ablations = [target.ablation_key(condition, seed) for seed in target.seeds_of(condition)]
            key = rows_key(target, TASK, version=VERSION, condition=condition, ablations=ablations, metrics=METRICS)
            images = 2 * len(target.data.analysis_images) * len(ablations)
            label = f"{target.name}, {condition}: off-manifold metrics"
            compute = functools.partial(_compute, target, condition)
            yield Job(key, target.name, label, 1, compute, images, condition, apart=True)


def _compute(target: Target, condition: str, needed: Needed) -> tuple[list[Row], Arrays]:
    by_seed = [
        measure(target.runner, target.data.analysis_images, target.ablation(condition, seed), target.statistics, first_id("test"))
        for seed in target.seeds_of(condition)
    ]
    results = []
    for metric in METRICS:
        shuffle = target.shuffle_protocol(condition, target.settings.seed)
        protocol = protocol_id(metric, definition=METRICS[metric], norm="none", **shuffle)
        for layer in range(len(by_seed[0][metric])):
            scores = [mean_scores(values[metric][layer]) for values in by_seed]
            results.append(MetricResult(metric, "patches", protocol, scores, UNITS.get(metric, Unit()), fields={"layer": layer}))
    run = target.run_fields(condition) | {"task": TASK, "analysis": TASK}
    return compared_rows(run, results, target.inference), pack_scores(results)


def section(results: StudyResults) -> str:
    """Lines of the divergence of attention over blocks, and all metrics at the last block: for each model a panel for each metric, and a
    table."""
    last: dict[tuple[str, str], dict[str, Row]] = {}
    for model in results.models:
        for row in select(results.rows, model=model, task=TASK):
            last.setdefault((model, row["condition"]), {})[row["metric"]] = row  # layers come in order
    if not last:
        return ""
    models = list(dict.fromkeys(model for model, _ in last))
    panels = {
        model: [_panel(metric, {c: by.get(metric) for (of, c), by in last.items() if of == model}) for metric in METRIC_HEADINGS]
        for model in models
    }
    ends = [
        dots.extent(of_metric, 0.05, of_metric[0].reference or 0.0) for of_metric in zip(*panels.values(), strict=True)
    ]  # one axis of a metric for all models
    page = plot_condition_lines(results.rows, models, TASK, "attention_divergence", "bits")
    for model in models:
        drawn = [panel._replace(ends=of_metric) for panel, of_metric in zip(panels[model], ends, strict=True)]
        page += f"<h3>{escaped(label(model))}</h3>{dots.figure(drawn, label(model), _CAPTION)}"
    return page + _table(last)


_CAPTION = "Means over test images with 95 % intervals; the dashed line is where nothing is ablated (about, for the distance)."
_CLEAN = {"patch_cosine": 1.0, "patch_norm_ratio": 1.0, "patch_mahalanobis": 1.0}
"""What metrics are where nothing is ablated, those that are not 0 there."""


def _panel(metric: str, by_condition: Mapping[str, Row | None]) -> Panel:
    """One metric of one model."""
    name = plain_heading(METRIC_HEADINGS[metric])
    entries = [
        Entry(condition, "", row["value"], row["ci_low"], row["ci_high"], plain(row, row["value"]), "value", sentence(row, name))
        if row
        else Entry(condition, NOT_RUN)
        for condition, row in by_condition.items()
    ]
    return Panel(name, entries, reference=_CLEAN.get(metric))


def _table(last: Mapping[tuple[str, str], Mapping[str, Row]]) -> str:
    """All metrics of all models at the last block."""
    lines = [(joined(label(m), c), [interval_cell(by.get(metric)) for metric in METRIC_HEADINGS]) for (m, c), by in last.items()]
    return f"<details><summary>The numbers of these charts</summary>{table('last block', list(METRIC_HEADINGS.values()), lines)}</details>"
