"""The study's cost is estimated for the conditions that it runs."""

from __future__ import annotations

from experiments.bench import study


def test_the_runs_are_all_conditions_of_the_six_models():
    assert len(study.MODELS) == 6
    assert study.RUNS == 2 * (4 + 16 + 16)
    assert all(f"{study.RUNS} conditions" in row.what for row in study.rows())
