"""Results of tasks: how they are named, stored and joined."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from experiments.rows import FIELDS
from experiments.tasks.base import (
    CONSTANT,
    FROZEN,
    PERCENT,
    REFITTED,
    MetricResult,
    Readouts,
    Task,
    Unit,
    constant_fields,
    frozen_readouts_of,
    is_constant,
    join_draws,
    matched,
    pack,
    pack_readout,
    pack_scores,
    protocol_id,
    scores_array,
    unpack,
    unpack_readout,
)
from experiments.tasks.geometry import patch_norms
from experiments.tasks.table import TASKS
from jaxvit.inference import Scores, mean_ratio, mean_scores, ratio, value, weighted_median
from jaxvit.probes import ridge
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features


def largest(totals: np.ndarray) -> np.ndarray:
    """A finish that no other task has."""
    return totals.max(axis=-1)


PLAIN = Task(lambda features, context, readouts: [], parts=lambda data: (), possible=lambda data: True)
OWN = dataclasses.replace(PLAIN, finishes=(largest,))


def norms(seed: int = 0) -> list[MetricResult]:
    return patch_norms(FeaturesByPart(test=make_features(seed=seed)), make_context(size={"analysis_images": 5}), {})


def test_a_protocol_id_says_everything_in_one_line():
    protocol = protocol_id("logistic", C=(0.1, 1.0, 10.0), lambdas=tuple(10.0**e for e in range(-3, 3)), norm="final", standardised=True)
    assert protocol == "logistic(C=0.1+1+10, lambdas=0.001..100x6, norm=final, standardised=True)"


def test_draws_are_joined_metric_by_metric():
    draws = [norms(seed) for seed in (0, 1)]
    joined = join_draws(draws)
    assert [r.metric for r in joined] == [r.metric for r in draws[0]]
    assert [len(r.scores) for r in joined] == [2, 2, 2]
    assert joined[1].scores == [draws[0][1].scores[0], draws[1][1].scores[0]]


def test_a_flag_of_any_draw_stays():
    flagged = [r._replace(flag="at the edge") for r in norms()]
    assert [r.flag for r in join_draws([norms(), flagged])] == ["at the edge"] * 3


def test_what_holds_by_construction_in_any_draw_is_no_finding():
    constant = [r._replace(by_construction=True, note="constant") for r in norms()]
    assert {(r.by_construction, r.note) for r in join_draws([norms(), constant])} == {(True, "constant")}


def test_every_score_is_compared_with_that_of_its_own_draw():
    """One score of the full condition serves all; of drawn read-outs each has its own; a result's own reference goes before."""
    clean, result = norms()[0], join_draws([norms(seed) for seed in (1, 2, 3)])[0]
    assert matched(clean, result) == [*clean.scores] * 3
    drawn = clean._replace(scores=[norms(seed)[0].scores[0] for seed in (5, 6, 7)], draws=(5, 6, 7))
    assert matched(drawn, result._replace(draws=(7, 5, 6))) == [drawn.scores[i] for i in (2, 0, 1)]
    assert matched(drawn, result._replace(reference=result.scores)) is result.scores


FINISHES = [(finish, task) for finish in (ratio, mean_ratio, weighted_median) for task in (PLAIN, OWN)] + [(largest, OWN)]
FINISHES += [(finish, task) for task in TASKS.values() for finish in task.finishes]


@pytest.mark.parametrize(("finish", "task"), FINISHES)
def test_every_finish_survives_storage_by_its_name(finish, task):
    """Those of `jaxvit.inference` of every task, and those that a task declares of its own."""
    arrays = np.random.default_rng(0).random((4, 2, 2))
    result = MetricResult(
        "metric",
        None,
        "protocol()",
        [Scores(part, finish) for part in arrays],
        Unit("bits", 0.5, higher_is_better=False),
        readout=FROZEN,
        by_construction=True,
        note="a note",
        flag="a flag",
        detail="a detail",
        n_unit="pairs of views",
        part="first",
        draws=(3, 5),
        fields={"register_a": "r1", "index": 3},
    )
    (stored,) = unpack(pack([result]), task)
    assert stored._replace(scores=[]) == result._replace(scores=[])
    assert isinstance(stored.unit, Unit)
    assert stored.identity == result.identity
    assert [s.finish for s in stored.scores] == [finish] * 4
    np.testing.assert_array_equal([s.contributions for s in stored.scores], arrays)


def test_a_finish_that_a_task_does_not_declare_is_not_found():
    arrays = pack([MetricResult("metric", "cls", "protocol()", [Scores(np.ones((2, 1)), largest)])])
    with pytest.raises(KeyError, match="largest"):
        unpack(arrays, PLAIN)


