"""Both sides of a row of read-outs compute the same."""

from __future__ import annotations

import pytest

from experiments.bench import readouts
from experiments.bench.rows import Size


@pytest.mark.parametrize("build", [readouts.effective_rank, lambda size: readouts.neighbours(5_000, 50_000, size)])
def test_both_sides_of_a_read_out_compute_the_same(build):
    case = build(Size(small=True))
    differences = case.check(case.ours(), case.theirs())
    assert next(iter(differences.values())) < 1e-5
