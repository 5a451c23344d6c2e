"""Progress on something that is no terminal: plain lines, each with cells done, rate and time left."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from experiments.study import progress


def lines(monkeypatch, seconds_per_cell: float, cells: int) -> list[str]:
    """What a run of cells of equal weight prints to a file, on a clock that only cells move."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    written = io.StringIO()
    with progress.report_progress(Console(file=written), cells, 2.0 * cells) as reporter:
        for number in range(cells):
            reporter.begin(f"cell {number}")
            clock[0] += seconds_per_cell
            reporter.end(2.0)
    return written.getvalue().splitlines()


def test_a_log_file_gets_a_line_a_minute(monkeypatch):
    printed = lines(monkeypatch, seconds_per_cell=15.0, cells=20)
    assert len(printed) == 5
    assert printed[0] == "4 of 20 cells (20 %), 0.1 a second, about 4.0 min left; now cell 3"
    assert [re.search(r"about ([\d.]+) min left", line)[1] for line in printed] == ["4.0", "3.0", "2.0", "1.0", "0.0"]
    assert not any("\x1b" in line for line in printed)


def test_a_short_run_prints_no_line(monkeypatch):
    assert lines(monkeypatch, seconds_per_cell=1.0, cells=20) == []


def test_a_cell_that_takes_long_is_reported_while_it_runs(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.5)
    written = io.StringIO()
    with progress.report_progress(Console(file=written), 2, 2.0) as reporter:
        reporter.begin("a long cell")
        deadline = time.monotonic() + 20
        while not written.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert written.getvalue() == "0 of 2 cells (0 %), 0.0 a second, time left unknown; now a long cell\n"
