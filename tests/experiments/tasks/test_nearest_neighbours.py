"""k-NN classification: a number for every token and k."""

from __future__ import annotations

import numpy as np

from experiments.tasks.base import CONSTANT, REFITTED
from experiments.tasks.nearest_neighbours import nearest_neighbours
from jaxvit.inference import value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_classes, make_features


def test_the_bank_is_train_and_every_token_has_a_number_for_every_k_that_it_can_fill_and_names_the_others():
    """As linear probes, which are fitted on train and only choose on val."""
    parts, context = make_classes(neighbours=(1, 12, 13, 20))
    results = nearest_neighbours(parts, context, {})
    assert [(r.metric, r.feature) for r in results] == [
        (metric, feature) for feature in ("cls", "patch_mean", "register_mean") for metric in ("top1_k1", "top1_k12")
    ]
    assert {r.readout for r in results} == {REFITTED}
    assert results[0].protocol == "dino_knn(k=1, votes=exp(cosine/0.07), bank=train, images=resized, layer=last, norm=final)"
    assert {r.flag for r in results} == {"k 13, 20 left out: the bank of train images has 12 images"}
    found = FeaturesByPart(parts | {"test": parts["train"]})
    assert {value(r.scores[0]) for r in nearest_neighbours(found, context, {}) if r.metric == "top1_k1"} == {1}
    other = FeaturesByPart(parts | {"val": make_features(images=12, seed=9)})
    for one, same in zip(results, nearest_neighbours(other, context, {}), strict=True):
        np.testing.assert_array_equal(one.scores[0].contributions, same.scores[0].contributions)


def test_a_bank_below_every_k_is_used_whole_and_says_so():
    parts, context = make_classes(neighbours=(20, 100))
    results = nearest_neighbours(parts, context, {})
    assert [(r.metric, r.feature) for r in results] == [("top1_k12", feature) for feature in ("cls", "patch_mean", "register_mean")]
    assert results[0].flag == "k 20, 100 left out: the bank of train images has 12 images, all of which are used"


def test_the_votes_are_those_that_the_protocol_names():
    """Written anew from Caron et al. 2021, section 4: cosine c of each of the k nearest votes exp(c / 0.07) for its class."""
    parts, context = make_classes(neighbours=(5,))
    result = nearest_neighbours(parts, context, {})[0]
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (parts["train"].cls, parts["test"].cls))
    right = []
    for cosines, truth in zip((queries @ bank.T).astype(np.float64), context.data.labels["test"], strict=True):
        nearest = np.argsort(-cosines)[:5]
        votes = np.bincount(context.data.labels["train"][nearest], np.exp(cosines[nearest] / 0.07), 2)
        right.append(votes.argmax() == truth)
    np.testing.assert_array_equal(result.scores[0].contributions[:, 0], right)


def test_a_model_without_registers_has_no_number_of_them():
    parts, context = make_classes(neighbours=(3,))
    without = FeaturesByPart({name: make_features(images=12, registers=0) for name in parts})
    assert [r.feature for r in nearest_neighbours(without, context, {})] == ["cls", "patch_mean"]


def test_what_is_read_from_a_constant_token_is_so_by_construction():
    parts, context = make_classes(neighbours=(3,))
    zeroed = FeaturesByPart({name: part._replace(cls=np.zeros_like(part.cls)) for name, part in parts.items()})
    by_feature = {r.feature: (r.by_construction, r.note) for r in nearest_neighbours(zeroed, context, {})}
    assert by_feature == {"cls": (True, CONSTANT), "patch_mean": (False, ""), "register_mean": (False, "")}
