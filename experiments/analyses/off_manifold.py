"""How far from its usual activations an ablation takes a model: change of attention and of patches at every block."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from experiments.datasets.base import first_id
from experiments.demo import label
from experiments.plotting.elements import interval_cell, table
from experiments.plotting.escape import joined
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

TITLE = "How far off the manifold an ablation goes"
NOTE = (
    "Above, the Jensen-Shannon divergence of attention from the clean run at each block (exactly 0 at block 0, which attends before "
    "anything is replaced), averaged over heads and over the queries of all tokens, those that are overwritten among them. Below, patches "
    "leaving the last block, before the final norm: means over test images with 95 % intervals. "
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
    "patch_mahalanobis": "distance of patches from<br>their calibrated mean, s.d.",
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
            yield Job(key, target.name, label, 1, functools.partial(_compute, target, condition), images, condition)


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
    """Lines of the divergence of attention over blocks, and a table of all metrics at the last block."""
    models = [model for model in results.models if results.conditions(model, TASK)]
    if not models:
        return ""
    return plot_condition_lines(results.rows, models, TASK, "attention_divergence", "bits") + _last_block_table(results, models)


def _last_block_table(results: StudyResults, models: Sequence[str]) -> str:
    lines = []
    for model in models:
        for condition in results.conditions(model, TASK):
            last = {r["metric"]: r for r in select(results.rows, model=model, condition=condition, task=TASK)}  # layers come in order
            lines.append((joined(label(model), condition), [interval_cell(last[metric]) for metric in METRIC_HEADINGS]))
    return f"<details open><summary>all conditions</summary>{table('last block', list(METRIC_HEADINGS.values()), lines)}</details>"
