"""Does a token know the class of its image after a few examples of every class? Regression as in big_vision."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import (
    REFITTED,
    Context,
    Feature,
    FeatureSource,
    FrozenReadouts,
    MetricResult,
    Readouts,
    Task,
    constant_fields,
    protocol_id,
)
from experiments.tasks.tokens import fitting, has_labels, labelled_parts, token_features
from jaxvit.inference import mean_scores
from jaxvit.probes import few_shot as few_shot_probes


def few_shot(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of big_vision's regression on a few images of every class, for CLS and patch mean; its one penalty is fixed."""
    labels, classes = context.data.labels, len(context.data.classes)
    smallest_class = int(np.bincount(labels["train"], minlength=classes).min())
    shots, flag = fitting("shots", context.readouts.shots, smallest_class, "the smallest class of train")
    names: tuple[Feature, ...] = ("cls", "patch_mean")
    train, test = (token_features(features[part], names) for part in ("train", "test"))
    train_labels, test_labels = jnp.asarray(labels["train"]), jnp.asarray(labels["test"])
    results = []
    for name in names:
        probes = few_shot_probes.few_shot(
            jnp.asarray(train[name]), train_labels, jnp.asarray(test[name]), test_labels, classes, shots=shots, seeds=context.draws
        )
        constant = constant_fields(train[name])
        for count, correct in zip(shots, np.asarray(probes.correct), strict=True):
            protocol = protocol_id("big_vision_few_shot", shots=count, penalty=few_shot_probes.BIG_VISION_PENALTY, **context.where)
            scores = [mean_scores(seed) for seed in correct]
            result = MetricResult(f"top1_{count}_shot", name, protocol, scores, readout=REFITTED, **constant, flag=flag)
            results.append(result._replace(draws=context.draws))
    return results


def _settings(readouts: Readouts) -> dict[str, Any]:
    return {"shots": list(readouts.shots), "penalty": few_shot_probes.BIG_VISION_PENALTY}


FEW_SHOT = Task(few_shot, labelled_parts, has_labels, version=3, settings=_settings, drawn=True)
