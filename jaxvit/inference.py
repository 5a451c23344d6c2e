"""Statistical inference for metrics: paired bootstrap intervals, paired permutation tests, Holm's correction.

A metric is a function (`finish`) of the sum of contributions of independent units (images, never patches). Resampling units is then
one product of a matrix of counts with the contributions, whatever the metric:

    mean of per-example scores      (score, 1)            score / count
    correspondence                  (hits, points)        hits / points
    mIoU                            confusion matrices    mean over classes of intersection / union
    median of per-example scores    (one-hot, its score)  the score in the middle of the resample
    mean over seeds of any of them  (.., seed, ..)        mean of the metric over seeds

Everything is float64 NumPy on the host: contributions are mostly integers, so that their sums are exact, ties of the permutation test
are true ties, and results do not depend on the accelerator.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt8

Numbers = Num[np.ndarray, "units *parts"] | Num[Array, "units *parts"]
PerUnit = Num[np.ndarray, "units"] | Num[Array, "units"] | Bool[np.ndarray, "units"] | Bool[Array, "units"]
Finish = Callable[[np.ndarray], np.ndarray]

CHUNK_BYTES = 2**25  # of float64 computed at a time
_WORKERS = min(4, os.cpu_count() or 1)
_TIE = 1 - 1e-12  # relative; differences closer than this are ties that rounding has split


class Scores(NamedTuple):
    """A metric of one condition, as contributions of independent units.

    Attributes:
        contributions: of each unit, [units, *parts], without padding.
        finish: maps sums of contributions [..., *parts] to values of the metric [...]; a pure module-level function.
    """

    contributions: Numbers
    finish: Finish


class Comparison(NamedTuple):
    """An ablated condition compared with the full one: `delta` = ablated - full, its interval, and the two-sided p-value."""

    delta: float
    low: float
    high: float
    p_value: float


def mean_scores(scores: PerUnit, valid: PerUnit | None = None) -> Scores:
    """The mean of per-example scores [units]; examples whose `valid` is False are left out."""
    scores = np.asarray(scores, np.float64)
    return ratio_scores(scores, np.ones_like(scores), valid)


def ratio_scores(numerators: PerUnit, denominators: PerUnit, valid: PerUnit | None = None) -> Scores:
    """A ratio of sums, such as hits [units] over points [units]; units whose `valid` is False are left out.

    Raises:
        ValueError: the arrays are not of the same units.
    """
    lengths = [np.shape(array) for array in (numerators, denominators, *(() if valid is None else (valid,)))]
    if len(set(lengths)) != 1 or len(lengths[0]) != 1:
        raise ValueError(f"scores and flags have the shapes {', '.join(map(str, lengths))}; give one number for each unit in all: (units,)")
    contributions = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=-1)
    return Scores(contributions if valid is None else contributions[np.asarray(valid, bool)], ratio)


def ratio(totals: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch"]:
    """First part over second part; NaN where the second is 0."""
    numerator, denominator = totals[..., 0], totals[..., 1]
    ratios: np.ndarray = np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator != 0)
    return ratios


def median_scores(scores: PerUnit) -> Scores:
    """The median of per-example scores [units]; of an even number the lower of the two in the middle, since resamples have ties anyway.

    Needs memory for 2 units^2 floats: for hundreds of images, not for tens of thousands.
    """
    scores = np.asarray(scores, np.float64)
    rank = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    one_hot = np.zeros((len(scores), len(scores)))
    one_hot[np.arange(len(scores)), rank] = 1
    return Scores(np.stack([one_hot, one_hot * scores[:, None]], axis=1), weighted_median)


def weighted_median(totals: Float[np.ndarray, "*batch 2 slots"]) -> Float[np.ndarray, "*batch"]:
    """The median of scores given as slots with a count (first part) and a sum of scores (second part).

    It is the smallest score that at least half of the count does not exceed.
    """
    counts, sums = totals[..., 0, :], totals[..., 1, :]
    scores = np.divide(sums, counts, out=np.full_like(sums, np.inf), where=counts > 0)
    order = np.argsort(scores, axis=-1)
    cumulative = np.cumsum(np.take_along_axis(counts, order, axis=-1), axis=-1)
    middle = np.argmax(cumulative >= cumulative[..., -1:] / 2, axis=-1)
    return np.take_along_axis(scores, np.take_along_axis(order, middle[..., None], axis=-1), axis=-1)[..., 0]


def over_seeds(scores: Sequence[Scores]) -> Scores:
    """The mean over seeds of one metric on the same units.

    Units are resampled for all seeds together, so that intervals cover the sampling of units and not that of seeds.

    Raises:
        ValueError: the seeds differ in units, parts or finish.
    """
    arrays = [_contributions(s) for s in scores]
    if len({a.shape for a in arrays}) != 1 or len({s.finish for s in scores}) != 1:
        raise ValueError(f"seeds of one metric must share units, parts and finish; got shapes {[a.shape for a in arrays]}")
    return Scores(np.stack(arrays, axis=1), _mean_over_seeds(scores[0].finish))


@functools.cache
def _mean_over_seeds(finish: Finish) -> Finish:
    """`finish` averaged over seeds; cached, so that equal metrics have the identical function."""
    return lambda totals: finish(totals).mean(axis=-1)


def mean_ratio(totals: Float[np.ndarray, "*batch kinds 2"]) -> Float[np.ndarray, "*batch"]:
    """Mean over kinds (categories, say) of first part over second part, leaving out kinds whose second part is 0; NaN if all are."""
    ratios = ratio(totals)
    defined = ~np.isnan(ratios)
    count = defined.sum(axis=-1, dtype=np.float64)
    mean: np.ndarray = np.divide(np.where(defined, ratios, 0).sum(axis=-1), count, out=np.full_like(count, np.nan), where=count > 0)
    return mean


def value(scores: Scores) -> float:
    """The value of the metric: `finish` of the summed contributions."""
    return float(scores.finish(_contributions(scores).sum(axis=0)))


def bootstrap(scores: Scores, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3) over units drawn with replacement.

    The resamples depend on the number of units, `resamples` and `seed` only, and are thus the same for all conditions. Resamples in
    which the metric is not defined (a class that none of the drawn images shows) are left out.

    Raises:
        ValueError: there are no units, or `resamples` or `level` is out of range.
    """
    return bootstrap_all([scores], resamples, seed, level)[0]


