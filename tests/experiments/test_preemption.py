"""A machine that is taken away sends SIGTERM: the process ends in time with code 143, and nothing that was finished is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from experiments import reproduce
from tests.experiments.tiny_study import command, part, save_models

END = "stopped by SIGTERM; what was finished is kept, the same command goes on from it\n"
PROGRAM = """
import os, signal, time
from dataclasses import dataclass
from experiments import preemption, program

@dataclass
class Nothing: ...

def main(nothing):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except BaseException:
        {after}

preemption.GRACE = 0.5
program.run(main, Nothing, None)
"""


def run_until_terminated(after: str) -> tuple[int, str, float]:
    """Exit code, what stands on stderr, and seconds that a program takes that does `after` when SIGTERM interrupts it."""
    arguments = [sys.executable, "-c", PROGRAM.format(after=after)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        process.terminate()
        _, printed = process.communicate(timeout=30)
    return process.returncode, printed, time.monotonic() - started


@pytest.mark.slow
def test_a_study_that_is_stopped_by_sigterm_goes_on_without_losing_a_cell(tmp_path):
    models = save_models(tmp_path / "models")[:1]
    out, whole = tmp_path / "stopped", part(tmp_path / "whole", models)
    reproduce.reproduce(whole)
    cells = out / "cells"
    with subprocess.Popen(command(out, models), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while len(list(cells.glob("*.json"))) < 1 and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (143, END)
    finished = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 1 <= len(finished) < len(list((whole.out / "cells").glob("*.json")))
    assert not [path for path in out.rglob(".*")], "no temporary file stays"
    reproduce.reproduce(part(out, models))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "no finished cell was computed again"
    assert (out / "results.jsonl").read_bytes() == (whole.out / "results.jsonl").read_bytes()


def test_an_error_that_a_library_makes_of_the_signal_is_not_reported_as_one():
    code, printed, _ = run_until_terminated("raise RuntimeError('a callback failed')")
    assert (code, printed) == (143, END)


def test_a_program_that_does_not_come_back_is_ended_in_time():
    code, printed, seconds = run_until_terminated("time.sleep(60)")
    assert (code, printed) == (143, "")
    assert seconds < 10


def test_a_second_signal_ends_it_at_once():
    code, _, _ = run_until_terminated("os.kill(os.getpid(), signal.SIGTERM)")
    assert code == -signal.SIGTERM
