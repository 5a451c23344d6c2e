"""Both sides of a row of read-outs compute the same."""

from __future__ import annotations

import pytest

from experiments.bench import readouts
from experiments.bench.rows import Size


@pytest.mark.parametrize("build", [readouts.effective_rank, lambda size: readouts.neighbours(5_000, 5_000, 50_000, size)])
def test_both_sides_of_a_read_out_compute_the_same(build):
    case = build(Size(small=True))
    differences = case.check(case.ours(), case.theirs())
    assert next(iter(differences.values())) < 1e-5


def test_a_loop_over_some_probes_is_compared_with_those_and_its_time_is_scaled_to_all():
    some, every = readouts.probes(1, Size(small=True)), readouts.probes(2, Size(small=True))
    assert (some.scale, every.scale) == ((1, 2), (1, 1))
    ours, theirs = every.theirs(), some.theirs()
    assert some.check(ours, theirs) == {"max_difference_accuracy": 0, "mean_difference_accuracy": 0}
    assert len(ours) == 2
    assert len(theirs) == 1
    assert some.facts["probes_run"] == [2, 1]
