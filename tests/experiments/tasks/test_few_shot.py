"""Few-shot probes: a number for every feature and count of examples."""

from __future__ import annotations

import numpy as np

from experiments.tasks.base import CONSTANT, REFITTED
from experiments.tasks.few_shot import few_shot
from tests.experiments.tasks.hand_made import FeaturesByPart, make_classes


def test_shots_that_a_class_has_are_measured_for_cls_and_patch_mean_under_every_draw():
    parts, context = make_classes(shots=(1, 5, 10))
    results = few_shot(parts, context, {})
    assert [(r.metric, r.feature) for r in results] == [
        (metric, feature) for feature in ("cls", "patch_mean") for metric in ("top1_1_shot", "top1_5_shot")
    ]
    assert {(len(r.scores), r.draws) for r in results} == {(3, (0, 1, 2))}
    assert {r.readout for r in results} == {REFITTED}
    assert results[0].protocol.startswith("big_vision_few_shot(shots=1, penalty=")
    assert {r.flag for r in results} == {"shots 10 left out: the smallest class of train has 6 images"}
    few = few_shot(parts, context._replace(readouts=make_classes(shots=(10,))[1].readouts), {})
    assert [r.metric for r in few] == ["top1_6_shot"] * 2
    assert few[0].flag == "shots 10 left out: the smallest class of train has 6 images, all of which are used"


def test_what_is_read_from_a_constant_token_is_so_by_construction():
    parts, context = make_classes(shots=(1,))
    zeroed = FeaturesByPart({name: part._replace(cls=np.zeros_like(part.cls)) for name, part in parts.items()})
    assert [(r.feature, r.by_construction, r.note) for r in few_shot(zeroed, context, {})] == [
        ("cls", True, CONSTANT),
        ("patch_mean", False, ""),
    ]
