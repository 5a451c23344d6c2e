"""Standard errors over crossed parts against closed forms, deletion by hand and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from jaxvit.inference import Scores, bootstrap, compare, independent_units, mean_scores, over_seeds, ratio, ratio_scores, value
from jaxvit.multiway import quantile, two_sided_p

PAIRS = np.array([(a, b) for a in range(12) for b in range(12) if (a + 2 * b) % 5 < 2 and a != b])


@pytest.mark.parametrize("freedom", [1, 2.5, 14, 300, 1e6])
def test_students_t_is_scipys(freedom):
    for t in (1e-3, 0.5, 2.0, 9.0, 40.0):  # rounding of log-gamma grows with the degrees of freedom
        assert two_sided_p(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(t, freedom), rel=1e-9 + 1e-14 * freedom)
    for level in (0.5, 0.95, 0.999):
        assert quantile(level, freedom) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)
    assert two_sided_p(0.0, freedom) == 1


def half_width(scores: Scores) -> float:
    low, high = bootstrap(scores)
    assert (low + high) / 2 == pytest.approx(value(scores))
    return (high - low) / 2


def test_units_and_draws_have_the_error_of_a_crossed_design():
    """Mean over a table of units x draws: the variances of both means, without that of single cells, which both contain."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(30, 1)) + 2 * generator.normal(size=8) + 0.3 * generator.normal(size=(30, 8))
    scores = over_seeds([mean_scores(draw) for draw in table.T], drawn=True)
    units, draws = (np.var(x, ddof=1) / x.size for x in (table.mean(1), table.mean(0)))
    residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    cells = np.sum(residual**2) / (29 * 7) / 240
    freedom = (units + draws - cells) ** 2 / (units**2 / 29 + draws**2 / 7)
    assert half_width(scores) == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(units + draws - cells), rel=1e-9)


def test_draws_that_agree_add_nothing():
    scores = mean_scores(np.random.default_rng(0).normal(size=20))
    low, high = scipy.stats.t.interval(0.95, 19, *(f(scores.contributions[:, 0]) for f in (np.mean, scipy.stats.sem)))
    assert bootstrap(over_seeds([scores] * 8, drawn=True)) == pytest.approx((low, high))


def variance(scores: Scores, groups: list[np.ndarray]) -> float:
    """The jackknife's, without each group of pairs in turn."""
    total = scores.contributions.sum(axis=0)
    changes = np.array([ratio(total - scores.contributions[group].sum(axis=0)) - ratio(total) for group in groups])
    return float(((changes - changes.mean()) ** 2).sum() * (1 - 1 / len(changes)))


OF_IMAGES = [(image == PAIRS).any(axis=1) for image in range(12)]
ALIKE = [np.array([tuple(sorted(pair)) == one for pair in PAIRS.tolist()]) for one in {tuple(sorted(pair)) for pair in PAIRS.tolist()}]


def test_pairs_share_images_in_either_role():
    """Without every image: all its pairs, whether it is their source or their target; what pairs alone have counted twice is taken off."""
    generator = np.random.default_rng(0)
    hits, points = generator.integers(0, 4, len(PAIRS)) + PAIRS[:, 0] // 6, generator.integers(4, 6, len(PAIRS))
    scores = ratio_scores(hits, points)._replace(clusters=PAIRS)
    error = np.sqrt(variance(scores, OF_IMAGES) - variance(scores, ALIKE))
    assert half_width(scores) == pytest.approx(scipy.stats.t.ppf(0.975, 11) * error, rel=1e-9)
    # categories that a pair is not of do not count as images that were looked at
    padded = ratio_scores(np.append(hits, 0), np.append(points, 0))._replace(clusters=np.append(PAIRS, [[90, 91]], axis=0))
    assert bootstrap(padded) == pytest.approx(bootstrap(scores))
    assert independent_units(padded) == independent_units(scores) == 12


def test_pairs_whose_images_do_not_matter_keep_most_of_their_own_variance():
    """The difference of the two variances may be near 0 by chance: here, in a ring, the two pairs of every image cancel."""
    ring = np.stack([np.arange(12), (np.arange(12) + 1) % 12], axis=1)
    scores = ratio_scores(5 + 4.0 * (-1.0) ** np.arange(12), np.full(12, 10.0))._replace(clusters=ring)
    alike = variance(scores, [np.arange(12) == pair for pair in range(12)])
    assert half_width(scores) == pytest.approx(scipy.stats.t.ppf(0.975, 11) * np.sqrt(0.6 * alike), rel=1e-9)


def test_a_comparison_is_that_of_the_differences():
    generator = np.random.default_rng(2)
    full, ablated = (generator.normal(size=(25, 8)) + generator.normal(size=8) for _ in range(2))
    table = ablated - full
    result = compare(*(over_seeds([mean_scores(draw) for draw in t.T], drawn=True) for t in (full, ablated)))
    of_differences = over_seeds([mean_scores(draw) for draw in table.T], drawn=True)
    assert (result.low, result.high) == pytest.approx(bootstrap(of_differences))
    assert (result.p_value < 0.05) == (result.low > 0 or result.high < 0)
    same = over_seeds([mean_scores(draw) for draw in full.T], drawn=True)
    assert compare(same, same) == (0, 0, 0, 1)


def test_conditions_must_share_what_their_intervals_cover():
    scores = over_seeds([mean_scores(np.arange(5.0))] * 2)
    with pytest.raises(ValueError, match="not paired"):
        compare(scores, scores._replace(drawn=True))
