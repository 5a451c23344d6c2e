"""k-NN classification: a number for every token and k."""

from __future__ import annotations

import numpy as np

from experiments.tasks.base import CONSTANT, REFITTED
from experiments.tasks.nearest_neighbours import nearest_neighbours
from jaxvit.inference import value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_classes, make_features


def test_the_bank_is_train_and_val_and_every_token_has_a_number_for_every_k_that_it_can_fill():
    parts, context = make_classes(neighbours=(1, 24, 25))
    results = nearest_neighbours(parts, context, {})
    assert [(r.metric, r.feature) for r in results] == [
        (metric, feature) for feature in ("cls", "patch_mean", "register_mean") for metric in ("top1_k1", "top1_k24")
    ]
    assert {r.readout for r in results} == {REFITTED}
    assert results[0].protocol == "dino_knn(k=1, temperature=0.07, images=resized, layer=last, norm=final)"
    for part in ("train", "val"):
        found = FeaturesByPart(parts | {"test": parts[part]})
        assert {value(r.scores[0]) for r in nearest_neighbours(found, context, {}) if r.metric == "top1_k1"} == {1}


def test_a_model_without_registers_has_no_number_of_them():
    parts, context = make_classes(neighbours=(3,))
    without = FeaturesByPart({name: make_features(images=12, registers=0) for name in parts})
    assert [r.feature for r in nearest_neighbours(without, context, {})] == ["cls", "patch_mean"]


def test_what_is_read_from_a_constant_token_is_so_by_construction():
    parts, context = make_classes(neighbours=(3,))
    zeroed = FeaturesByPart({name: part._replace(cls=np.zeros_like(part.cls)) for name, part in parts.items()})
    by_feature = {r.feature: (r.by_construction, r.note) for r in nearest_neighbours(zeroed, context, {})}
    assert by_feature == {"cls": (True, CONSTANT), "patch_mean": (False, ""), "register_mean": (False, "")}
