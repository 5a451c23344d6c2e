"""Statistical inference for metrics: paired intervals and tests, Holm's correction.

A metric is a function (`finish`) of the sum of contributions of units (images, never patches):

    mean of per-example scores      (score, 1)            score / count
    correspondence                  (hits, points)        hits / points
    mIoU                            confusion matrices    mean over classes of intersection / union
    median of per-example scores    (one-hot, its score)  the score in the middle of the resample
    mean over seeds of any of them  (.., seed, ..)        mean of the metric over seeds

Units that are independent, or show one thing each (digits, of which many scenes show one), are resampled by what they show: percentile
bootstrap and permutation test. Where a unit shows several things (a pair its two images), or an interval covers the draws of a read-out
too, both are made from a standard error (`jaxvit.multiway`) and Student's t.

Everything is float64 NumPy on the host: contributions are mostly integers, so that their sums are exact, ties of the permutation test
are true ties, and results do not depend on the accelerator.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jaxvit.multiway import Deletions, deletions, quantile, two_sided_p
from jaxvit.resampling import Columns, permuted_differences, resampled, single_swaps

Numbers = Num[np.ndarray, "units *parts"] | Num[Array, "units *parts"]
PerUnit = Num[np.ndarray, "units"] | Num[Array, "units"] | Bool[np.ndarray, "units"] | Bool[Array, "units"]
Finish = Callable[[np.ndarray], np.ndarray]

_TIE = 1 - 1e-12  # relative; differences closer than this are ties that rounding has split
_RARE = 10  # permutations; a p-value that fewer of them make is bounded otherwise


class Scores(NamedTuple):
    """A metric of one condition, as contributions of units.

    Attributes:
        contributions: of each unit, [units, *parts], without padding.
        finish: maps sums of contributions [..., *parts] to values of the metric [...]; a pure module-level function.
        clusters: number of the thing that each unit shows, or of its several things [units, roles], such as the digit of a scene or the
            two images of a pair: units that share one are not independent. None where all units are.
        drawn: the first axis of parts is draws of a read-out or a condition, over which `finish` takes a mean (`over_seeds`): intervals
            and tests cover the draws as well, which are the same for all units.
    """

    contributions: Numbers
    finish: Finish
    clusters: Int[np.ndarray, "units roles"] | None = None
    drawn: bool = False

    @property
    def one_way(self) -> bool:
        """Whether resampling one kind of thing is enough."""
        return not self.drawn and (self.clusters is None or np.shape(self.clusters)[1:] == (1,))


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


def over_seeds(scores: Sequence[Scores], drawn: bool = False) -> Scores:
    """The mean over seeds of one metric on the same units, which show what those of the first seed do.

    Args:
        drawn: the seeds are a sample of all that might have been, and intervals cover that too; else they cover the sampling of units
            alone, with the seeds as they are.

    Raises:
        ValueError: the seeds differ in units, parts or finish.
    """
    arrays = [_contributions(s) for s in scores]
    if len({a.shape for a in arrays}) != 1 or len({s.finish for s in scores}) != 1:
        raise ValueError(f"seeds of one metric must share units, parts and finish; got shapes {[a.shape for a in arrays]}")
    return Scores(np.stack(arrays, axis=1), _mean_over_seeds(scores[0].finish), scores[0].clusters, drawn)


@functools.cache
def _mean_over_seeds(finish: Finish) -> Finish:
    """`finish` averaged over seeds; cached, so that equal metrics have the identical function."""
    return lambda totals: finish(totals).mean(axis=-1)


def between(first: Scores, second: Scores) -> Scores:
    """The difference of a metric between two models, first minus second, on the same units.

    Compared between two conditions it is a difference of differences, with its own paired interval and test.

    Raises:
        ValueError: the two differ in units, parts or finish.
    """
    arrays = [_contributions(first), _contributions(second)]
    if arrays[0].shape != arrays[1].shape or first.finish is not second.finish:
        raise ValueError(
            f"the models are not paired: contributions {arrays[0].shape} and {arrays[1].shape}; measure both on the same units"
        )
    return first._replace(contributions=np.stack(arrays, axis=1), finish=_first_minus_second(first.finish))


@functools.cache
def _first_minus_second(finish: Finish) -> Finish:
    """`finish` of the first model minus that of the second; cached, so that equal metrics have the identical function."""

    def difference(totals: np.ndarray) -> np.ndarray:
        values = finish(totals)
        apart: np.ndarray = values[..., 0] - values[..., 1]
        return apart

    return difference


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


def independent_units(scores: Scores) -> int:
    """The number of independent units of a metric: of things that its units show; of several, those of units that contribute."""
    contributions = _contributions(scores)
    if scores.clusters is None:
        return len(contributions)
    several = scores.clusters.shape[1] > 1
    return len(np.unique(scores.clusters[contributions.reshape(len(contributions), -1).any(axis=1)] if several else scores.clusters))


def bootstrap(scores: Scores, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The interval of a metric.

    Of independent units: the percentile bootstrap (Efron & Tibshirani 1993, section 13.3) over units drawn with replacement, at
    percentiles that are moved outwards by what Student's t is wider than the normal, and the deviation of n units smaller than that of
    a population (expanded percentiles, Hesterberg 2015, section 3.3): without that 15 units give 91 % for 95. Units that show one
    thing are drawn by what they show. The resamples depend on the number of units, `resamples` and `seed` only, and are thus the same
    for all conditions. Resamples in which the metric is not defined (a class that none of the drawn images shows) are left out.

    Otherwise: value - t x error to value + t x error (`jaxvit.multiway`).

    Raises:
        ValueError: there are no units, or `resamples` or `level` is out of range.
    """
    return bootstrap_all([scores], resamples, seed, level)[0]


