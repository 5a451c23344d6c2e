"""Calibration against NumPy over all valid examples at once."""

from __future__ import annotations

import numpy as np
import pytest

import jaxvit
from jaxvit.sites import SITES, width_at
from tests.jaxvit import tiny

CAPTURES = {site: (lambda state, site=site: getattr(state.trace, site)) for site in SITES}


@pytest.mark.parametrize("site", SITES)
def test_calibration_equals_numpy_over_all_valid_examples(site):
    model, images = tiny.model(), tiny.images(8) * 3 + 1
    batches = [(images[:4], None), (images[4:], np.array([True, False, True, False])), (tiny.images(4, seed=1), np.zeros(4, bool))]
    statistics = jaxvit.calibrate(model, batches, sites=(site,))
    valid_images = images[np.array([0, 1, 2, 3, 4, 6])]
    streams = jaxvit.forward(model, valid_images, capture=CAPTURES).captured[site]
    streams = np.asarray(streams, np.float64).reshape(3, 6, tiny.LAYOUT.tokens, -1)
    patches = streams[:, :, 3:].reshape(3, -1, width_at(site, tiny.CONFIG))
    mean = np.concatenate([streams[:, :, :3].mean(axis=1), patches.mean(axis=1)[:, None]], axis=1)
    variance = np.concatenate([streams[:, :, :3].var(axis=1), patches.var(axis=1)[:, None]], axis=1)
    assert statistics.examples == 6
    assert statistics.image_size == tiny.SIZE
    np.testing.assert_allclose(statistics.mean[site], mean, atol=1e-5)
    np.testing.assert_allclose(statistics.variance[site], variance, rtol=1e-4, atol=1e-6)


def test_calibration_is_stable_for_a_small_variance_on_a_large_mean():
    """One-pass sums of squares would lose everything here; Chan's rule must not."""
    model = jaxvit.create(tiny.CONFIG)
    model.register_tokens[...] = model.register_tokens[...] + 100.0
    images = tiny.images(64)
    statistics = jaxvit.calibrate(model, [(images[i : i + 8], None) for i in range(0, 64, 8)], sites=("block_output",))
    streams = np.asarray(jaxvit.forward(model, images, capture="registers").captured["registers"], np.float64)
    np.testing.assert_allclose(statistics.variance["block_output"][:, 1:3], streams.var(axis=1), rtol=1e-3, atol=1e-6)


def test_calibration_refuses_nothing_and_mixed_sizes():
    with pytest.raises(ValueError, match="no valid image"):
        jaxvit.calibrate(tiny.model(), [])
    with pytest.raises(ValueError, match="use one size"):
        jaxvit.calibrate(tiny.model(), [(tiny.images(2), None), (tiny.images(2, size=(8, 8)), None)])
    with pytest.raises(ValueError, match="unknown site"):
        jaxvit.calibrate(tiny.model(), [(tiny.images(2), None)], sites=("output",))
