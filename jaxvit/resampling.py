"""Sums over resamples and permutations of units: one product of a matrix of counts with the contributions, whatever the metric.

What `jaxvit.inference` makes intervals and tests of. Everything is float64 NumPy on the host.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

Finish = Callable[[np.ndarray], np.ndarray]

CHUNK_BYTES = 2**25  # of float64 computed at a time
_WORKERS = min(4, os.cpu_count() or 1)


class Columns(NamedTuple):
    """Contributions of several metrics side by side, [units, columns], with the shape and `finish` of each metric."""

    columns: Float[np.ndarray, "units columns"]
    shapes: tuple[tuple[int, ...], ...]
    finishes: tuple[Finish, ...]

    @classmethod
    def of(cls, contributions: Sequence[Float[np.ndarray, "units *parts"]], finishes: Sequence[Finish]) -> Columns:
        """Those of several metrics.

        Raises:
            ValueError: they differ in their number of units.
        """
        if len({len(a) for a in contributions}) != 1:
            raise ValueError(f"metrics have {sorted({len(a) for a in contributions})} units; take those with the same units together")
        columns = np.concatenate([a.reshape(len(a), -1) for a in contributions], axis=1)
        return cls(columns, tuple(a.shape[1:] for a in contributions), tuple(finishes))

    @property
    def units(self) -> int:
        return len(self.columns)

    def finish(self, totals: Float[np.ndarray, "*batch columns"]) -> list[Float[np.ndarray, "*batch"]]:
        """The value of every metric, from the sums of all columns."""
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in self.shapes])
        parts = np.split(totals, ends[:-1], axis=-1)
        metrics = zip(parts, self.shapes, self.finishes, strict=True)
        return [finish(part.reshape(*part.shape[:-1], *shape)) for part, shape, finish in metrics]


def resampled(metrics: Columns, resamples: int, seed: int) -> list[Float[np.ndarray, "resamples"]]:
    """The values of every metric on all bootstrap resamples.

    Cached, because an interval is followed by a comparison of the same scores, and one full condition is compared with many others.
    """
    return _resampled_bytes(metrics.columns.tobytes(), metrics.units, metrics.shapes, metrics.finishes, resamples, seed)


@functools.lru_cache(maxsize=32)
def _resampled_bytes(
    columns: bytes, units: int, shapes: tuple[tuple[int, ...], ...], finishes: tuple[Finish, ...], resamples: int, seed: int
) -> list[Float[np.ndarray, "resamples"]]:
    """`resampled`, with arguments that can be cached."""
    metrics = Columns(np.frombuffer(columns, np.float64).reshape(units, -1), shapes, finishes)
    all_values = [np.empty(resamples) for _ in finishes]
    for rows, totals in _products(_counts(units, resamples, seed), metrics.columns, None):
        for values, values_of_rows in zip(all_values, metrics.finish(totals), strict=True):
            values[rows] = values_of_rows
    for values in all_values:
        values.flags.writeable = False
    return all_values


def permuted_differences(full: Columns, ablated: Columns, resamples: int, seed: int) -> list[Float[np.ndarray, "resamples"]]:
    """Ablated minus full of every metric, where in every permutation each unit has swapped its two conditions with probability 1/2."""
    total, ablated_total = full.columns.sum(axis=0), ablated.columns.sum(axis=0)
    permuted = [np.empty(resamples) for _ in full.finishes]
    for rows, moved in _products(_swaps(full.units, resamples, seed), ablated.columns - full.columns, full.units):
        for values, b, a in zip(permuted, ablated.finish(ablated_total - moved), full.finish(total + moved), strict=True):
            values[rows] = b - a
    return permuted


def single_swaps(full: Columns, ablated: Columns) -> list[Float[np.ndarray, "units"]]:
    """Ablated minus full of every metric, where one unit alone, each in turn, has swapped its two conditions."""
    total, ablated_total = full.columns.sum(axis=0), ablated.columns.sum(axis=0)
    deltas = [np.empty(full.units) for _ in full.finishes]
    step = max(1, CHUNK_BYTES // (8 * full.columns.shape[1]))
    for start in range(0, full.units, step):
        rows = slice(start, start + step)
        moved = ablated.columns[rows] - full.columns[rows]
        for values, b, a in zip(deltas, ablated.finish(ablated_total - moved), full.finish(total + moved), strict=True):
            values[rows] = b - a
    return deltas


def _products(
    weights: UInt8[np.ndarray, "resamples columns"], contributions: Float[np.ndarray, "units columns"], packed: int | None
) -> Iterator[tuple[slice, Float[np.ndarray, "rows columns"]]]:
    """The rows of `weights @ contributions`, a bounded number at a time; `packed` is the number of units if weights are packed bits."""
    units, parts = contributions.shape
    step = max(1, CHUNK_BYTES // (8 * max(units, parts)))

    def product(rows: slice) -> tuple[slice, Float[np.ndarray, "rows columns"]]:
        block = weights[rows] if packed is None else np.unpackbits(weights[rows], axis=1, count=packed)
        return rows, block.astype(np.float64) @ contributions

    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(product, (slice(start, start + step) for start in range(0, len(weights), step)))


@functools.lru_cache(maxsize=4)
def _counts(units: int, resamples: int, seed: int) -> UInt8[np.ndarray, "resamples units"]:
    """How often each unit is drawn in each resample. A byte suffices: the probability of drawing one unit 256 times is below 1/256!."""
    _check_resamples(resamples)
    generator = np.random.default_rng((seed, 0))
    counts = np.empty((resamples, units), np.uint8)
    step = max(1, CHUNK_BYTES // (8 * units))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
    return counts


@functools.lru_cache(maxsize=4)
def _swaps(units: int, resamples: int, seed: int) -> UInt8[np.ndarray, "resamples bytes"]:
    """Which units swap their conditions in each permutation, as packed random bits."""
    _check_resamples(resamples)
    return np.random.default_rng((seed, 1)).integers(0, 256, (resamples, -(-units // 8)), np.uint8)


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; at least 1 is needed, 10,000 is the usual number")
