"""Units find a worker whatever becomes of others: lost, silent, refused or failing ones. Workers are played by the test."""

from __future__ import annotations

import io
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.cluster import driver
from experiments.cluster.machines import required_software, this_worker
from experiments.cluster.worker import Refusal, run_order
from experiments.definition import Study
from experiments.study.cells import Store
from experiments.study.jobs import run_job
from experiments.study.units import units_of
from tests.experiments.study.test_units import job

dask = pytest.importorskip("dask", reason="needs the extra: pip install -e '.[cluster]'")
MACHINE = {**required_software(), "device": "cpu", "devices": 1, "threads": 1, "host": "here"}
JOBS = [job("full"), job("zero", needs=("full",)), job("rows", needs=("full", "zero")), job("other")]


class Played:
    """A scheduler with workers that do what the test says.

    Attributes:
        workers: by address, what each answers to one order after another: "work", "hang", "die", or what it returns or raises; the last
            one for ever.
        beating: those whose heart beats.
        log: (address, names of the cells) of every order.
    """

    def __init__(self, workers: dict[str, list], machines: dict[str, dict] | None = None, threads: int = 1):
        self.workers = {address: deque(answers) for address, answers in workers.items()}
        self.beating, self.machines, self.threads = set(workers), machines or {}, threads
        self.log: list[tuple[str, tuple[str, ...]]] = []
        self.scheduler, self.clock = SimpleNamespace(identity=None), 0
        self.jobs = {name: member for unit in units_of(JOBS) for name, member in unit.jobs.items()}

    def sync(self, function, **options):
        self.clock += 1
        entries = {a: {"last_seen": self.clock if a in self.beating else 0.5, "nthreads": self.threads} for a in self.workers}
        return {"workers": entries}

    def submit(self, function, *arguments, workers, **options):
        (address,) = workers
        if function is this_worker:
            return done({**MACHINE, **self.machines.get(address, {})})
        assert function is run_order
        (order,) = arguments
        answers = self.workers[address]
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        self.log.append((address, tuple(self.jobs[name].label for name in order.cells)))
        if answer == "work":
            return done(self.computed(order))
        if answer == "die":
            del self.workers[address]
        elif answer == "stop":
            self.beating.remove(address)
        return pending() if answer in ("hang", "die", "stop") else done(answer)

    def computed(self, order):
        store = Store(self.folder / str(len(self.log)))
        for name, files in order.needs.items():
            store.write_files(name, files)
        for name in order.cells:
            run_job(self.jobs[name], store)
        return {name: store.read_files(name) for name in order.cells}


def done(value):
    error = isinstance(value, BaseException)
    return SimpleNamespace(status="error" if error else "finished", result=lambda: value, exception=lambda: value, cancel=lambda: None)


def pending():
    return SimpleNamespace(status="pending", cancel=lambda: None)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_LOOK", 0.02)
    monkeypatch.setattr(driver, "_POLL", 0.001)

    def run(client: Played, required: dict | None = None, **limits: float) -> SimpleNamespace:
        client.folder, printed, store, begun = tmp_path / "workers", io.StringIO(), Store(tmp_path / "cells"), []
        study = Study(out=tmp_path)
        with dask.config.set({f"jaxvit.{name}": value for name, value in {"wait": 5, **limits}.items()}):
            console = Console(file=printed, width=200)
            driver.run_on_cluster(JOBS, study, store, client, console, required or {}, begun.append)
        totals = {member.label: store.load(member.key).arrays["total"][0] for member in JOBS}
        assert totals == {"full": 1, "zero": 2, "rows": 4, "other": 1}
        return SimpleNamespace(printed=printed.getvalue(), begun=begun)

    return run


def test_units_are_sent_when_what_they_need_is_there(run):
    client = Played({"a": ["work"], "b": ["work"]})
    result = run(client)
    assert [entry["devices"] for entry in result.begun] == [1]
    order = [label for _, labels in client.log for label in labels]
    assert sorted(order) == ["full", "other", "rows", "zero"]
    assert order.index("full") < order.index("zero") < order.index("rows")
    assert {address for address, _ in client.log} == {"a", "b"}


