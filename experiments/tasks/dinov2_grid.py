"""Does an image's class stand in its features, by the linear evaluation of DINOv2? A grid of heads trained by SGD."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import REFITTED, Context, FeatureSource, FrozenReadouts, MetricResult, Readouts, Task, protocol_id
from experiments.tasks.tokens import PARTS, has_labels, labelled_parts
from jaxvit.inference import mean_scores
from jaxvit.probes import sgd


def dinov2_grid(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of DINOv2's grid of heads, the best of 13 rates x 4 feature sets chosen on images that are not reported. In the full
    condition only: it costs more than all other probes."""
    iterations, parts = context.readouts.grid_iterations, [features[part] for part in PARTS]
    readable = context.readouts.norm == "final" and parts[0].block_cls.shape[1] == 4
    if context.ablated or not iterations or not readable:
        return []
    train, val, test = (sgd.dinov2_sets(jnp.asarray(p.block_cls.swapaxes(0, 1)), jnp.asarray(p.patch_mean)) for p in parts)
    train_labels, val_labels, test_labels = (jnp.asarray(context.data.labels[part]) for part in PARTS)
    batch = min(sgd.DINOV2_GRID.batch, len(train_labels))
    settings = dataclasses.replace(sgd.DINOV2_GRID, iterations=iterations, batch=batch)
    classes = len(context.data.classes)
    probes = [sgd.probe(train, train_labels, val, val_labels, test, test_labels, classes, settings, seed) for seed in context.seeds]
    protocol = protocol_id("dinov2_grid", heads="13 rates x 4 sets", batch=batch, iterations=iterations, select="val", **context.where)
    rates = {str(np.round(float(p.readout.learning_rate), 6)) for p in probes}
    sets = {str(np.round(float(p.readout.feature_set), 6)) for p in probes}
    detail = f"rates {', '.join(sorted(rates))} and feature sets {', '.join(sorted(sets))} chosen"
    flag = "rate at the edge of its grid" if any(bool(p.edge) for p in probes) else ""
    scores = [mean_scores(p.correct) for p in probes]
    return [MetricResult("top1_dinov2_grid", "cls+patch_mean", protocol, scores, readout=REFITTED, flag=flag, detail=detail)]


def _settings(readouts: Readouts) -> dict[str, Any]:
    return {**dataclasses.asdict(sgd.DINOV2_GRID), "iterations": readouts.grid_iterations}


DINOV2_GRID = Task(dinov2_grid, labelled_parts, has_labels, settings=_settings)
