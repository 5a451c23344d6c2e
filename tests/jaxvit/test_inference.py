"""Intervals and p-values against SciPy, closed forms and exact enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxvit import resampling
from jaxvit.inference import (
    Scores,
    bootstrap,
    bootstrap_all,
    compare,
    compare_all,
    holm,
    independent_units,
    mean_scores,
    median_scores,
    over_seeds,
    ratio_scores,
    value,
)
from jaxvit.metrics import mean_iou

RESAMPLES = 10_000
# The standard error of the 2.5 % point of R draws from a normal is sqrt(0.025 * 0.975 / R) / density(1.96) standard deviations.
ENDPOINT_ERROR = np.sqrt(0.025 * 0.975 / RESAMPLES) / scipy.stats.norm.pdf(scipy.stats.norm.ppf(0.975))


def tail(units: int) -> float:
    """The expanded percentile of Hesterberg 2015, section 3.3, by SciPy."""
    return float(scipy.stats.norm.cdf(np.sqrt(units / (units - 1)) * scipy.stats.t.ppf(0.025, units - 1)))


def example_scores(units: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, size=units)


def confusions(units: int = 40, classes: int = 4, seed: int = 0, skill: int = 30) -> np.ndarray:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 10, (units, classes, classes))
    return counts + skill * np.eye(classes, dtype=int) * generator.integers(0, 3, (units, 1, classes))


def test_the_interval_of_a_mean_is_the_normal_one_and_scipys():
    scores = example_scores()
    low, high = bootstrap(mean_scores(scores))
    deviation = scores.std() / np.sqrt(len(scores))
    reference = scipy.stats.bootstrap((scores,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(1))
    # two independent Monte Carlo runs, five standard errors
    np.testing.assert_allclose((low, high), reference.confidence_interval, atol=5 * np.sqrt(2) * ENDPOINT_ERROR * deviation)
    # beside Monte Carlo error the skewness of the mean, 1.41 / sqrt(n), shifts an end by up to skewness (1.96^2 - 1) / 6
    skewness = np.sqrt(2 / len(scores)) * (1.96**2 - 1) / 6
    normal = scores.mean() + np.array([-1, 1]) * scipy.stats.norm.ppf(0.975) * deviation
    np.testing.assert_allclose((low, high), normal, atol=(5 * ENDPOINT_ERROR + 2 * skewness) * deviation)


def test_resampling_is_what_its_definition_says():
    """Drawing whole units and recomputing mIoU from the summed matrices, against the product with counts."""
    counts = confusions()
    low, high = bootstrap(Scores(counts, mean_iou), resamples=2_000)
    generator = np.random.default_rng(7)
    drawn = [mean_iou(counts[generator.integers(0, len(counts), len(counts))].sum(axis=0)) for _ in range(2_000)]
    tolerance = 5 * np.sqrt(2) * ENDPOINT_ERROR * np.sqrt(RESAMPLES / 2_000) * np.std(drawn)
    np.testing.assert_allclose((low, high), np.quantile(drawn, [tail(40), 1 - tail(40)]), atol=tolerance)


def test_resamples_are_paired():
    scores = example_scores()
    result = compare(mean_scores(scores), mean_scores(scores + 0.25))
    np.testing.assert_allclose((result.delta, result.low, result.high), 0.25, atol=1e-12)
    assert result.p_value < 1e-60, "a difference without exception in 300 units"


def test_a_rare_difference_has_hoeffdings_bound():
    """2 exp(-d^2 / 2 v) for signs in front of the units' differences; it is above the exact p-value, by enumeration, and not far."""
    differences = np.random.default_rng(0).gamma(8.0, size=18) - 1.5
    full, ablated = mean_scores(np.zeros(18)), mean_scores(differences)
    signs = 1 - 2 * np.array(list(itertools.product([0, 1], repeat=18)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    assert exact < compare(full, ablated).p_value <= 1 / (RESAMPLES + 1)
    many = mean_scores(np.tile(differences, 3))
    p_many = compare(mean_scores(np.zeros(54)), many).p_value
    bound = 2 * np.exp(-(differences.sum() ** 2) * 9 / (2 * 3 * (differences**2).sum()))
    assert bound <= p_many < bound**0.9, "by three standard errors of the variance larger"


def test_no_p_value_is_below_what_the_units_that_differ_can_show():
    """All swaps and none come equally far: 2^(1 - n), also where an error is 0, a metric is not linear, or floats end."""
    shapes = [(mean_scores(np.ones(n)), mean_scores(np.zeros(n))) for n in (1, 3, 12, 5000)]
    assert [compare(*pair).p_value for pair in shapes[:3]] == pytest.approx([1, 0.25, 2.0**-11], rel=0.1)
    assert compare(*shapes[3]).p_value > 0
    pair_of_images = [scores._replace(clusters=np.array([[0, 1], [2, 3], [4, 5]])) for scores in shapes[1]]
    assert compare(*pair_of_images).p_value == 2.0**-5
    # the third class is nowhere true, and predicted in one pixel of every image under one condition: no swap but all moves the mIoU back
    clean = np.zeros((12, 3, 3), int)
    clean[:, 0, 0] = clean[:, 1, 1] = 50
    wrong = clean.copy()
    wrong[:, 0, 2], wrong[:, 0, 0] = 1, 49
    assert compare(Scores(clean, mean_iou), Scores(wrong, mean_iou)).p_value >= 2.0**-11


def test_permutations_without_the_metric_count_as_far():
    full, ablated = ratio_scores(np.zeros(3), np.array([5, 0, 0])), ratio_scores(np.zeros(3), np.array([0, 5, 0]))
    assert compare(full, ablated)[0::3] == (0.0, 1.0)


def test_units_that_show_one_thing_are_drawn_by_it():
    """Intervals and tests of scenes that share digits are those of the sums over each digit."""
    generator = np.random.default_rng(1)
    digits = generator.integers(0, 30, 200)
    values = [generator.normal(size=30)[digits] + 0.1 * generator.normal(size=200) for _ in range(2)]
    scenes = [mean_scores(v)._replace(clusters=digits[:, None]) for v in values]
    summed = [ratio_scores(np.bincount(digits, v), np.bincount(digits)) for v in values]
    assert bootstrap(scenes[0], 500) == pytest.approx(bootstrap(summed[0], 500))
    assert compare(*scenes, 500) == pytest.approx(compare(*summed, 500))
    assert independent_units(scenes[0]) == 30
    wide, narrow = (np.diff(bootstrap(s)) for s in (scenes[0], mean_scores(values[0])))
    assert wide > 1.5 * narrow
    with pytest.raises(ValueError, match="clusters"):
        bootstrap(scenes[0]._replace(clusters=digits))


def test_equal_conditions_have_p_value_one():
    scores = Scores(confusions(), mean_iou)
    assert compare(scores, scores) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("metric", ["mean", "miou"])
def test_the_permutation_p_value_is_the_exact_one(metric):
    """All 2^n swaps, enumerated; five standard errors of a fraction of `RESAMPLES` draws."""
    if metric == "mean":
        generator = np.random.default_rng(3)
        full, ablated = (mean_scores(generator.integers(0, 2, 12) + extra) for extra in (0.0, 0.0))
        ablated = ablated._replace(contributions=ablated.contributions - np.array([0.4, 0.0]))
        reference = scipy.stats.permutation_test(
            (ablated.contributions[:, 0], full.contributions[:, 0]),
            lambda a, b, axis: (a - b).mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        ).pvalue
    else:
        full, ablated = (Scores(confusions(10, seed=s, skill=k), mean_iou) for s, k in ((0, 12), (1, 9)))
    both = np.stack([full.contributions, ablated.contributions])
    swaps = np.array(list(itertools.product([0, 1], repeat=both.shape[1])))
    units = np.arange(both.shape[1])
    deltas = np.array([full.finish(both[1 - s, units].sum(axis=0)) - full.finish(both[s, units].sum(axis=0)) for s in swaps])
    exact = np.mean(np.abs(deltas) >= abs(deltas[0]) - 1e-12)
    if metric == "mean":
        assert exact == pytest.approx(reference)
    assert 0.01 < exact < 0.9
    result = compare(full, ablated)
    assert result.delta == pytest.approx(deltas[0])
    assert result.p_value == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / RESAMPLES) + 1 / RESAMPLES)