@pytest.mark.parametrize(
    ("what", "line"),
    [("die", "worker a is gone; full goes"), ("stop", "worker a has been silent for 0 s; full goes")],
)
def test_the_unit_of_a_lost_or_silent_worker_goes_to_another(run, what, line):
    client = Played({"a": [what], "b": ["work"]})
    assert line in run(client, silence=0.2).printed
    assert [address for address, labels in client.log if labels == ("full",)] == ["a", "b"]


def test_a_unit_that_hangs_in_a_living_worker_is_computed_by_an_idle_one(run):
    client = Played({"a": ["hang"], "b": ["work"]})
    run(client, silence=0.2)
    assert [address for address, labels in client.log if labels == ("full",)] == ["a", "b"]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"device": "TPU v5 lite"}, "worker b is refused: on here it has device TPU v5 lite instead of cpu"),
        ({"devices": 4}, "worker b is refused: on here it has devices 4 instead of 1"),
        ({"threads": 4}, "worker b is refused: on here it has threads 4 instead of 1"),
        ({"versions": {**MACHINE["versions"], "jax": "0.9"}}, f"it has jax 0.9 instead of {MACHINE['versions']['jax']}"),
        ({"source": "abc"}, f"it has source abc instead of {MACHINE['source']}"),
        ({"compiler_flags": "XLA_FLAGS=--fast"}, "it has compiler flags XLA_FLAGS=--fast instead of none"),
    ],
)
def test_a_worker_of_another_kind_is_refused_by_one_line(run, other, line):
    client = Played({"a": ["work"], "b": ["work"]}, {"b": other})
    printed = run(client, {"device": "cpu", "devices": 1}).printed
    assert line in printed
    assert printed.count("\n") == 1
    assert {address for address, _ in client.log} == {"a"}


def test_a_worker_that_cannot_prepare_the_study_is_refused_and_its_unit_goes_to_another(run):
    client = Played({"a": [Refusal("it cannot prepare the study: there is no folder x")], "b": ["work"]})
    assert "worker a is refused: it cannot prepare the study: there is no folder x" in run(client).printed


def test_where_no_worker_fits_the_run_ends_with_the_reason(run):
    with pytest.raises(ValueError, match=r"no worker for 0 s \(the last one: it runs 8 threads; start it with --nthreads 1\)"):
        run(Played({"a": ["work"]}, threads=8), wait=0.2)


def test_an_error_of_one_machine_is_tried_again_and_one_of_the_input_is_not(run):
    client = Played({"a": [RuntimeError("out of memory"), "work"]})
    assert "full failed (RuntimeError: out of memory); it is tried again" in run(client).printed
    with pytest.raises(ValueError, match="an image is damaged"):
        run(Played({"a": [ValueError("an image is damaged")]}))


def test_an_error_everywhere_is_raised(run):
    client = Played({"a": [RuntimeError("a bug")], "b": [RuntimeError("a bug")]})
    with pytest.raises(RuntimeError, match="a bug"):
        run(client)


def test_a_unit_that_costs_worker_after_worker_ends_the_run(run):
    with pytest.raises(ValueError, match=r"(full|other) has cost 6 workers, the last one is gone; look at their memory"):
        run(Played({str(i): ["die"] for i in range(20)}))


def test_paths_of_the_study_are_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").touch()
    plugins = ["own.py", "package.module"]
    sent = Study("custom", models=["mine", "demo_reg"], data="images", plugins=plugins, cluster="local:2").for_workers()
    assert list(sent.models) == [str(tmp_path / "mine"), "demo_reg"]
    assert (sent.data, list(sent.plugins)) == (tmp_path / "images", [str(tmp_path / "own.py"), "package.module"])
    assert (Path(sent.out).is_absolute(), sent.cluster) == (True, "")
