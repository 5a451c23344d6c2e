"""Classification probes: the tokens that they read, and probes at every layer."""

from __future__ import annotations

import numpy as np

from experiments.tasks import classification
from experiments.tasks.base import Readouts
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features


def test_features_that_probes_read_are_the_tokens_they_name():
    part = make_features()
    tokens = classification.token_features(part)
    assert list(tokens) == ["cls", "patch_mean", "register_mean", "r1", "r2", "cls+patch_mean", "cls+registers"]
    np.testing.assert_array_equal(tokens["r2"], part.registers[:, 1])
    np.testing.assert_allclose(tokens["register_mean"], part.registers.mean(axis=1))
    np.testing.assert_array_equal(tokens["cls+patch_mean"], np.hstack([part.cls, part.patches.mean(axis=1)]))
    np.testing.assert_array_equal(tokens["cls+registers"], np.hstack([part.cls, part.registers[:, 0], part.registers[:, 1]]))
    assert list(classification.token_features(make_features(registers=0))) == ["cls", "patch_mean", "cls+patch_mean"]
    assert list(classification.token_features(part, ("registers",))) == ["r1", "r2"]


def test_the_first_solver_gives_top1_and_the_others_are_named():
    """One row for each feature and solver, and the protocol ids say what each probe is."""
    labels = {part: np.arange(12) % 2 for part in classification.PARTS}
    parts = FeaturesByPart({part: make_features(images=12, seed=i) for i, part in enumerate(classification.PARTS)})
    readouts = Readouts(features=("cls", "registers"), solvers=("ridge", "logistic", "sgd"), lambdas=(0.1, 1.0), cs=(0.1, 1.0), epochs=2)
    context = make_context(labels=labels, classes=("a", "b"), protocols={"labels": "resized"})._replace(readouts=readouts)
    results = classification.linear_probe(parts, context, {})
    assert [(r.metric, r.feature) for r in results] == [
        (metric, feature) for metric in ("top1", "top1_logistic", "top1_sgd") for feature in ("cls", "r1", "r2")
    ]
    where = "fit=condition, images=resized, layer=last, norm=final)"
    assert [r.protocol for r in results[::3]] == [
        f"ridge(lambda=0.1+1, select=val, standardised=True, {where}",
        f"logistic(C=0.1+1, select=val, standardised=True, {where}",
        f"sgd(rate=0.001, momentum=0, batch=12, iterations=2, standardised=False, {where}",
    ]
    assert [len(r.scores) for r in results] == [1] * 6 + [2] * 3, "only SGD draws anything"


def test_layers_are_probed_a_few_at_a_time_with_the_same_outcome(monkeypatch):
    generator = np.random.default_rng(0)
    labels = {part: generator.integers(0, 2, 12) for part in classification.PARTS}
    parts = []
    for part in classification.PARTS:
        tokens = generator.normal(size=(3, 12, 3, 4)).astype(np.float32) + labels[part][:, None, None]
        parts.append({"cls": tokens[:, :, 0], "patch_mean": tokens[:, :, 1], "registers": tokens[:, :, 2:]})
    readouts = Readouts(solvers=("ridge",), lambdas=(0.1, 1.0))
    context = make_context(labels=labels, classes=("a", "b"), protocols={"labels": "none"})._replace(readouts=readouts)
    together = list(classification.layer_probes(parts, context))
    monkeypatch.setattr(classification, "LAYER_BYTES", 1)
    one_by_one = list(classification.layer_probes(parts, context))
    assert [(layer, result.feature) for layer, result in together] == [
        (layer, feature) for layer in range(3) for feature in ("cls", "patch_mean", "r1", "register_mean")
    ]
    for (layer, one), (other_layer, other) in zip(together, one_by_one, strict=True):
        assert (layer, one.feature, one.flag, one.detail) == (other_layer, other.feature, other.flag, other.detail)
        np.testing.assert_array_equal(one.scores[0].contributions, other.scores[0].contributions)
