"""Geometry of patches and registers, against plain statements of it."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.tasks import geometry
from jaxvit.inference import value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features


def test_norms_outliers_and_cosines_of_registers():
    part = make_features()
    source, context = FeaturesByPart(test=part), make_context(size={"analysis_images": 4})
    norms = {r.metric: value(r.scores[0]) for r in geometry.patch_norms(source, context, {})}
    assert norms["norm_before_final"] == pytest.approx(part.patch_norms[:4].mean(), rel=1e-6)
    assert norms["norm"] == pytest.approx(np.linalg.norm(part.patches[:4], axis=-1).mean(), rel=1e-6)
    assert norms["outlier_share"] == pytest.approx((part.patch_norms[:4] > 150).mean())
    assert 0 < norms["outlier_share"] < 1
    (cosine,) = geometry.register_cosine(source, context, {})
    a, b = part.registers[:4, 0], part.registers[:4, 1]
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert (cosine.metric, cosine.feature, cosine.fields) == ("cosine", None, {"register_a": "r1", "register_b": "r2"})
    np.testing.assert_allclose(cosine.scores[0].contributions[:, 0], expected, atol=1e-6)


def test_the_effective_rank_of_the_table_is_the_median_over_images():
    part = make_features(images=5)
    results = geometry.effective_rank(FeaturesByPart(test=part), make_context(size={"analysis_images": 5}), {})
    values = {(r.metric, *r.fields.values()): value(r.scores[0]) for r in results}
    shares = np.linalg.svd(part.patches, compute_uv=False) ** 2
    shares /= shares.sum(axis=1, keepdims=True)
    ranks = np.exp(-(shares * np.log(shares)).sum(axis=1))
    assert values["gram_eigenvalues",] == pytest.approx(np.median(ranks), rel=1e-4)
    assert values["gram_eigenvalues_mean",] == pytest.approx(ranks.mean(), rel=1e-4)
    assert values["spectrum", 0] == pytest.approx(shares[:, 0].mean(), rel=1e-4)
    assert sum(values["spectrum", k] for k in range(8)) == pytest.approx(1, rel=1e-5)
    assert [r.fields for r in results if r.metric == "spectrum"] == [{"index": k} for k in range(8)]


def test_every_pair_of_registers_has_its_cosine():
    results = geometry.register_cosine(FeaturesByPart(test=make_features(registers=3)), make_context(size={"analysis_images": 5}), {})
    assert [tuple(r.fields.values()) for r in results] == [("r1", "r2"), ("r1", "r3"), ("r2", "r3")]
    without = geometry.register_cosine(FeaturesByPart(test=make_features(registers=0)), make_context(size={"analysis_images": 5}), {})
    assert without == []
