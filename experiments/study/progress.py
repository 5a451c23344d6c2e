"""How far a run is: a bar on a terminal, a plain line a minute in a log file."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

EVERY = 60.0
"""Seconds between lines."""


class ProgressReporter(Protocol):
    """Receives the label of every cell before it is computed, and its weight after."""

    def begin(self, label: str) -> None:
        """A cell with this label is next."""

    def end(self, weight: float) -> None:
        """The cell is done; its share of the work was `weight`."""


@contextlib.contextmanager
def report_progress(console: Console, cells: int, weight: float, unit: str = "cells") -> Iterator[ProgressReporter]:
    """The reporter of a run of so many cells and so much work, for as long as the block lasts.

    Args:
        unit: what a cell is called, in the plural.
    """
    if not console.is_terminal:
        with _Lines(console, cells, weight, unit) as lines:
            yield lines
        return
    columns: list[ProgressColumn] = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}")]
    if unit != "cells":  # which take from milliseconds to minutes
        columns.insert(0, _Rate(unit))
    with Progress(BarColumn(), TaskProgressColumn(), *columns, console=console) as progress:
        yield _Bar(progress, weight)


class _Rate(ProgressColumn):
    """How many a second."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


class _Bar:
    def __init__(self, progress: Progress, weight: float):
        self._progress, self._task = progress, progress.add_task("starting", total=weight)

    def begin(self, label: str) -> None:
        self._progress.update(self._task, description=label)

    def end(self, weight: float) -> None:
        self._progress.advance(self._task, weight)


class _Lines:
    """One line every `EVERY` seconds, also while a cell takes longer; none for a run that is shorter."""

    def __init__(self, console: Console, cells: int, weight: float, unit: str):
        self._console, self._cells, self._weight, self._unit = console, cells, weight, unit
        self._started = self._last = time.monotonic()
        self._cells_done, self._weight_done, self._label = 0, 0.0, "starting"
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def __enter__(self) -> _Lines:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()

    def begin(self, label: str) -> None:
        self._label = label

    def end(self, weight: float) -> None:
        self._cells_done, self._weight_done = self._cells_done + 1, self._weight_done + weight
        self._print_if_due()

    def _watch(self) -> None:
        while not self._stopped.wait(1):
            self._print_if_due()

    def _print_if_due(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last < EVERY:
                return
            self._last, elapsed = now, now - self._started
        left = "time left unknown"
        if self._weight_done:
            left = f"about {elapsed * (self._weight - self._weight_done) / self._weight_done / 60:.1f} min left"
        self._console.print(
            f"{self._cells_done} of {self._cells} {self._unit} ({100 * self._weight_done / self._weight:.0f} %), "
            f"{self._cells_done / elapsed:.1f} a second, {left}; now {self._label}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
