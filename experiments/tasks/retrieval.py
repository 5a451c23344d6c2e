"""Does CLS know which image it is of? Instance retrieval between two views."""

from __future__ import annotations

import jax.numpy as jnp

from experiments.plotting.columns import Column
from experiments.tasks.base import Context, FeatureSource, FrozenReadouts, MetricResult, Task, constant_fields, protocol_id
from experiments.tasks.correspondence import PAIRS, VIEWS, has_views
from jaxvit import metrics
from jaxvit.inference import mean_scores


def retrieval(features: FeatureSource, context: Context, frozen_readouts: FrozenReadouts) -> list[MetricResult]:
    """Instance Recall@1 of CLS over the pairs of views."""
    first, second = features["first"].cls, features["second"].cls
    protocol = protocol_id("instance_recall", views=context.data.protocols["views"], **context.readouts.where)
    scores = mean_scores(metrics.recall_at_1(jnp.asarray(first), jnp.asarray(second)))
    return [MetricResult("recall_at_1", "cls", protocol, [scores], n_unit=PAIRS, part=VIEWS[0], **constant_fields(second))]


RETRIEVAL = Task(
    retrieval,
    parts=lambda data: VIEWS,
    possible=has_views,
    columns=(Column("recall_at_1", "cls", "Recall@1<br>CLS", primary=True),),
)
