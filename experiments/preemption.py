"""SIGTERM, which machines that are taken away send first: what is under way is discarded, and the process ends with exit code 143."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 143
"""128 + SIGTERM, which shells and schedulers take for "ended by SIGTERM"."""
GRACE = 20.0
"""Seconds after which the process ends wherever it is: machines send SIGKILL 30 seconds after SIGTERM."""

_received, _discarding = threading.Event(), threading.Event()


class Preempted(BaseException):
    """SIGTERM has come. No `Exception`, so that nothing takes it for an error of its own."""


def check_preempted() -> None:
    """Between two pieces of work: end here if SIGTERM has come and what it raised was swallowed, or the main thread has ended.

    Raises:
        Preempted: it has.
    """
    if preempted() or _discarding.is_set():
        raise Preempted


@contextlib.contextmanager
def discarding() -> Iterator[None]:
    """Inside the block `check_preempted` raises in every thread: the main one waits for the others, whose work is of no use any more."""
    _discarding.set()
    try:
        yield
    finally:
        _discarding.clear()


def preempted() -> bool:
    """Whether SIGTERM has come."""
    return _received.is_set()


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Inside the block SIGTERM raises `Preempted` in the main thread; a second one, or `GRACE` seconds, end the process as it is.

    The handler of Python waits for the main thread, which may be inside the compiler for minutes. The time is therefore kept by a
    thread that the signal wakes at once. Outside the main thread, where Python has no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before, wakeup = signal.signal(signal.SIGTERM, _receive), signal.set_wakeup_fd(writing)
    threading.Thread(target=_end_late, args=(reading,), daemon=True, name="preemption").start()
    try:
        yield
    finally:
        if not preempted():  # else the time runs on
            signal.signal(signal.SIGTERM, before)
            signal.set_wakeup_fd(wakeup)
            os.close(writing)


def _receive(number: int, frame: FrameType | None) -> None:
    _received.set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Preempted


def _end_late(reading: int) -> None:
    """Read the numbers of signals as they come, and end the process some time after SIGTERM."""
    while number := os.read(reading, 1):
        if number[0] == signal.SIGTERM:
            time.sleep(GRACE)
            os._exit(EXIT_CODE)
    os.close(reading)
