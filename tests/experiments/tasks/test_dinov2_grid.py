"""DINOv2's grid of heads: where it is run."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.tasks.base import REFITTED
from experiments.tasks.dinov2_grid import dinov2_grid
from tests.experiments.tasks.hand_made import FeaturesByPart, make_classes


def test_the_grid_is_one_number_of_cls_and_patch_mean_under_every_seed():
    parts, context = make_classes(grid_iterations=3)
    (result,) = dinov2_grid(parts, context, {})
    assert (result.metric, result.feature, result.readout) == ("top1_dinov2_grid", "cls+patch_mean", REFITTED)
    assert len(result.scores) == 2
    assert "batch=12, iterations=3, select=val" in result.protocol
    assert result.detail.startswith("rates ")


@pytest.mark.parametrize(
    ("readouts", "changes", "blocks"),
    [({"grid_iterations": 0}, {}, 4), ({"norm": "none"}, {}, 4), ({}, {"ablated": True}, 4), ({}, {}, 3)],
)
def test_it_is_not_run_under_ablations_nor_where_its_features_are_not_there(readouts, changes, blocks):
    parts, context = make_classes(**{"grid_iterations": 3} | readouts)
    parts = FeaturesByPart({name: part._replace(block_cls=np.asarray(part.block_cls[:, :blocks])) for name, part in parts.items()})
    assert dinov2_grid(parts, context._replace(**changes), {}) == []
