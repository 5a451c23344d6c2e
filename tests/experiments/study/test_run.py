"""Running jobs: which run beside others, what ends a run, and what becomes of work under way."""

from __future__ import annotations

import threading

import pytest
from rich.console import Console

from experiments.preemption import check_preempted
from experiments.study.cells import Store, cell_hash
from experiments.study.jobs import Job
from experiments.study.run import run_jobs

PATIENCE = 20  # seconds


def job(name, compute=None, **options):
    def nothing(store):
        if compute is not None:
            compute()
        return [], {}

    return Job(key={"kind": name}, model="a", label=name, weight=1.0, compute=nothing, **options)


def run(folder, *jobs):
    run_jobs(jobs, [], Store(folder), Console(quiet=True))


def test_a_job_apart_runs_beside_one_that_comes_before_it(tmp_path):
    begun, names = threading.Event(), []
    waiting = job("first", lambda: names.append(begun.wait(PATIENCE)))
    run(tmp_path, waiting, job("apart", begun.set, apart=True))
    assert names == [True]
    assert Store(tmp_path).holds(cell_hash(waiting.key))


def test_jobs_run_one_after_the_other_where_nothing_is_said_of_them(tmp_path):
    running, most = [], []

    def compute():
        running.append(1)
        most.append(len(running))
        running.pop()

    run(tmp_path, *(job(str(i), compute) for i in range(5)))
    assert most == [1] * 5


def test_a_job_apart_that_needs_a_cell_waits_for_it(tmp_path):
    order = []
    first = job("first", lambda: order.append("first"))
    run(tmp_path, job("second", lambda: order.append("second"), apart=True, needs=(first.key,)), first)
    assert order == ["first", "second"]


def test_a_job_whose_cell_another_one_needs_does_not_run_apart(tmp_path):
    order = []
    first = job("first", lambda: (threading.Event().wait(0.3), order.append("first")), apart=True)
    run(tmp_path, first, job("second", lambda: order.append("second"), needs=(first.key,)))
    assert order == ["first", "second"]


@pytest.mark.parametrize("kind", [{"apart": True}, {"host_only": True}])
def test_an_error_beside_the_main_thread_ends_the_run(tmp_path, kind):
    def fail():
        raise ValueError("it is broken")

    with pytest.raises(ValueError, match="it is broken"):
        run(tmp_path, job("beside", fail, **kind), job("main"))


def test_a_run_that_is_interrupted_does_not_wait_for_the_end_of_a_job_apart(tmp_path):
    begun, ended = threading.Event(), []

    def long():
        begun.set()
        try:
            for _ in range(PATIENCE * 100):
                check_preempted()
                threading.Event().wait(0.01)
            ended.append("late")
        except BaseException:
            ended.append("at once")
            raise

    def interrupt():
        begun.wait(PATIENCE)
        raise KeyboardInterrupt

    apart = job("apart", long, apart=True)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, apart, job("main", interrupt))
    assert ended == ["at once"]
    assert not Store(tmp_path).holds(cell_hash(apart.key))
    check_preempted()  # and the next run is not told to end
