"""Units of work: what one process computes in one go, and what it needs beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.study import grid
from experiments.study.cells import Store, cell_hash
from experiments.study.changes import changes_job
from experiments.study.jobs import Job, run_job
from experiments.study.units import units_of
from tests.experiments.tiny_study import save_models, targets


def job(name: str, needs: tuple[str, ...] = (), unit: str = "", model: str = "m") -> Job:
    """A job whose numbers are those of what it needs, and one more."""
    keys = tuple({"kind": other} for other in needs)

    def compute(needed):
        return [], {"total": 1 + sum((needed.load(key).arrays["total"] for key in keys), np.zeros(1))}

    return Job({"kind": name}, model, name, 1.0, compute, needs=keys, unit=unit)


def names(unit) -> list[str]:
    return [job.label for job in unit.jobs.values()]


def test_a_unit_comes_after_those_that_it_needs_and_else_in_the_order_of_the_jobs():
    units = units_of([job("rows", needs=("scores", "full")), job("full"), job("other"), job("scores", needs=("full",))])
    assert [names(unit) for unit in units] == [["full"], ["scores"], ["rows"], ["other"]]
    assert units[2].needs == {cell_hash({"kind": "scores"}), cell_hash({"kind": "full"})}


def test_jobs_that_share_features_are_one_unit_and_need_nothing_of_each_other_from_outside():
    units = units_of([job("a", unit="x"), job("b", unit="y"), job("c", ("a",), unit="x"), job("d", unit="x", model="another")])
    assert [names(unit) for unit in units] == [["a", "c"], ["b"], ["d"]]
    assert not units[0].needs


def test_units_that_need_one_another_are_refused():
    with pytest.raises(ValueError, match=r"need cells that need theirs; divide them"):
        units_of([job("a", ("b",), unit="x"), job("b", ("c",), unit="y"), job("c", unit="x")])


def test_a_job_can_only_load_what_it_says_that_it_needs(tmp_path):
    store = Store(tmp_path)
    run_job(job("full"), store)
    assert run_job(job("told", needs=("full",)), store).arrays["total"] == 2
    secret = Job({"kind": "secret"}, "m", "secret", 1.0, lambda needed: ([], needed.load({"kind": "full"}).arrays))
    with pytest.raises(ValueError, match=r'loads a cell of kind "full" .* not among its needs; give Job\(\.\.\., needs='):
        run_job(secret, store)


def test_scores_need_the_full_condition_rows_their_scores_and_differences_those_of_both_models(tmp_path):
    first, second = targets(save_models(tmp_path))
    jobs = {job.label: job for job in grid.jobs(first, ("noise_registers",), ("knn",))}
    full, noise = jobs["with_registers, full: knn"], [jobs[f"with_registers, noise_registers, seed {seed}: knn"] for seed in (0, 1)]
    assert full.needs == ()
    assert [job.needs for job in noise] == [(full.key,)] * 2
    assert jobs["with_registers, noise_registers: knn, intervals"].needs == (full.key, *(job.key for job in noise))
    needed = {key["model"]["config"]["registers"] for key in changes_job(first, second, "zero_cls", "knn").needs}
    assert needed == {0, 2}
    units = units_of(grid.jobs(first, ("noise_registers",), ("knn", "retrieval")))
    assert [len(unit.jobs) for unit in units] == [2] * 5, "full, its rows, two seeds and their rows, of two tasks each"
