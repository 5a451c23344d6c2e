"""k-NN classification and retrieval of soft labels against plain loops over their definitions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.probes import knn
from tests.jaxvit.probes.clusters import CLASSES, clusters


def looped_knn(bank, labels, queries, k, temperature):
    predicted = []
    for query in queries:
        similarity = [query @ row / np.sqrt((query @ query) * (row @ row)) for row in bank]
        votes = np.zeros(CLASSES)
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        predicted.append(votes.argmax())
    return predicted


def test_knn_is_its_definition_for_every_k_and_chunk():
    (bank, labels), (queries, truth) = clusters(80, noise=2.0), clusters(33, seed=1, noise=2.0)
    ks = (1, 5, 20, 80)
    want = [looped_knn(bank.astype(float), labels, queries.astype(float), k, 0.07) for k in ks]
    arrays = [jnp.asarray(a) for a in (bank, labels, queries)]
    for chunk in (7, 64):
        got = knn.classify(*arrays, CLASSES, ks, chunk=chunk)
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(knn.correct(got, jnp.asarray(truth)), np.array(want) == truth)
    padded = knn.classify(jnp.concatenate([arrays[2], arrays[0]]), jnp.concatenate([jnp.full(33, -1), arrays[1]]), arrays[2], CLASSES, ks)
    np.testing.assert_array_equal(padded, want)
    np.testing.assert_array_equal(knn.correct(jnp.asarray([-1, 2]), jnp.asarray([-1, 2])), [0, 1])


def test_retrieval_averages_soft_labels():
    bank, queries = clusters(40)[0], clusters(6, seed=1)[0]
    targets = np.random.default_rng(0).dirichlet(np.ones(3), 40).astype(np.float32)
    unit = [x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (bank, queries)]
    got = knn.retrieve(jnp.asarray(bank), jnp.asarray(targets), jnp.asarray(queries), k=5, temperature=0.02)
    for query, row in zip(unit[1], np.asarray(got), strict=True):
        nearest = np.argsort(-unit[0] @ query)[:5]
        weight = np.exp(unit[0][nearest] @ query / 0.02)
        np.testing.assert_allclose(row, weight @ targets[nearest] / weight.sum(), atol=1e-4)


@pytest.mark.parametrize("ks", [(0, 5), (5, 41)])
def test_k_must_fit_the_bank(ks):
    with pytest.raises(ValueError, match="k"):
        knn.classify(jnp.ones((40, 2)), jnp.zeros(40, int), jnp.ones((3, 2)), CLASSES, ks)