def test_the_median_and_its_resamples_are_medians():
    scores = np.random.default_rng(0).normal(size=15)
    counts = resampling._counts(15, 200, 3)
    resampled = [np.sort(np.repeat(scores, row))[7] for row in counts]
    assert value(median_scores(scores)) == np.median(scores)
    assert value(median_scores(scores[:14])) == np.sort(scores[:14])[6], "of an even number the lower of the two in the middle"
    assert bootstrap(median_scores(scores), 200, 3) == pytest.approx(tuple(np.quantile(resampled, [tail(15), 1 - tail(15)])))
    assert compare(median_scores(scores), median_scores(scores + 2), 200).delta == pytest.approx(2)


def test_seeds_of_a_metric_are_resampled_together():
    """Their mean has the interval that the mean of their scores has, where the metric is a mean; seeds that agree change nothing."""
    seeds = [mean_scores(example_scores(40, seed)) for seed in range(3)]
    together = over_seeds(seeds)
    mean = mean_scores(np.mean([s.contributions[:, 0] for s in seeds], axis=0))
    assert value(together) == pytest.approx(np.mean([value(s) for s in seeds]))
    assert bootstrap(together, 300) == pytest.approx(bootstrap(mean, 300))
    other = [mean_scores(example_scores(40, seed + 5)) for seed in range(3)]
    average = mean_scores(np.mean([s.contributions[:, 0] for s in other], axis=0))
    assert compare(together, over_seeds(other), 300) == pytest.approx(compare(mean, average, 300))
    one = Scores(confusions(), mean_iou)
    assert bootstrap(over_seeds([one, one]), 300) == bootstrap(one, 300)
    with pytest.raises(ValueError, match="share units"):
        over_seeds([seeds[0], one])


