"""Ridge probes against scikit-learn, and choosing on validation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Reference

from jaxvit.probes import ridge
from jaxvit.probes.selection import one_hot
from tests.jaxvit.probes.clusters import CLASSES, clusters, standardised

LAMBDAS = (1e-4, 1e-2, 1.0, 100.0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(200, 12), (40, 60)])
def test_ridge_is_scikit_learns(rows, width, soft, weighted):
    features, labels = clusters(rows, width)
    generator = np.random.default_rng(1)
    targets = generator.dirichlet(np.ones(CLASSES), rows) if soft else np.eye(CLASSES)[labels]
    weights = generator.random(rows).astype(np.float32) if weighted else np.ones(rows, np.float32)
    path = ridge.fit(jnp.asarray(features), jnp.asarray(targets, jnp.float32), LAMBDAS, jnp.asarray(weights) if weighted else None)
    predicted = ridge.predict(path, jnp.asarray(features))
    z = standardised(features, weights)
    for i, penalty in enumerate(LAMBDAS):
        reference = Reference(alpha=penalty * weights.sum(dtype=np.float64)).fit(z, targets, sample_weight=weights)
        np.testing.assert_allclose(path.weights[i].T, reference.coef_, atol=1e-6)  # measured: 2e-7
        np.testing.assert_allclose(predicted[i], reference.predict(z), atol=1e-5)


def test_without_standardisation_it_is_scikit_learns_on_raw_features():
    """Of fewer rows than channels."""
    features, labels = clusters(30, 40)
    features[:, 5] /= 10  # raw channels of very different sizes are what standardisation is for
    x, targets = jnp.asarray(features), one_hot(jnp.asarray(labels), CLASSES)
    penalty = 0.3
    readout = ridge.fit(x, targets, (penalty,), standardised=False).at(0)
    reference = Reference(alpha=penalty * len(x)).fit(features.astype(np.float64), np.asarray(targets))
    np.testing.assert_allclose(ridge.predict(readout, x), reference.predict(features), atol=1e-5)  # 1e-7 |C| / lambda


def test_a_channel_without_variance_is_divided_by_one():
    features, _ = clusters(1000)
    features[0, 3] = np.nextafter(features[0, 3], np.float32(4))  # rounding is no variance
    mean, scale = ridge.standardisation(jnp.asarray(features))
    assert scale[3] == 1
    assert mean[3] == pytest.approx(3.1415926, abs=1e-6)
    np.testing.assert_allclose(np.delete(scale, 3), np.delete(features.std(axis=0, dtype=np.float64), 3), rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -93.7])
def test_a_constant_feature_gives_the_majority_class(constant):
    features = jnp.full((50, 6), constant)
    labels = jnp.asarray([2] * 20 + [0] * 15 + [1] * 15)
    result = ridge.probe(features, labels, features, labels, features, labels, CLASSES, LAMBDAS)
    np.testing.assert_array_equal(result.correct, np.asarray(labels) == 2)
    assert result.chosen == len(LAMBDAS) - 1
    assert result.edge


def test_the_probe_chooses_on_validation_and_scores_on_test():
    splits = [clusters(120, 40, seed=s, noise=4.0) for s in range(3)]
    arrays = [jnp.asarray(a) for split in splits for a in split]
    lambdas = (*LAMBDAS, 1e4)
    result = ridge.probe(*arrays, CLASSES, lambdas)
    path = ridge.fit(arrays[0], one_hot(arrays[1], CLASSES), lambdas)
    accuracy = [np.mean(np.argmax(ridge.predict(path.at(i), arrays[2]), axis=-1) == splits[1][1]) for i in range(5)]
    best = max(range(5), key=lambda i: (accuracy[i], lambdas[i]))
    assert result.chosen == best
    assert result.edge == (best in (0, 4))
    want = np.argmax(ridge.predict(path, arrays[4])[best], axis=-1) == splits[2][1]
    np.testing.assert_array_equal(result.correct, want)


@given(st.integers(0, 1000))
def test_padding_changes_nothing(seed):
    splits = [clusters(30, 6, seed=seed + s) for s in range(3)]
    arrays = [jnp.asarray(a) for split in splits for a in split]
    junk = jnp.full((5, 6), jnp.nan)
    padded = [jnp.concatenate([a, junk if a.ndim == 2 else jnp.full(5, -1)]) for a in arrays]
    plain, filled = (ridge.probe(*inputs, CLASSES, LAMBDAS) for inputs in (arrays, padded))
    np.testing.assert_allclose(filled.readout.weights, plain.readout.weights, atol=1e-5)
    np.testing.assert_array_equal(filled.correct, np.concatenate([plain.correct, np.zeros(5)]))
    assert filled.chosen == plain.chosen


def test_a_batch_of_probes_is_a_loop():
    splits = [[jnp.stack([jnp.asarray(clusters(60, 8, seed=10 * layer + s)[0]) for layer in range(3)]) for s in range(3)], []]
    labels = [jnp.asarray(np.random.default_rng(s).integers(0, CLASSES, 60)) for s in range(3)]

    def one(train, validation, test):
        return ridge.probe(train, labels[0], validation, labels[1], test, labels[2], CLASSES, LAMBDAS)

    batch = jax.vmap(one)(*splits[0])
    for layer in range(3):
        single = one(*(s[layer] for s in splits[0]))
        np.testing.assert_array_equal(batch.correct[layer], single.correct)
        np.testing.assert_allclose(batch.readout.weights[layer], single.readout.weights, atol=1e-5)


@pytest.mark.parametrize("lambdas", [(), (0.0, 1.0)])
def test_lambdas_must_be_positive(lambdas):
    with pytest.raises(ValueError, match="all positive"):
        ridge.fit(jnp.ones((3, 2)), jnp.ones((3, 2)), lambdas)
