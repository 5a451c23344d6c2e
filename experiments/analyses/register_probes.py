"""What CLS and each register encode at every block: linear probes of single tokens."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.datasets.base import first_id
from experiments.plotting.layer_lines import plot_layer_lines
from experiments.rows import Row, select
from experiments.study.cells import Store
from experiments.study.compare import compared_rows
from experiments.study.jobs import Arrays, Job, cell_key
from experiments.study.results import StudyResults
from experiments.study.target import Target
from experiments.tasks.base import METADATA, mean_over_seeds
from experiments.tasks.classification import layer_probes
from experiments.tasks.solvers import PARTS
from jaxvit import Ablation
from jaxvit.inference import value

TITLE = "Linear probes of CLS and registers, layer by layer"
NOTE = (
    "Top-1 of linear probes of the output of each block (before the final norm). Whiskers are 95 % intervals over test images; they do "
    "not cover seeds."
)
TASK = "layer_probe"


def jobs(target: Target) -> Iterator[Job]:
    """Probes at every block of a model without ablation."""
    if not target.baseline and target.model is not None:
        images = sum(len(target.data.parts[part].images) for part in PARTS)
        key = cell_key(target, TASK, resamples=target.settings.resamples)
        yield Job(key, f"{target.name}: probes at every layer", 8, lambda store: _compute(target, store), images)


def _compute(target: Target, store: Store) -> tuple[list[Row], Arrays]:
    captured = []
    for part in PARTS:
        images = target.data.parts[part].images
        features = target.runner.extract(images, Ablation(), first_id(part), ("cls", "patch_mean", "registers"), patch_images=0)
        captured.append(features.captured)
    probes = list(layer_probes(captured, target.context))
    metadata = [
        {name: getattr(probe, name) for name in METADATA} | {"layer": layer, "by_seed": [value(s) for s in probe.scores]}
        for layer, probe in probes
    ]
    return compared_rows(target, "full", TASK, metadata, [mean_over_seeds(probe.scores) for _, probe in probes]), {}


def section(results: StudyResults) -> str:
    """Lines over blocks: CLS and each register."""
    features = dict.fromkeys(r["feature"] for r in select(results.rows, task=TASK, metric="top1"))
    tokens = [feature for feature in features if not feature.endswith("_mean")]
    return plot_layer_lines(results.rows, results.models, TASK, "top1", tokens, "top-1, percent")
