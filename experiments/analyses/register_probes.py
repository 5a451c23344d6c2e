"""What CLS and each register encode at every block: linear probes of single tokens."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.datasets.base import first_id
from experiments.features.conditions import FULL
from experiments.plotting.layer_lines import plot_layer_lines
from experiments.rows import Row, select
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, rows_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import pack_scores
from experiments.tasks.linear_probe import LINEAR_PROBE, layer_probes, settings
from experiments.tasks.tokens import PARTS, has_labels
from jaxvit import Ablation

TITLE = "Linear probes of CLS and registers, layer by layer"
NOTE = (
    "Top-1 of linear probes of the output of each block (before the final norm). Bands are 95 % intervals over test images; they do "
    "not cover seeds."
)
TASK = "layer_probe"
VERSION = 3


def jobs(target: Target) -> Iterator[Job]:
    """Probes at every block of a model without ablation."""
    if not target.baseline and target.model is not None and has_labels(target.data):
        images = sum(len(target.data.parts[part].images) for part in PARTS)
        probes = {"version": VERSION, "probe": LINEAR_PROBE.version, "settings": settings(target.settings.readouts)}
        key = rows_key(target, TASK, **probes)
        yield Job(key, target.name, f"{target.name}: probes at every layer", 8, lambda store: _compute(target), images)


def _compute(target: Target) -> tuple[list[Row], Arrays]:
    captured = []
    for part in PARTS:
        images = target.data.parts[part].images
        features = target.runner.extract(images, Ablation(), first_id(part), ("cls", "patch_mean", "registers"), patch_images=0)
        captured.append(features.captured)
    results = [probe._replace(fields={"layer": layer}) for layer, probe in layer_probes(captured, target.context)]
    run = target.run_fields(FULL) | {"task": TASK, "analysis": "register_probes"}
    return compared_rows(run, results, target.inference), pack_scores(results)


def section(results: StudyResults) -> str:
    """Lines over blocks: CLS and each register."""
    features = dict.fromkeys(r["feature"] for r in select(results.rows, task=TASK, metric="top1"))
    tokens = [feature for feature in features if not feature.endswith("_mean")]
    return plot_layer_lines(results.rows, results.models, TASK, "top1", tokens, "top-1, percent")
