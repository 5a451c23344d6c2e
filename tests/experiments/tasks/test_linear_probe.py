"""Linear probes: of every feature and solver, with read-outs of another condition, and at every layer."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from experiments.tasks import linear_probe
from experiments.tasks.base import CONSTANT, FROZEN, REFITTED, Readouts
from experiments.tasks.tokens import PARTS
from jaxvit.probes import logistic
from tests.experiments.tasks.hand_made import FeaturesByPart, make_classes, make_context

RIDGE = {"features": ("cls", "registers"), "solvers": ("ridge",), "lambdas": (0.1, 1.0)}


def test_the_first_solver_gives_top1_and_the_others_are_named():
    """One row for each feature and solver, and the protocol ids say what each probe is."""
    parts, context = make_classes(**RIDGE | {"solvers": ("ridge", "logistic", "dinov2_logistic", "sgd")}, cs=(0.1, 1.0), epochs=2)
    results = linear_probe.linear_probe(parts, context, {})
    assert [(r.metric, r.feature) for r in results] == [
        (metric, feature) for metric in ("top1", "top1_logistic", "top1_dinov2_logistic", "top1_sgd") for feature in ("cls", "r1", "r2")
    ]
    where = "fit=condition, images=resized, layer=last, norm=final)"
    assert [r.protocol for r in results[::3]] == [
        f"ridge(lambda=0.1+1, select=val, standardised=True, {where}",
        f"logistic(C=0.1+1, select=val, standardised=True, {where}",
        f"dinov2_logistic(C=1e-06..100000x45, select=val, refit=train+val, standardised=False, {where}",
        f"sgd(rate=0.001, momentum=0, batch=12, iterations=2, standardised=False, {where}",
    ]
    assert [len(r.scores) for r in results] == [1] * 9 + [2] * 3, "only SGD draws anything"


def test_a_c_that_did_not_converge_is_named(monkeypatch):
    parts, context = make_classes(features=("cls",), solvers=("logistic",), cs=(1e-6, 1e6))
    short = functools.partial(logistic.probe_many, iterations=2)
    monkeypatch.setattr(logistic, "probe_many", short)
    (result,) = linear_probe.linear_probe(parts, context, {})
    assert result.flag == "C at the edge of its grid, 1 of the values of C did not converge and were not candidates"


def test_layers_are_probed_a_few_at_a_time_with_the_same_outcome(monkeypatch):
    generator = np.random.default_rng(0)
    labels = {part: generator.integers(0, 2, 12) for part in PARTS}
    parts = []
    for part in PARTS:
        tokens = generator.normal(size=(3, 12, 3, 4)).astype(np.float32) + labels[part][:, None, None]
        parts.append({"cls": tokens[:, :, 0], "patch_mean": tokens[:, :, 1], "registers": tokens[:, :, 2:]})
    readouts = Readouts(solvers=("ridge",), lambdas=(0.1, 1.0))
    context = make_context(labels=labels, classes=("a", "b"), protocols={"labels": "none"})._replace(readouts=readouts)
    together = list(linear_probe.layer_probes(parts, context))
    monkeypatch.setattr(linear_probe, "LAYER_BYTES", 1)
    one_by_one = list(linear_probe.layer_probes(parts, context))
    assert [(layer, result.feature) for layer, result in together] == [
        (layer, feature) for layer in range(3) for feature in ("cls", "patch_mean", "r1", "register_mean")
    ]
    for (layer, one), (other_layer, other) in zip(together, one_by_one, strict=True):
        assert (layer, one.feature, one.flag, one.detail) == (other_layer, other.feature, other.flag, other.detail)
        np.testing.assert_array_equal(one.scores[0].contributions, other.scores[0].contributions)


def test_under_an_ablation_every_probe_is_refitted_and_also_applied_frozen():
    parts, context = make_classes(**RIDGE)
    full = linear_probe.linear_probe(parts, context, {})
    assert {r.readout for r in full} == {REFITTED}
    readouts = {name: array for result in full for name, array in result.readouts.items()}
    negated = FeaturesByPart({name: part._replace(cls=-part.cls, registers=-part.registers) for name, part in parts.items()})
    results = linear_probe.linear_probe(negated, context._replace(ablated=True), readouts)
    assert [(r.metric, r.feature, r.readout) for r in results] == [
        ("top1", feature, readout) for feature in ("cls", "r1", "r2") for readout in (REFITTED, FROZEN)
    ]
    for refitted, frozen in zip(results[::2], results[1::2], strict=True):
        assert refitted.identity == frozen.identity, "both are compared with the same number of the full condition"
        assert "fit=condition" in refitted.protocol
        assert frozen.protocol == refitted.protocol.replace("fit=condition", "fit=full")
        assert (frozen.readouts, frozen.flag, frozen.detail) == ({}, "", "")
    same = linear_probe.linear_probe(parts, context._replace(ablated=True), readouts)
    for refitted, frozen in zip(same[::2], same[1::2], strict=True):
        np.testing.assert_array_equal(refitted.scores[0].contributions, frozen.scores[0].contributions)


def test_what_is_read_from_a_constant_token_is_so_by_construction():
    parts, context = make_classes(**RIDGE)
    zeroed = FeaturesByPart({name: part._replace(cls=np.zeros_like(part.cls)) for name, part in parts.items()})
    results = {r.feature: r for r in linear_probe.linear_probe(zeroed, context, {})}
    assert (results["cls"].by_construction, results["cls"].note, results["cls"].flag) == (True, CONSTANT, "")
    assert (results["r1"].by_construction, results["r1"].note) == (False, "")


@pytest.mark.parametrize(
    ("field", "value"),
    [("features", ("cls",)), ("solvers", ("ridge",)), ("cs", (1.0,)), ("lambdas", (1.0,)), ("epochs", 3), ("standardised", False)],
)
def test_settings_hold_what_probes_depend_on(field, value):
    assert linear_probe.settings(Readouts(**{field: value})) != linear_probe.settings(Readouts())


def test_settings_do_not_hold_what_probes_do_not_depend_on():
    assert linear_probe.settings(Readouts(neighbours=(3,), shots=(2,), memory=7, alphas=(0.2,))) == linear_probe.settings(Readouts())
