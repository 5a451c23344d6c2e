"""Geometry of patches and registers, against plain statements of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.tasks import geometry
from jaxvit.config import MODELS, ViTConfig
from jaxvit.inference import value
from tests.experiments.tasks.hand_made import FeaturesByPart, make_context, make_features


def test_norms_outliers_and_cosines_of_registers():
    part = make_features()
    source, context = FeaturesByPart(test=part), make_context(size={"analysis_images": 4})
    norms = {r.metric: value(r.scores[0]) for r in geometry.patch_norms(source, context, {})}
    assert norms["norm_before_final"] == pytest.approx(part.patch_norms[:4].mean(), rel=1e-6)
    assert norms["norm"] == pytest.approx(np.linalg.norm(part.patches[:4], axis=-1).mean(), rel=1e-6)
    assert not any("150" in metric for metric in norms), "the cut-off is one of DINOv2's L and g"
    of_vitl = context._replace(config=MODELS["dinov2_vitl14"])
    share = {r.metric: value(r.scores[0]) for r in geometry.patch_norms(source, of_vitl, {})}["outlier_share_above_150"]
    assert share == pytest.approx((part.patch_norms[:4] > 150).mean())
    assert 0 < share < 1
    (cosine,) = geometry.register_cosine(source, context, {})
    a, b = part.registers[:4, 0], part.registers[:4, 1]
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert (cosine.metric, cosine.feature, cosine.fields) == ("cosine", None, {"register_a": "r1", "register_b": "r2"})
    np.testing.assert_allclose(cosine.scores[0].contributions[:, 0], expected, atol=1e-6)


def test_outliers_are_patches_six_mads_above_the_median_of_all_images():
    """Norms 0, 1, ..., 100 have the median 50 and the MAD 25; two patches are put above 200, one just below."""
    norms = np.tile(np.arange(101.0), (4, 1))
    norms[0, 100], norms[1, 100], norms[2, 100] = 200.5, 300, 199.5
    part = make_features(images=4, patches=101)._replace(patch_norms=norms.astype(np.float32))
    results = geometry.patch_norms(FeaturesByPart(test=part), make_context(size={"analysis_images": 4}), {})
    (share,) = (r for r in results if r.metric == "outlier_share_6_mad")
    np.testing.assert_allclose(share.scores[0].contributions[:, 0], [1 / 101, 1 / 101, 0, 0])
    assert share.protocol == "outliers(above=6 MAD above the median of all patches, layer=last, norm=none)"


def test_the_cut_off_of_150_is_of_released_dinov2_models_of_the_publications_sizes():
    shown = {name for name, config in MODELS.items() if geometry.has_outlier_norm(config)}
    assert shown == {"dinov2_vitl14", "dinov2_vitl14_reg", "dinov2_vitg14", "dinov2_vitg14_reg"}
    assert geometry.has_outlier_norm(replace(MODELS["dinov2_vitl14"], position="plain", norm_eps=1e-5)), "of any implementation"
    assert not geometry.has_outlier_norm(ViTConfig(patch_size=8, width=96, depth=6, heads=3, mlp_dim=384, image_size=64))
    assert not geometry.has_outlier_norm(None)


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
