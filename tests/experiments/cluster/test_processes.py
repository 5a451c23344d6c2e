"""A study on real workers of this machine has the bytes of one process, whatever ends or stops on the way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import reproduce
from tests.experiments.tiny_study import command, part, save_models

pytest.importorskip("distributed", reason="needs the extra: pip install -e '.[cluster]'")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow
LIMIT = 240  # seconds that anything may take on a busy machine


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory, models) -> bytes:
    whole = part(tmp_path_factory.mktemp("runs") / "whole", models)
    reproduce.reproduce(whole)
    return (whole.out / "results.jsonl").read_bytes()


@contextlib.contextmanager
def started(arguments: list[str], cwd: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """A process in its own folder, which ends with the block."""
    cwd.mkdir(exist_ok=True)
    with (cwd / "log").open("a") as log:
        process = subprocess.Popen(arguments, cwd=cwd, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + LIMIT
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < end
        time.sleep(0.1)


def cells(out: Path) -> int:
    return len(list((out / "cells").glob("*.json")))


def test_two_local_workers_give_the_bytes_of_one_process_also_when_one_is_killed(models, expected, tmp_path):
    out = tmp_path / "out"
    with started(command(out, models, "--cluster", "local:2"), tmp_path / "driver") as driver:
        wait_for(lambda: cells(out) >= 1, driver)
        children = psutil.Process(driver.pid).children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        workers[0].kill()
        assert driver.wait(LIMIT) == 0, (tmp_path / "driver" / "log").read_text()
    assert (out / "results.jsonl").read_bytes() == expected
    assert not [path for path in out.rglob(".*")]
    assert not [worker for worker in workers if worker.is_running()], "they end with the study"


def test_workers_in_folders_of_their_own_give_the_bytes_of_one_process_also_when_one_is_stuck(models, expected, tmp_path):
    """And when the driver is killed and started again. The workers share neither folder nor cache with it, nor with each other."""
    out, out_of_dask = tmp_path / "out", [sys.executable, "-m", "dask"]
    settings = {"DASK_JAXVIT__SILENCE": "5"}
    with contextlib.ExitStack() as stack:
        listening = [
            *out_of_dask,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--dashboard-address",
            "127.0.0.1:0",
        ]
        stack.enter_context(started(listening, tmp_path / "scheduler"))
        log = tmp_path / "scheduler" / "log"
        wait_for(lambda: re.search(r"Scheduler at:\s+tcp", log.read_text()))
        address = re.search(r"Scheduler at:\s+(\S+)", log.read_text())[1]
        options = [
            "--host",
            "127.0.0.1",
            "--nthreads",
            "1",
            "--no-nanny",
            "--memory-limit",
            "0",
            "--no-dashboard",
            "--local-directory",
            ".",
        ]
        folders = [tmp_path / "first", tmp_path / "second"]
        places = [{"JAXVIT_CACHE": str(folder / "cache"), "JAXVIT_WORKER_PLACE": f"{i}/2"} for i, folder in enumerate(folders)]
        workers = [
            stack.enter_context(started([*out_of_dask, "worker", address, *options], folder, **place))
            for folder, place in zip(folders, places, strict=True)
        ]
        run = command(out, models, "--cluster", address)
        with started(run, tmp_path / "driver", **settings) as driver:
            wait_for(lambda: cells(out) >= 1, driver)
        before = cells(out)
        assert before
        with started(run, tmp_path / "driver", **settings) as driver:
            wait_for(lambda: cells(out) > before, driver)
            workers[0].send_signal(signal.SIGSTOP)
            assert driver.wait(LIMIT) == 0, (tmp_path / "driver" / "log").read_text()
        workers[0].send_signal(signal.SIGCONT)
    assert (out / "results.jsonl").read_bytes() == expected
