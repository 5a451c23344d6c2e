"""The off-manifold meter against two plain runs."""

from __future__ import annotations

import numpy as np

import jaxvit
from experiments.features.extraction import Runner
from experiments.tasks import off_manifold
from jaxvit.sharding import batch_mesh
from tests.experiments.tiny_study import save_models


def test_the_meter_measures_what_it_says(tmp_path):
    """Against the same numbers from two plain runs: the last block's output is what `prenorm` returns."""
    model = jaxvit.load(save_models(tmp_path)[0])
    images = np.random.default_rng(0).integers(0, 256, (28, 64, 64, 3), np.uint8)
    runner = Runner.on(batch_mesh(), model, 16)  # as the tiny study, whose programs it shares
    statistics = runner.calibrate(images)
    ablation = jaxvit.zero("registers")
    measured = off_manifold.measure(runner, images, ablation, statistics, 0)
    pixels = jaxvit.normalise(images, model.config)
    clean, ablated = (np.asarray(jaxvit.forward(model, pixels, a).prenorm[:, 3:], np.float64) for a in (None, ablation))
    norms = [np.linalg.norm(x, axis=-1) for x in (clean, ablated)]
    cosine = (clean * ablated).sum(axis=-1) / (norms[0] * norms[1])
    np.testing.assert_allclose(measured["patch_cosine"][-1], cosine.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(measured["patch_norm_ratio"][-1], (norms[1] / norms[0]).mean(axis=1), atol=1e-5)
    moments = (part["block_output"][-1, -1].astype(np.float64) for part in (statistics.mean, statistics.variance))
    mean, variance = moments
    distance = np.sqrt(((ablated - mean) ** 2 / variance).mean(axis=-1)).mean(axis=1)
    np.testing.assert_allclose(measured["patch_mahalanobis"][-1], distance, rtol=1e-4)
    assert not measured["attention_divergence"][0].any(), "block 0 attends before anything is replaced"
    assert (measured["attention_divergence"][1] > 0).all()
    unedited = off_manifold.measure(runner, images, jaxvit.Ablation(), statistics, 0)
    assert not unedited["attention_divergence"].any()
    np.testing.assert_allclose(unedited["patch_cosine"], 1, atol=1e-5)
    assert 0.8 < unedited["patch_mahalanobis"].mean() < 1.05
