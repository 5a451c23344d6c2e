"""Results of tasks: how they are named, stored and joined."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.tasks.base import (
    CONSTANT,
    FINISHES,
    MetricResult,
    Readouts,
    constant_note,
    frozen_readouts_of,
    join_draws,
    mean_over_seeds,
    pack,
    protocol_id,
    unpack,
)
from experiments.tasks.geometry import patch_norms
from jaxvit.inference import Scores, mean_scores, value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features


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


def test_one_seed_is_repeated_where_it_is_compared_with_several():
    (single,) = norms()[0].scores
    repeated = mean_over_seeds([single], 3)
    assert repeated.contributions.shape[1] == 3
    assert value(repeated) == pytest.approx(value(single))


@pytest.mark.parametrize("finish", FINISHES)
def test_every_finish_survives_storage_by_its_name(finish):
    arrays = np.random.default_rng(0).random((4, 2, 2))
    results = [MetricResult("metric", "cls", "protocol()", [Scores(part, FINISHES[finish]) for part in arrays], full_metric="other")]
    (stored,) = unpack(pack(results))
    assert stored._replace(scores=[]) == results[0]._replace(scores=[])
    assert [s.finish for s in stored.scores] == [FINISHES[finish]] * 4
    np.testing.assert_array_equal([s.contributions for s in stored.scores], arrays)


def test_read_outs_are_stored_beside_scores_and_come_back_alone():
    result = MetricResult("top1", "r1", "ridge()", [mean_scores(np.ones(3))], readouts={"ridge/r1.weights": np.arange(3)})
    arrays = pack([result])
    assert unpack(arrays)[0].readouts == {}
    (name,), (weights,) = zip(*frozen_readouts_of(arrays).items(), strict=True)
    assert name == "ridge/r1.weights"
    np.testing.assert_array_equal(weights, np.arange(3))


def test_features_that_are_the_same_in_all_images_are_constant_by_construction():
    assert constant_note(np.ones((4, 3))) == CONSTANT
    assert constant_note(np.eye(3)) == ""


def test_read_outs_without_a_solver_are_refused():
    with pytest.raises(ValueError, match="at least one of logistic, ridge, sgd"):
        Readouts(solvers=())