def bootstrap_all(scores: Sequence[Scores], resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> list[tuple[float, float]]:
    """The intervals (`bootstrap`) of many metrics on the same units, for little more than the cost of one.

    Raises:
        ValueError: the metrics differ in their number of units; or see `bootstrap`.
    """
    return [_interval(values, level) for values in _resampled(scores, resamples, seed)]


def compare(full: Scores, ablated: Scores, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> Comparison:
    """The comparison of an ablated with the full condition: difference, paired bootstrap interval, paired permutation p-value.

    The interval is the percentile interval of the difference under common resamples. The null hypothesis of the test is
    that the two conditions are exchangeable within a unit: in each permutation every unit swaps them with probability 1/2 (for means
    of scores a sign flip of the unit's difference), and p = (1 + #{|permuted| >= |observed|}) / (1 + resamples) (Phipson & Smyth
    2010), which is never 0.

    Raises:
        ValueError: the two do not have the same units, parts and finish; or see `bootstrap`.
    """
    return compare_all([full], [ablated], resamples, seed, level)[0]


def compare_all(
    full: Sequence[Scores], ablated: Sequence[Scores], resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> list[Comparison]:
    """The comparisons (`compare`) of many metrics on the same units, for little more than the cost of one.

    Raises:
        ValueError: see `compare`; the metrics differ in their number of units.
    """
    for first, second in zip(full, ablated, strict=True):
        shapes = _contributions(first).shape, _contributions(second).shape
        if shapes[0] != shapes[1] or first.finish is not second.finish:
            raise ValueError(
                f"the conditions are not paired: contributions {shapes[0]} and {shapes[1]}, finish {first.finish} and {second.finish}; "
                "compare the same metric on the same units in the same order"
            )
    metrics, ablated_metrics = _Columns.of(full), _Columns.of(ablated)
    total, ablated_total = metrics.columns.sum(axis=0), ablated_metrics.columns.sum(axis=0)
    deltas = [float(b - a) for a, b in zip(metrics.finish(total), metrics.finish(ablated_total), strict=True)]
    permuted = [np.empty(resamples) for _ in full]
    swaps = _swaps(metrics.units, resamples, seed)
    for rows, moved in _products(swaps, ablated_metrics.columns - metrics.columns, metrics.units):
        for values, b, a in zip(permuted, metrics.finish(ablated_total - moved), metrics.finish(total + moved), strict=True):
            values[rows] = b - a
    comparisons = []
    resampled = _resampled(full, resamples, seed), _resampled(ablated, resamples, seed)
    for delta, permuted_deltas, a, b in zip(deltas, permuted, *resampled, strict=True):
        extreme = int(np.sum(np.abs(permuted_deltas) >= _TIE * abs(delta)))
        low, high = _interval(b - a, level)
        comparisons.append(Comparison(delta, low, high, (1 + extreme) / (1 + resamples)))
    return comparisons


def holm(p_values: Sequence[float] | Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Holm's (1979) step-down adjusted p-values, in the order of `p_values`: rejecting those below alpha controls the family-wise error.

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
    if not np.isfinite(contributions).all():
        unit = int(np.argwhere(~np.isfinite(contributions))[0][0])
        raise ValueError(f"the score of unit {unit} is NaN or infinite; leave the unit out, or find out where that comes from")
    if contributions.ndim < 2 or not len(contributions):
        raise ValueError(f"contributions have shape {contributions.shape}; they need at least one unit and an axis of parts")
    return contributions


def _interval(values: Float[np.ndarray, "resamples"], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1; 0.95 is the usual one")
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Columns(NamedTuple):
    """Contributions of several metrics side by side, [units, columns], with the shape and `finish` of each metric."""

    columns: Float[np.ndarray, "units columns"]
    shapes: tuple[tuple[int, ...], ...]
    finishes: tuple[Finish, ...]

    @classmethod
    def of(cls, scores: Sequence[Scores]) -> _Columns:
        arrays = [_contributions(s) for s in scores]
        if len({len(a) for a in arrays}) != 1:
            raise ValueError(f"metrics have {sorted({len(a) for a in arrays})} units; take those with the same units together")
        columns = np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)
        return cls(columns, tuple(a.shape[1:] for a in arrays), tuple(s.finish for s in scores))

    @property
    def units(self) -> int:
        return len(self.columns)

    def finish(self, totals: Float[np.ndarray, "*batch columns"]) -> list[Float[np.ndarray, "*batch"]]:
        """The value of every metric, from the sums of all columns."""
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in self.shapes])
        parts = np.split(totals, ends[:-1], axis=-1)
        metrics = zip(parts, self.shapes, self.finishes, strict=True)
        return [finish(part.reshape(*part.shape[:-1], *shape)) for part, shape, finish in metrics]


def _resampled(scores: Sequence[Scores], resamples: int, seed: int) -> list[Float[np.ndarray, "resamples"]]:
    """The values of every metric on all bootstrap resamples.

    Cached, because an interval is followed by a comparison of the same scores, and one full condition is compared with many others.
    """
    metrics = _Columns.of(scores)
    return _resampled_bytes(metrics.columns.tobytes(), metrics.units, metrics.shapes, metrics.finishes, resamples, seed)


@functools.lru_cache(maxsize=32)
def _resampled_bytes(
    columns: bytes, units: int, shapes: tuple[tuple[int, ...], ...], finishes: tuple[Finish, ...], resamples: int, seed: int
) -> list[Float[np.ndarray, "resamples"]]:
    """`_resampled`, with arguments that can be cached."""
    metrics = _Columns(np.frombuffer(columns, np.float64).reshape(units, -1), shapes, finishes)
    resampled = [np.empty(resamples) for _ in finishes]
    for rows, totals in _products(_counts(units, resamples, seed), metrics.columns, None):
        for values, values_of_rows in zip(resampled, metrics.finish(totals), strict=True):
            values[rows] = values_of_rows
    for values in resampled:
        values.flags.writeable = False
    return resampled


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
