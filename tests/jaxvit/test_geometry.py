"""Effective rank, colours and cosines on matrices whose answer is known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxvit
from experiments.datasets.scenes import scenes
from jaxvit import geometry
from jaxvit.geometry import effective_rank, effective_rank_roy_vetterli, pairwise_cosine, pca_rgb, singular_values, unit
from tests.draws import normal


def with_spectrum(values: np.ndarray, rows: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.normal(size=(n, len(values))))[0] for n in (rows, width))
    return ((left * values) @ right.T).astype(np.float32)


def entropy_rank(values: np.ndarray) -> float:
    fractions = values / values.sum()
    return float(np.exp(-np.sum(fractions * np.log(fractions))))


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_known_spectra_have_known_ranks(shape):
    for values in (np.ones(5), np.array([1.0]), np.geomspace(1, 1e-2, 12)):
        features = jnp.asarray(with_spectrum(values, *shape))
        assert effective_rank(features) == pytest.approx(entropy_rank(values**2), rel=1e-5)
        assert effective_rank_roy_vetterli(features) == pytest.approx(entropy_rank(values), rel=1e-4)


def test_small_singular_values_are_no_noise():
    values = np.geomspace(1, 1e-5, 64)
    features = jnp.asarray(with_spectrum(values, 200, 64))
    np.testing.assert_allclose(np.sort(singular_values(features))[::-1], values, atol=1e-6)
    assert effective_rank_roy_vetterli(features) == pytest.approx(entropy_rank(values), rel=1e-4)
    low = np.random.default_rng(0).normal(size=(200, 3)) @ np.random.default_rng(1).normal(size=(3, 64))
    exact = np.linalg.svd(low, compute_uv=False)[:3]
    got = singular_values(jnp.asarray(low, jnp.float32))
    np.testing.assert_allclose(np.sort(got)[::-1], [*exact, *np.zeros(61)], atol=2e-6 * exact[0])
    assert effective_rank_roy_vetterli(jnp.asarray(low, jnp.float32)) == pytest.approx(entropy_rank(exact), rel=1e-3)


@pytest.mark.parametrize("mean", [0, 30, 300])
def test_the_rank_of_roy_and_vetterli_is_that_of_float64_on_patches_of_a_model(mean):
    """As they are, and with a mean that is many times as long, as of models whose patches point one way."""
    model = jaxvit.load("demo_reg")
    patches = np.asarray(jaxvit.forward(model, jaxvit.normalise(scenes("test", 8).images, model.config)).patches)
    patches = patches + mean * patches.mean(axis=(0, 1))
    exact = np.linalg.svd(patches.astype(np.float64), compute_uv=False)
    got = effective_rank_roy_vetterli(jnp.asarray(patches))
    np.testing.assert_allclose(got, [entropy_rank(values) for values in exact], rtol=1e-5)
    np.testing.assert_allclose(singular_values(jnp.asarray(patches))[:, ::-1], exact, atol=2e-6 * exact.max())


def test_centring_takes_the_mean_away():
    features = jnp.asarray(with_spectrum(np.ones(4), 20, 8))
    moved = features - features.mean(axis=0) + 100
    np.testing.assert_allclose(effective_rank(moved, centred=True), effective_rank(features, centred=True), rtol=1e-3)
    assert effective_rank(moved) < 1.01
    assert effective_rank(jnp.zeros((20, 8))) == 0
    assert effective_rank(jnp.ones((20, 8)), centred=True) == 0


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_rank_ignores_scale_order_and_rotation(seed, factor):
    features = np.random.default_rng(seed).normal(size=(12, 6)) * np.geomspace(1, 0.1, 6)
    generator = np.random.default_rng(seed + 1)
    turned = factor * generator.permutation(features) @ np.linalg.qr(generator.normal(size=(6, 6)))[0]
    for rank in (effective_rank, effective_rank_roy_vetterli):
        a, b = (rank(jnp.asarray(x, jnp.float32)) for x in (features, turned))
        np.testing.assert_allclose(a, b, rtol=1e-4)
        assert 1 <= a <= 6.0001


@pytest.mark.parametrize("rank", [effective_rank, effective_rank_roy_vetterli])
def test_a_batch_is_a_loop(rank):
    features = normal(0, 3, 12, 6)
    want = [rank(x) for x in features]
    np.testing.assert_allclose(rank(features), want, rtol=1e-5)
    np.testing.assert_allclose(rank(features[None]), [want], rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 9), (9, 40)])
def test_colours_are_the_principal_components(shape):
    features = with_spectrum(np.array([9.0, 5, 3, 1, 0.5]), *shape) + 2
    centred = features - features.mean(axis=0)
    _, _, right = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    loadings = right[:3] * np.sign(np.take_along_axis(right[:3], np.abs(right[:3]).argmax(axis=1)[:, None], axis=1))
    want = centred @ loadings.T
    want = (want - want.min(axis=0)) / (want.max(axis=0) - want.min(axis=0))
    np.testing.assert_allclose(pca_rgb(jnp.asarray(features)), want, atol=1e-4)
    clipped = pca_rgb(jnp.asarray(features), clip=0.2)
    assert clipped.min() == 0
    assert clipped.max() == 1
    assert (clipped == 0).sum() >= 0.15 * clipped.size


def test_colours_of_constant_features_are_finite():
    np.testing.assert_array_equal(pca_rgb(jnp.ones((8, 5))), np.zeros((8, 3)))
    with pytest.raises(ValueError, match="at least three"):
        pca_rgb(jnp.ones((8, 2)))


def test_pairwise_cosine_is_what_the_definition_says():
    tokens = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    lengths = np.linalg.norm(tokens, axis=-1, keepdims=True)
    each = np.einsum("brd,bsd->brs", tokens / lengths, tokens / lengths)
    np.testing.assert_allclose(pairwise_cosine(jnp.asarray(tokens)), each, atol=1e-6)


def test_a_zero_vector_has_no_direction():
    np.testing.assert_array_equal(unit(jnp.zeros((2, 3))), 0)
    np.testing.assert_array_equal(pairwise_cosine(jnp.zeros((2, 2, 3))), 0)


def test_participation_ratio_of_known_spectra():
    """k equal directions give k, and it is never above the effective rank; a zero matrix gives 0."""
    for k in (1, 3, 7):
        features = np.linalg.qr(np.random.default_rng(k).normal(size=(20, k)))[0] @ np.eye(k, 12) * 5
        np.testing.assert_allclose(geometry.participation_ratio(jnp.asarray(features)), k, rtol=1e-4)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(4, 20, 12)) * np.geomspace(0.1, 10, 12))
    values = np.linalg.svd(np.asarray(features), compute_uv=False) ** 2
    want = values.sum(axis=-1) ** 2 / (values**2).sum(axis=-1)
    np.testing.assert_allclose(geometry.participation_ratio(features), want, rtol=1e-3)
    assert (geometry.participation_ratio(features) <= geometry.effective_rank(features)).all()
    assert geometry.participation_ratio(jnp.zeros((5, 4))) == 0


def test_mahalanobis_counts_standard_deviations():
    generator = np.random.default_rng(0)
    mean, variance = generator.normal(size=8).astype(np.float32), np.array([4, 1, 0, 9, 1, 1, 0, 1], np.float32)
    moved = mean + 3 * np.sqrt(variance) + 100 * (variance == 0)
    assert float(geometry.mahalanobis(jnp.asarray(moved), mean, variance)) == pytest.approx(3, rel=1e-5)
    drawn = mean + np.sqrt(variance) * generator.normal(size=(500, 8))
    from scipy.spatial.distance import mahalanobis

    varies = variance > 0
    want = [mahalanobis(x[varies], mean[varies], np.diag(1 / variance[varies])) / np.sqrt(varies.sum()) for x in drawn]
    np.testing.assert_allclose(geometry.mahalanobis(jnp.asarray(drawn), mean, variance), want, rtol=1e-4)
