"""Statistics of metrics: paired bootstrap intervals, paired permutation tests, Holm's correction.

A metric is a sum over independent units (images, never patches) of per-unit contributions, and a finishing function of
the total. Resampling units then is one product of a matrix of counts with the contributions, whatever the metric:

    mean of per-example scores      (score, 1)            score / count
    correspondence                  (hits, points)        hits / points
    mIoU                            confusion matrices    mean over classes of intersection / union

All of it is float64 NumPy on the host: contributions are integers most of the time, so that their sums are exact, ties
of the permutation test are true ties, and the numbers do not depend on the accelerator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt8

Numbers = Num[np.ndarray, "units *parts"] | Num[Array, "units *parts"]
PerUnit = Num[np.ndarray, "units"] | Num[Array, "units"] | Bool[np.ndarray, "units"] | Bool[Array, "units"]
Finish = Callable[[np.ndarray], np.ndarray]

CHUNK_BYTES = 2**25  # of float64 made at a time
SAME = 1 - 1e-12  # differences this close are ties that rounding has split


class Scores(NamedTuple):
    """A metric of one condition, taken apart into independent units.

    Attributes:
        contributions: of each unit, [units, *parts]; padding must have been left out (`mean_scores`, `ratio_scores`).
        finish: totals [..., *parts] -> values [...]; a pure module-level function.
    """

    contributions: Numbers
    finish: Finish


class Comparison(NamedTuple):
    """An ablated condition against the full one: `delta` = ablated - full, its interval, and the two-sided p-value."""

    delta: float
    low: float
    high: float
    p_value: float


def mean_scores(scores: PerUnit, valid: PerUnit | None = None) -> Scores:
    """The mean of per-example scores [units]; where `valid` is False there is no example."""
    scores = np.asarray(scores, np.float64)
    return ratio_scores(scores, np.ones_like(scores), valid)


def ratio_scores(numerators: PerUnit, denominators: PerUnit, valid: PerUnit | None = None) -> Scores:
    """A ratio of sums, such as hits [units] over points [units]; where `valid` is False there is no unit."""
    contributions = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=-1)
    return Scores(contributions if valid is None else contributions[np.asarray(valid, bool)], ratio)


def ratio(totals: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch"]:
    """First part over second part; NaN where the second is 0."""
    numerator, denominator = totals[..., 0], totals[..., 1]
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator != 0)


def value(scores: Scores) -> float:
    """The metric itself: `finish` of the summed contributions."""
    return float(scores.finish(_contributions(scores).sum(axis=0)))


def bootstrap(scores: Scores, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3) over units drawn with replacement.

    The same (units, resamples, seed) gives the same resamples to every condition.

    Raises:
        ValueError: there are no units, or `resamples` or `level` is out of range.
    """
    return _interval(_resampled(_contributions(scores), scores.finish, resamples, seed), level)


def compare(full: Scores, ablated: Scores, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> Comparison:
    """Ablated against full, unit by unit: difference, paired bootstrap interval, paired permutation p-value.

    The interval is the percentile interval of the difference under common resamples. The null hypothesis of the test is
    that the two conditions are exchangeable within a unit: each unit swaps them with probability 1/2 (for means of scores
    that is a sign flip of the unit's difference), and p = (1 + #{|permuted| >= |observed|}) / (1 + resamples)
    (Phipson & Smyth 2010), so that it is never 0.

    Raises:
        ValueError: the two do not have the same units, parts and finish; or see `bootstrap`.
    """
    first, second, finish = _contributions(full), _contributions(ablated), full.finish
    if first.shape != second.shape or full.finish is not ablated.finish:
        raise ValueError(
            f"the conditions are not paired: contributions {first.shape} and {second.shape}, finish {full.finish} and {ablated.finish}; "
            "compare the same metric on the same units in the same order"
        )
    totals = first.sum(axis=0), second.sum(axis=0)
    delta = float(finish(totals[1]) - finish(totals[0]))
    low, high = _interval(_resampled(second, finish, resamples, seed) - _resampled(first, finish, resamples, seed), level)
    difference = second - first
    permuted = np.empty(resamples)
    for rows, moved in _products(_swaps(len(first), resamples, seed), difference, len(first)):
        permuted[rows] = finish(totals[1] - moved) - finish(totals[0] + moved)
    extreme = int(np.sum(np.abs(permuted) >= SAME * abs(delta)))
    return Comparison(delta, low, high, (1 + extreme) / (1 + resamples))


def holm(p_values: Sequence[float] | Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Holm's (1979) step-down adjusted p-values, in the order given; below alpha they control the family-wise error.

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values must lie in [0, 1]; got {p_values}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _contributions(scores: Scores) -> Float[np.ndarray, "units *parts"]:
    contributions = np.asarray(scores.contributions, np.float64)
    if contributions.ndim < 2 or not len(contributions):
        raise ValueError(f"contributions have shape {contributions.shape}; they need at least one unit and an axis of parts")
    return contributions


def _interval(values: Float[np.ndarray, "resamples"], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1; 0.95 is the usual one")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    contributions: Float[np.ndarray, "units *parts"], finish: Finish, resamples: int, seed: int
) -> Float[np.ndarray, "resamples"]:
    """The metric on every bootstrap resample. Remembered for a while: an interval is followed by a comparison of the same scores,
    and one full condition is compared with many others."""
    return _resampled_bytes(contributions.tobytes(), contributions.shape, finish, resamples, seed)


@functools.lru_cache(maxsize=64)
def _resampled_bytes(
    contributions: bytes, shape: tuple[int, ...], finish: Finish, resamples: int, seed: int
) -> Float[np.ndarray, "resamples"]:
    unpacked = np.frombuffer(contributions, np.float64).reshape(shape)
    values = np.empty(resamples)
    for rows, totals in _products(_counts(len(unpacked), resamples, seed), unpacked, None):
        values[rows] = finish(totals)
    values.flags.writeable = False
    return values


def _products(
    weights: UInt8[np.ndarray, "resamples columns"], contributions: Float[np.ndarray, "units *parts"], packed: int | None
) -> Iterator[tuple[slice, Float[np.ndarray, "rows *parts"]]]:
    """Rows of `weights @ contributions`, a bounded number at a time; `packed` is the number of units where weights are bits."""
    units, parts = len(contributions), contributions[0].size
    flat = contributions.reshape(units, parts)
    step = max(1, CHUNK_BYTES // (8 * max(units, parts)))
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        block = weights[rows] if packed is None else np.unpackbits(weights[rows], axis=1, count=packed)
        yield rows, (block.astype(np.float64) @ flat).reshape(-1, *contributions.shape[1:])


@functools.lru_cache(maxsize=4)
def _counts(units: int, resamples: int, seed: int) -> UInt8[np.ndarray, "resamples units"]:
    """How often each unit is drawn in each resample. A byte is enough: 256 draws of one unit among n have odds below 1/256!."""
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
    """Fair coins, one bit for each unit in each permutation."""
    _check_resamples(resamples)
    return np.random.default_rng((seed, 1)).integers(0, 256, (resamples, -(-units // 8)), np.uint8)


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; at least 1 is needed, 10,000 is the usual number")
