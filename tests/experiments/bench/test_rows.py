"""A row reports what it measured, and judges it by its goals."""

from __future__ import annotations

import time

from experiments.bench.rows import BenchRow, Case, Goal, Seconds, Size, measure


def result(ours, theirs, scale=(1.0, 1.0), repeats=3):
    return measure(BenchRow("x", "", "", "float32", (), lambda size: Case(ours, theirs, scale)), Size(small=True), repeats)


def test_ours_and_theirs_take_turns_and_the_ratio_is_the_median_of_pairs():
    order = []
    paces = {"ours": iter([9.0, 1.0, 2.0, 4.0]), "theirs": iter([9.0, 3.0, 2.0, 40.0])}

    def paced(side):
        def work():
            order.append(side)
            return Seconds(next(paces[side]))

        return work

    measured = result(paced("ours"), paced("theirs"), scale=(10, 5))
    assert order == ["ours", "theirs"] * 4
    # medians of 10, 20, 40 and of 15, 10, 200; first runs do not count
    assert (measured["seconds"], measured["theirs_seconds"]) == (20, 15)
    assert measured["ratio"] == 1.5  # of 1.5, 0.5, 5


def test_work_is_waited_for():
    measured = result(lambda: time.sleep(0.02), lambda: time.sleep(0.06), repeats=2)
    assert measured["seconds"] >= 0.02
    assert measured["theirs_seconds"] >= 0.06


def test_goals_are_lower_bounds_of_ratios_and_upper_bounds_of_costs():
    assert Goal("ratio", 1.5).met({"ratio": 1.6}) is True
    assert Goal("utilisation", 0.4).met({"utilisation": 0.3}) is False
    assert Goal("seconds", 10).met({"seconds": 11}) is False
    assert Goal("memory", 0.1).met({"ratio": 3}) is None
