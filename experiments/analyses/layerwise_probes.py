"""At which block information appears: probes of CLS and means of tokens, and correspondence of patches, at every block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from experiments.analyses import register_probes
from experiments.datasets.base import first_id
from experiments.features.conditions import FULL
from experiments.features.extraction import patch_grid
from experiments.plotting.layer_lines import plot_layer_lines
from experiments.rows import Row
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
    "Of the output of each block, before the final norm: where images have classes, top-1 of linear probes of CLS, patch mean and register "
    "mean, with 95 % intervals over test images; and where there are pairs of views, the share of patches whose nearest patch in the other "
    "view is the true one, with 95 % intervals over pairs."
)
TASK = "layer_correspondence"
VERSION = 1
PAIRS_AT_ONCE = 128
"""Pairs of views whose patches of all blocks are held in memory."""


def jobs(target: Target) -> Iterator[Job]:
    """Probes (the cell of `register_probes`) and correspondence at every block of a model without ablation."""
    yield from register_probes.jobs(target)
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
    """Lines over blocks: probes above, correspondence below."""
    features = ("cls", "patch_mean", "register_mean")
    probes = plot_layer_lines(results.rows, results.models, register_probes.TASK, "top1", features, "top-1, percent")
    return probes + plot_layer_lines(results.rows, results.models, TASK, "accuracy", ("patches",), "correspondence, percent")