def bootstrap_all(scores: Sequence[Scores], resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> list[tuple[float, float]]:
    """The intervals (`bootstrap`) of many metrics, for little more than the cost of one where they are of the same units.

    Raises:
        ValueError: see `bootstrap`.
    """
    _check_level(level)
    intervals: dict[int, tuple[float, float]] = {}
    for index, (metrics,) in _together(scores):
        values = resampled(metrics, resamples, seed)
        intervals |= {i: _percentiles(v, level, metrics.units) for i, v in zip(index, values, strict=True)}
    for i, score in enumerate(scores):
        if i not in intervals:
            (single,) = _deletions(score)
            error, freedom = single.error
            reach = quantile(level, freedom) * error
            intervals[i] = value(score) - reach, value(score) + reach
    return [intervals[i] for i in range(len(scores))]


def compare(full: Scores, ablated: Scores, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> Comparison:
    """The comparison of an ablated with the full condition: difference, paired interval, paired p-value.

    Of independent units, the interval is that of `bootstrap` for the difference under common resamples. The null hypothesis of the test
    is that the two conditions are exchangeable within a unit: in each permutation every unit swaps them with probability 1/2 (for means
    of scores a sign flip of the unit's difference), and p = (1 + #{|permuted| >= |observed|}) / (1 + resamples) (Phipson & Smyth
    2010). Where fewer than 10 permutations come so far, that number says little, and p is the smaller of it and Hoeffding's (1963)
    bound 2 exp(-d^2 / 2 v) for sums of independent signs: d is the difference, v the variance of its permutations and three standard
    errors of that, or by single swaps, if that is more. For a mean the bound holds; for other metrics it does as far as they are linear.

    Otherwise: interval and p-value of Student's t, from the standard error of the difference (`jaxvit.multiway`).

    No p-value is below 2^(1 - n) of n independent units that differ: all swaps and none always come as far.

    Raises:
        ValueError: the two do not have the same units, parts and finish; or see `bootstrap`.
    """
    return compare_all([full], [ablated], resamples, seed, level)[0]


def compare_all(
    full: Sequence[Scores], ablated: Sequence[Scores], resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> list[Comparison]:
    """The comparisons (`compare`) of many metrics, for little more than the cost of one where they are of the same units.

    Raises:
        ValueError: see `compare`.
    """
    _check_level(level)
    for first, second in zip(full, ablated, strict=True):
        shapes = _contributions(first).shape, _contributions(second).shape
        if shapes[0] != shapes[1] or first.finish is not second.finish or first.drawn != second.drawn:
            raise ValueError(
                f"the conditions are not paired: contributions {shapes[0]} and {shapes[1]}, finish {first.finish} and {second.finish}; "
                "compare the same metric on the same units in the same order"
            )
    comparisons: dict[int, Comparison] = {}
    for index, (clean, changed) in _together(full, ablated):
        permuted = permuted_differences(clean, changed, resamples, seed)
        values = resampled(clean, resamples, seed), resampled(changed, resamples, seed)
        for i, permuted_deltas, a, b in zip(index, permuted, *values, strict=True):
            delta = value(ablated[i]) - value(full[i])
            low, high = _percentiles(b - a, level, clean.units)
            p_value = max(_permutation_p(delta, permuted_deltas, full[i], ablated[i]), _least_p(full[i], ablated[i]))
            comparisons[i] = Comparison(delta, low, high, p_value)
    for i, (first, second) in enumerate(zip(full, ablated, strict=True)):
        if i not in comparisons:
            delta = value(second) - value(first)
            clean_changes, ablated_changes = _deletions(first, second)
            error, freedom = ablated_changes.minus(clean_changes).error
            reach = quantile(level, freedom) * error
            p_value = two_sided_p(delta / error, freedom) if error else float(delta == 0)
            comparisons[i] = Comparison(delta, delta - reach, delta + reach, max(p_value, _least_p(first, second)))
    return [comparisons[i] for i in range(len(full))]


def _permutation_p(delta: float, permuted: Float[np.ndarray, "resamples"], full: Scores, ablated: Scores) -> float:
    """The p-value of a difference among those of permutations (`compare`); one that is not defined counts as far."""
    extreme = int(np.sum(~(np.abs(permuted) < _TIE * abs(delta))))
    p_value = (1 + extreme) / (1 + len(permuted))
    if extreme >= _RARE:
        return p_value
    permuted = permuted[np.isfinite(permuted)]
    variance = float(np.mean(permuted**2)) * (1 + 3 * math.sqrt(2 / len(permuted)))
    columns = [Columns.of([_by_thing(scores)], [scores.finish]) for scores in (full, ablated)]
    (swapped,) = single_swaps(*columns)
    variance = max(variance, float(np.nansum((delta - swapped) ** 2)) / 4)
    return min(p_value, 2 * math.exp(-(delta**2) / (2 * variance))) if variance else p_value


def _least_p(full: Scores, ablated: Scores) -> float:
    """The smallest p-value that the units which differ can have (`compare`)."""
    difference = _contributions(full) - _contributions(ablated)
    differs = difference.reshape(len(difference), -1).any(axis=1)
    things = np.arange(len(differs)) if full.clusters is None else full.clusters
    return max(math.ldexp(1.0, 1 - min(len(np.unique(things[differs])), 1000)), sys.float_info.min) if differs.any() else 1.0


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
    if scores.clusters is not None and (np.ndim(scores.clusters) != 2 or len(scores.clusters) != len(contributions)):
        raise ValueError(f"clusters have shape {np.shape(scores.clusters)} for {len(contributions)} units; give [units, things of a unit]")
    return contributions


def _together(*conditions: Sequence[Scores]) -> list[tuple[list[int], list[Columns]]]:
    """Metrics that are resampled one way, those with equal numbers of independent units side by side: (positions, of each condition)."""
    positions: dict[int, list[int]] = {}
    summed: dict[int, list[Float[np.ndarray, "things *parts"]]] = {}
    for i, pair in enumerate(zip(*conditions, strict=True)):
        if pair[0].one_way:
            summed[i] = [_by_thing(scores) for scores in pair]
            positions.setdefault(len(summed[i][0]), []).append(i)
    return [
        (index, [Columns.of([summed[i][c] for i in index], [scores[i].finish for i in index]) for c, scores in enumerate(conditions)])
        for index in positions.values()
    ]


def _by_thing(scores: Scores) -> Float[np.ndarray, "things *parts"]:
    """Contributions of independent units: those of all units that show a thing, summed."""
    contributions = _contributions(scores)
    if scores.clusters is None:
        return contributions
    numbers = np.unique(scores.clusters[:, 0], return_inverse=True)[1]
    sums = np.zeros((numbers.max() + 1, *contributions.shape[1:]))
    np.add.at(sums, numbers, contributions)
    return sums


def _deletions(*conditions: Scores) -> list[Deletions]:
    """What deleting each part of a metric changes, under conditions that are paired."""
    arrays = [_contributions(scores) for scores in conditions]
    counted = np.any([array.reshape(len(array), -1) != 0 for array in arrays], axis=(0, 2))
    return [deletions(array, s.finish, s.clusters, s.drawn, counted) for array, s in zip(arrays, conditions, strict=True)]


def _percentiles(values: Float[np.ndarray, "resamples"], level: float, units: int) -> tuple[float, float]:
    """The interval of a bootstrap distribution: expanded percentiles (`bootstrap`)."""
    tail = (1 - level) / 2
    if units > 1:
        tail = NormalDist().cdf(-math.sqrt(units / (units - 1)) * _quantile(level, units - 1))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


_quantile = functools.lru_cache(maxsize=256)(quantile)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1; 0.95 is the usual one")
