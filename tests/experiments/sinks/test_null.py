"""Where nothing is, the rules find nothing."""

from __future__ import annotations

import pytest

from experiments.sinks.null import simulate


def test_few_runs_without_an_effect_have_no_false_word():
    found = simulate(3, 400, resamples=500)
    assert found.verdicts == 9
    assert found.false == 0


@pytest.mark.slow
@pytest.mark.parametrize("images", [256, 1000])
def test_at_most_one_verdict_in_a_hundred_is_false(images):
    assert simulate(400, images).share <= 0.01
