"""Does a token lie near those of images of its class? DINO's weighted k-NN."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.plotting.columns import Column
from experiments.tasks.base import (
    REFITTED,
    Context,
    FeatureSource,
    FrozenReadouts,
    MetricResult,
    Readouts,
    Task,
    constant_fields,
    protocol_id,
)
from experiments.tasks.tokens import PARTS, has_labels, labelled_parts, token_features
from jaxvit.inference import mean_scores
from jaxvit.probes import knn

TEMPERATURE = 0.07
"""Of the votes, as in DINO."""


def nearest_neighbours(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of DINO's weighted k-NN; its bank is train and val together."""
    bank_labels = np.concatenate([context.data.labels[part] for part in ("train", "val")])
    test_labels = context.data.labels["test"]
    ks = tuple(k for k in context.readouts.neighbours if k <= len(bank_labels))
    train, val, test = (token_features(features[part], ("cls", "patch_mean", "register_mean")) for part in PARTS)
    results = []
    for name in train if ks else ():
        bank = np.concatenate([train[name], val[name]])
        predicted = knn.classify(bank, bank_labels, test[name], len(context.data.classes), ks, TEMPERATURE, mesh=context.mesh)
        constant = constant_fields(bank)
        for k, correct in zip(ks, knn.correct(predicted, test_labels), strict=True):
            protocol = protocol_id("dino_knn", k=k, temperature=TEMPERATURE, **context.where)
            results.append(MetricResult(f"top1_k{k}", name, protocol, [mean_scores(correct)], readout=REFITTED, **constant))
    return results


def _settings(readouts: Readouts) -> dict[str, Any]:
    return {"neighbours": list(readouts.neighbours), "temperature": TEMPERATURE}


KNN = Task(
    nearest_neighbours,
    labelled_parts,
    has_labels,
    settings=_settings,
    columns=(Column("top1_k20", "cls", "k-NN (k 20)<br>CLS", REFITTED, primary=True),),
)
