"""Precisions are compared number by number."""

from __future__ import annotations

import pytest

from experiments.bench.precision import Number, NumberKey, compare


@pytest.mark.parametrize(("numbered", "metric"), [("cosine[{}]", "cosine"), ("r{}", "registers")])
def test_precisions_are_compared_number_by_number_and_numbered_metrics_together(numbered, metric):
    full = {
        NumberKey("m", "a", "t", numbered.format(1), "f", 0, "p"): Number(0.5, 0.25),
        NumberKey("m", "b", "t", numbered.format(2), "f", 0, "p"): Number(0.75, 0.05),
    }
    half = {key: Number(number.value + (0.125 if key.condition == "a" else -0.375), 9.0) for key, number in full.items()}
    (difference,) = compare(full, half)
    assert difference.pop("half_interval") == pytest.approx(0.15)
    assert difference == {"task": "t", "metric": metric, "numbers": 2, "mean_difference": 0.25, "largest_difference": 0.375}


def test_metrics_of_different_tasks_are_apart():
    numbers = {NumberKey("m", "full", task, "accuracy", "f", 0, "p"): Number(0.5, 0.1) for task in ("s", "t")}
    assert [(d["task"], d["numbers"]) for d in compare(numbers, numbers)] == [("s", 1), ("t", 1)]