def test_many_metrics_together_are_each_alone():
    full = [mean_scores(example_scores(20, 1)), Scores(confusions(20, seed=1), mean_iou), median_scores(example_scores(20, 3))]
    ablated = [mean_scores(example_scores(20, 4)), Scores(confusions(20, seed=5), mean_iou), median_scores(example_scores(20, 6))]
    np.testing.assert_allclose(bootstrap_all(full, 200), [bootstrap(s, 200) for s in full], rtol=1e-12)
    full.append(mean_scores(example_scores(21, 5)))
    ablated.append(mean_scores(example_scores(21, 7)))
    full, ablated = ([*scores, over_seeds([scores[0], scores[0]], drawn=True)] for scores in (full, ablated))
    np.testing.assert_allclose(
        compare_all(full, ablated, 200), [compare(a, b, 200) for a, b in zip(full, ablated, strict=True)], rtol=1e-12
    )


def test_resamples_without_the_metric_are_left_out():
    scores = ratio_scores(np.array([0.0, 1.0]), np.array([0.0, 1.0]))  # half of all resamples of one of the units have no point
    assert bootstrap(scores, 500) == (1.0, 1.0)


def test_holm_is_the_textbook_procedure():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, then held at the largest so far
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm([0.1, np.nan])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_order_and_padding_do_not_matter(units, random):
    units.append((3, 4, True))
    hits, points, valid = (np.array(column) for column in zip(*units, strict=True))
    scores = ratio_scores(hits, points, valid)
    without_padding = ratio_scores(hits[valid], points[valid])
    shuffled = ratio_scores(*(np.array(column) for column in zip(*random.sample(units, len(units)), strict=True)))
    assert value(scores) == value(without_padding) == value(shuffled) == hits[valid].sum() / points[valid].sum()
    assert bootstrap(scores, 200) == bootstrap(without_padding, 200)


@given(st.integers(0, 5))
def test_a_table_does_not_depend_on_how_it_is_chunked(seed):
    full, ablated = mean_scores(example_scores(50, seed)), mean_scores(example_scores(50, seed + 10))
    whole = compare(full, ablated, resamples=500, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "CHUNK_BYTES", 8 * 50 * 7)
        resampling._counts.cache_clear()
        np.testing.assert_allclose(compare(full, ablated, resamples=500, seed=seed), whole, rtol=1e-12)


def test_bad_input_says_what_is_wrong():
    scores = mean_scores(example_scores(10))
    with pytest.raises(ValueError, match="not paired"):
        compare(scores, mean_scores(example_scores(11)))
    with pytest.raises(ValueError, match="not paired"):
        compare(Scores(confusions(), mean_iou), Scores(confusions(), np.sum))
    with pytest.raises(ValueError, match="at least one unit"):
        value(mean_scores(np.zeros(0)))
    with pytest.raises(ValueError, match="level"):
        bootstrap(scores, level=95.0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(scores, resamples=0)


def test_a_metric_without_a_denominator_is_nan():
    assert np.isnan(value(ratio_scores(np.zeros(3), np.zeros(3))))
