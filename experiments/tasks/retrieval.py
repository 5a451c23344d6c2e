"""Does CLS know which image it is of? Instance retrieval between two views."""

from __future__ import annotations

import jax.numpy as jnp

from experiments.tasks.base import Context, FeatureSource, FrozenReadouts, MetricResult, constant_note, protocol_id
from jaxvit import metrics
from jaxvit.inference import mean_scores


def retrieval(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Instance Recall@1 of CLS over the pairs of views."""
    first, second = features["first"].cls, features["second"].cls
    protocol = protocol_id("instance_recall", views=context.data.protocols["views"], **context.readouts.where)
    scores = mean_scores(metrics.recall_at_1(jnp.asarray(first), jnp.asarray(second)))
    return [MetricResult("recall_at_1", "cls", protocol, [scores], constant_note(second))]
