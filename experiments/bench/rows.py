"""Rows of the benchmark and how they are measured: both sides in turn, medians over the pairs."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

_REST = 0.05
"""Seconds between runs: one side's idle threads may spin for a while after their last task and would take cores from the other side."""


class Seconds(float):
    """The result of work that times itself, because only a part of it counts."""


Quantity = Literal["ratio", "seconds", "memory", "utilisation"]


@dataclass(frozen=True)
class Goal:
    """A bound on a quantity that a row measures.

    Attributes:
        quantity: "ratio" (their seconds / ours), "seconds" (ours), "memory" (our peak / theirs), "utilisation" (share of peak FLOP/s).
        bound: at least this much for ratio and utilisation, at most this much for the others.
    """

    quantity: Quantity
    bound: float

    def met(self, result: Mapping[str, Any]) -> bool | None:
        """Whether a result meets the goal; None where the quantity was not measured."""
        value = result.get(self.quantity)
        if value is None:
            return None
        return bool(value >= self.bound if self.quantity in ("ratio", "utilisation") else value <= self.bound)

    def __str__(self) -> str:
        sign = "≥" if self.quantity in ("ratio", "utilisation") else "≤"
        return f"{self.quantity} {sign} {self.bound:g}"


@dataclass(frozen=True)
class Size:
    """Full sizes, or small ones that take seconds on a CPU."""

    small: bool

    def pick(self, full: Any, small: Any) -> Any:
        return small if self.small else full


@dataclass(frozen=True)
class Case:
    """The work of a row, ready to be timed.

    Attributes:
        ours, theirs: the same work on both sides; arrays of JAX are waited for. Theirs may be absent.
        scale: (ours, theirs): by how much the work that the row names exceeds what is run, where it is too long to run.
        facts: stored with the numbers: sizes, numbers of programs compiled.
        flop: floating-point operations of `ours`, for utilisation.
        check: called once with the results of the first runs; returns further facts (how far the two sides agree).
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None = None
    scale: tuple[float, float] = (1, 1)
    facts: dict[str, Any] = field(default_factory=dict)
    flop: float | None = None
    check: Callable[[Any, Any], dict[str, Any]] | None = None


@dataclass(frozen=True)
class BenchRow:
    """One comparison of the benchmark: a line of its table.

    Attributes:
        name: chooses it on the command line.
        what, against: the work, and the opponent that does the same.
        dtype: of our side.
        goals: all must be met.
        build: prepares the case at a size, or returns a finished result.
        platform: the kind of device that the goals are for: "cpu", "gpu" or "tpu"; "any" for all.
        memory: whether peaks of resident memory are measured as well.
        estimate: where numbers come from, if not from running the work: a compiler, or rates.
        on_gpu: goals in place of `goals` where the device is a GPU.
    """

    name: str
    what: str
    against: str
    dtype: str
    goals: tuple[Goal, ...]
    build: Callable[[Size], Case | dict[str, Any]]
    platform: str = "cpu"
    memory: bool = False
    estimate: str = ""
    on_gpu: tuple[Goal, ...] = ()

    @property
    def current_goals(self) -> tuple[Goal, ...]:
        """The goals on this machine's device."""
        return self.on_gpu if self.on_gpu and jax.default_backend() == "gpu" else self.goals


PEAK_FLOPS = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12, "NVIDIA GeForce RTX 4090": 165e12}
"""Dense bfloat16 FLOP/s with float32 accumulation, by the beginning of the device kind (NVIDIA's data sheets)."""


def measure(row: BenchRow, size: Size, repeats: int) -> dict[str, Any]:
    """The result of a row: seconds are medians over repetitions, the ratio is the median of the pairs' ratios.

    Both sides run once before anything is timed, so that compilation and first allocations do not count.
    """
    case = row.build(size)
    if isinstance(case, dict):
        return case
    first = jax.block_until_ready(case.ours())
    reference = case.theirs() if case.theirs is not None else None
    facts = dict(case.facts) | (case.check(first, reference) if case.check is not None else {})
    del first, reference
    result: dict[str, Any] = {"facts": facts}
    if row.memory and case.theirs is not None:
        ours_peak, theirs_peak = peak_memory(case.ours), peak_memory(case.theirs)
        if ours_peak is not None and theirs_peak:
            result |= {"ours_peak_mb": ours_peak, "theirs_peak_mb": theirs_peak, "memory": ours_peak / theirs_peak}
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        ours.append(_seconds(case.ours) * case.scale[0])
        if case.theirs is not None:
            theirs.append(_seconds(case.theirs) * case.scale[1])
    result |= {"seconds": statistics.median(ours), "ours": ours, "repeats": repeats, "scale": list(case.scale)}
    if theirs:
        ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
        result |= {"theirs_seconds": statistics.median(theirs), "theirs": theirs, "ratio": statistics.median(ratios)}
    peak = next((flops for kind, flops in PEAK_FLOPS.items() if jax.devices()[0].device_kind.startswith(kind)), None)
    if case.flop is not None:
        result["flop_per_second"] = case.flop * case.scale[0] / result["seconds"]
        if peak is not None:
            result["utilisation"] = result["flop_per_second"] / (peak * jax.device_count())
    return result


def _seconds(work: Callable[[], Any]) -> float:
    time.sleep(_REST)
    started = time.perf_counter()
    done = jax.block_until_ready(work())
    return float(done) if isinstance(done, Seconds) else time.perf_counter() - started


def peak_memory(work: Callable[[], Any]) -> float | None:
    """Megabytes by which resident memory grows at its peak while work runs; None where Linux does not say.

    This is the memory of the host, so on an accelerator, where it says nothing about the device, it is None as well.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # gives freed memory of earlier runs back first
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now (proc(5))
        before = _resident("VmRSS")
        jax.block_until_ready(work())
        return max(_resident("VmHWM") - before, 0) / 1e3
    except (OSError, AttributeError):
        return None


def _resident(name: str) -> int:
    """A number of `/proc/self/status`, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