def test_several_results_keep_their_order_and_their_arrays():
    results = [MetricResult("top1", name, "ridge()", [mean_scores(np.full(3, i))]) for i, name in enumerate(("cls", "r1"))]
    stored = unpack(pack(results), PLAIN)
    assert [(r.feature, value(r.scores[0])) for r in stored] == [("cls", 0), ("r1", 1)]
    scores = pack_scores(results)
    assert list(scores) == [scores_array(0), scores_array(1)]
    assert [array.shape for array in scores.values()] == [(3, 1, 2)] * 2


def test_read_outs_are_stored_beside_scores_and_come_back_alone():
    result = MetricResult("top1", "r1", "ridge()", [mean_scores(np.ones(3))], readouts={"ridge/r1.weights": np.arange(3)})
    arrays = pack([result])
    assert unpack(arrays, PLAIN)[0].readouts == {}
    (name,), (weights,) = zip(*frozen_readouts_of(arrays).items(), strict=True)
    assert name == "ridge/r1.weights"
    np.testing.assert_array_equal(weights, np.arange(3))


def test_a_read_out_survives_as_named_arrays():
    readout = ridge.Ridge(**{field: np.full(2, i) for i, field in enumerate(ridge.Ridge._fields)})
    again = unpack_readout("ridge/cls", pack_readout("ridge/cls", readout), ridge.Ridge)
    assert isinstance(again, ridge.Ridge)
    for one, other in zip(readout, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_number_is_compared_with_the_same_one_of_the_full_condition_whatever_its_read_out():
    result = MetricResult("cosine", None, "p()", [], fields={"register_a": "r1", "register_b": "r2"}, readout=REFITTED)
    assert result.identity == result._replace(readout=FROZEN, protocol="q()", note="a note").identity
    others = [result._replace(metric="top1"), result._replace(feature="cls"), result._replace(fields={**result.fields, "register_b": "r3"})]
    assert result.identity not in {other.identity for other in others}


def test_the_fields_of_a_row_that_a_result_determines():
    result = MetricResult("top1", "cls", "ridge()", [], readout=REFITTED, flag="at the edge", fields={"layer": 3})
    assert result.row_fields.keys() <= {field.name for field in FIELDS}
    assert result.row_fields == {
        "metric": "top1",
        "feature": "cls",
        "protocol": "ridge()",
        "readout": REFITTED,
        "by_construction": False,
        "n_unit": "images",
        "note": None,
        "flag": "at the edge",
        "detail": None,
        "unit": PERCENT.name,
        "scale": PERCENT.scale,
        "higher_is_better": True,
        "layer": 3,
    }


def test_features_that_are_the_same_in_all_images_are_constant_by_construction():
    assert constant_fields(np.ones((4, 3))) == {"by_construction": True, "note": CONSTANT}
    assert constant_fields(np.eye(3)) == {"by_construction": False, "note": ""}
    assert is_constant(np.ones((4, 3)))
    assert not is_constant(np.eye(3))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_declares_what_the_study_needs_of_it(name):
    """Settings go into keys, so they are JSON and the same every time; columns name its own scores once."""
    task = TASKS[name]
    assert json.dumps(task.settings(Readouts())) == json.dumps(task.settings(Readouts()))
    assert task.version >= 1
    assert len({column.key for column in task.columns}) == len(task.columns)
    assert not any(column.task for column in task.columns), "the table of tasks fills it in"
    for column in task.columns:
        assert column.heading
        assert column.readout in (None, REFITTED, FROZEN)


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("linear_probe", {"cs": (1.0,)}),
        ("dinov2_grid", {"grid_iterations": 7}),
        ("few_shot", {"shots": (2,)}),
        ("knn", {"neighbours": (3,)}),
        ("correspondence", {"tolerance": 2.0}),
        ("spair", {"alphas": (0.2,)}),
        ("segmentation", {"memory": 7}),
        ("segmentation", {"standardised": False}),
    ],
)
def test_settings_of_a_task_hold_the_read_outs_that_it_uses_and_no_others(task, change):
    plain, changed = Readouts(), Readouts(**change)
    assert TASKS[task].settings(changed) != TASKS[task].settings(plain)
    reads_it = {"linear_probe", "segmentation"} if "standardised" in change else {task}
    for name in TASKS.keys() - reads_it:
        assert TASKS[name].settings(changed) == TASKS[name].settings(plain)


def test_read_outs_without_a_solver_are_refused():
    with pytest.raises(ValueError, match="at least one of logistic, ridge, sgd, dinov2_logistic"):
        Readouts(solvers=())
