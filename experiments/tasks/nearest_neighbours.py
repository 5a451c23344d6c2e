"""Does a token lie near those of images of its class? DINO's weighted k-NN."""

from __future__ import annotations

from typing import Any

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
from experiments.tasks.tokens import fitting, has_labels, labelled_parts, token_features
from jaxvit.inference import mean_scores
from jaxvit.probes import knn

TEMPERATURE = 0.07
"""Of the votes exp(cosine / temperature), as in DINO (`eval_knn.py`)."""


def nearest_neighbours(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Top-1 of DINO's weighted k-NN; its bank are the train images, on which linear probes are fitted as well."""
    train_labels, test_labels = (context.data.labels[part] for part in ("train", "test"))
    ks, flag = fitting("k", context.readouts.neighbours, len(train_labels), "the bank of train images")
    train, test = (token_features(features[part], ("cls", "patch_mean", "register_mean")) for part in ("train", "test"))
    results = []
    for name, bank in train.items():
        predicted = knn.classify(bank, train_labels, test[name], len(context.data.classes), ks, TEMPERATURE, mesh=context.mesh)
        constant = constant_fields(bank)
        for k, correct in zip(ks, knn.correct(predicted, test_labels), strict=True):
            protocol = protocol_id("dino_knn", k=k, votes=f"exp(cosine/{TEMPERATURE:g})", bank="train", **context.where)
            scores = [mean_scores(correct)]
            results.append(MetricResult(f"top1_k{k}", name, protocol, scores, readout=REFITTED, **constant, flag=flag))
    return results


def _settings(readouts: Readouts) -> dict[str, Any]:
    return {"neighbours": list(readouts.neighbours), "temperature": TEMPERATURE}


KNN = Task(
    nearest_neighbours,
    labelled_parts,
    has_labels,
    version=2,
    settings=_settings,
    columns=(Column("top1_k20", "cls", "k-NN (k 20)<br>CLS", REFITTED, primary=True),),
)
