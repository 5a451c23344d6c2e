"""SGD heads against torch on the same minibatches, and DINOv2's feature sets against their definition."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxvit.metrics import top1
from jaxvit.probes import sgd

CLASSES = 3
GRID = sgd.SGD(learning_rates=(0.01, 0.3, 2.0), batch=16, iterations=30, momentum=0.9, cosine=True)


def clusters(rows: int, seed: int, widths: tuple[int, ...] = (5, 8)) -> tuple[list[np.ndarray], np.ndarray]:
    """Feature sets of the same examples, and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, rows)
    centres = [np.random.default_rng(width).normal(size=(CLASSES, width)) for width in widths]
    return [(c[labels] + 1.5 * generator.normal(size=(rows, c.shape[1])) + 2).astype(np.float32) for c in centres], labels


def torchs(features: list[np.ndarray], labels: np.ndarray, settings: sgd.SGD, seed: int) -> list[list[torch.nn.Linear]]:
    """The training loop of DINOv2's linear evaluation: one optimiser over all heads, the sum of their losses."""
    heads, groups = [], []
    for i, part in enumerate(features):
        before = np.array(sgd.start(part.shape[1], CLASSES, settings, seed, i))
        heads.append([torch.nn.Linear(part.shape[1], CLASSES) for _ in settings.learning_rates])
        for head, weights, rate in zip(heads[-1], before, settings.learning_rates, strict=True):
            head.weight.data, head.bias.data = torch.tensor(weights.T.copy()), torch.zeros(CLASSES)
            groups.append({"params": head.parameters(), "lr": rate * settings.batch / 256})
    optimiser = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.iterations, eta_min=0)
    for rows in sgd.minibatches(labels, settings.batch, settings.iterations, seed):
        loss = torch.zeros(())
        for part, row in zip(features, heads, strict=True):
            for head in row:
                loss = loss + torch.nn.functional.cross_entropy(head(torch.tensor(part[rows])), torch.tensor(labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if settings.cosine:
            schedule.step()
    return heads


@pytest.mark.parametrize("settings", [GRID, sgd.SGD((0.05,), batch=64, iterations=20)], ids=["momentum, cosine", "plain"])
def test_all_heads_end_where_torchs_do(settings):
    """Measured: 4e-7."""
    features, labels = clusters(50, 0)
    trained = sgd.fit(features, labels, CLASSES, settings, seed=3)
    for heads, row in zip(trained, torchs(features, labels, settings, 3), strict=True):
        for i, head in enumerate(row):
            np.testing.assert_allclose(heads.weights[i].T, head.weight.detach(), atol=3e-6)
            np.testing.assert_allclose(heads.intercept[i], head.bias.detach(), atol=3e-6)


def test_a_set_standardised_is_a_set_of_standardised_features_and_sees_no_other_set():
    features, labels = clusters(50, 0)
    z = (features[0] - features[0].mean(axis=0)) / features[0].std(axis=0)
    want = sgd.fit([z], labels, CLASSES, GRID)[0]
    heads = sgd.fit(features, labels, CLASSES, replace(GRID, standardise=True))[0]
    np.testing.assert_allclose(heads.weights, want.weights, atol=1e-4)
    np.testing.assert_allclose(heads.losses, want.losses, atol=1e-4)
    np.testing.assert_allclose(sgd.predict(heads.at(1), jnp.asarray(features[0])), sgd.predict(want.at(1), jnp.asarray(z)), atol=1e-4)


def test_minibatches_pass_over_all_rows_before_one_comes_again_and_leave_padding_out():
    labels = np.r_[np.zeros(10, int), -1, -1, np.ones(9, int)]
    order = sgd.minibatches(labels, 6, 10, seed=1)
    assert order.shape == (10, 6)
    for start in (0, 19, 38):
        np.testing.assert_array_equal(np.sort(order.ravel()[start : start + 19]), np.flatnonzero(labels >= 0))
    assert (order != sgd.minibatches(labels, 6, 10, seed=2)).any()
    with pytest.raises(ValueError, match="padding"):
        sgd.minibatches(np.full(4, -1), 2, 1, 0)


def test_the_best_head_is_chosen_on_validation_and_used_on_test():
    (train, labels), (val, val_labels), (test, truth) = (clusters(90, seed) for seed in range(3))
    val, val_labels = [np.concatenate([part, np.full_like(part[:2], np.nan)]) for part in val], np.r_[val_labels, -1, -1]
    result = sgd.probe(train, labels, val, val_labels, test, truth, CLASSES, GRID)
    heads = sgd.fit(train, labels, CLASSES, GRID)
    scores = [
        np.asarray(part[:-2], np.float64) @ np.asarray(w, np.float64) + np.asarray(b)
        for group, part in zip(heads, val, strict=True)
        for w, b in zip(group.weights, group.intercept, strict=True)
    ]
    accuracy = [np.mean(score.argmax(axis=1) == val_labels[:-2]) for score in scores]
    best = int(np.argmax(accuracy))
    assert max(accuracy) > min(accuracy)
    assert result.chosen == best
    assert result.readout.feature_set == best // 3
    assert result.edge == (best % 3 != 1)
    assert result.readout.learning_rate == pytest.approx(GRID.learning_rates[best % 3])
    np.testing.assert_array_equal(result.correct, top1(sgd.predict(result.readout, jnp.asarray(test[best // 3])), jnp.asarray(truth)))
    assert result.correct.mean() > 0.5


def test_the_sets_of_dinov2_are_its_linear_inputs():
    generator = np.random.default_rng(0)
    cls, patches = generator.normal(size=(5, 7, 3)), generator.normal(size=(7, 4, 3))
    sets = sgd.dinov2_sets(jnp.asarray(cls), jnp.asarray(patches.mean(axis=1)))
    tokens = [(torch.tensor(patches), torch.tensor(block)) for block in cls]
    want = []
    for blocks in (1, 4):
        want.append(torch.cat([block for _, block in tokens[-blocks:]], dim=-1))
        want.append(torch.cat([want[-1], tokens[-1][0].mean(dim=1)], dim=-1))
    for ours, theirs in zip(sets, want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ValueError, match="last four"):
        sgd.dinov2_sets(jnp.asarray(cls[:3]), jnp.asarray(patches.mean(axis=1)))


def test_the_grid_of_dinov2_has_its_13_rates_at_1024_images_a_step():
    np.testing.assert_allclose(sgd.DINOV2_GRID.learning_rates, [m * 10.0**e for e in range(-5, -1) for m in (1, 2, 5)] + [0.1])
    assert (sgd.DINOV2_GRID.batch, sgd.DINOV2_GRID.iterations) == (8 * 128, 10 * 1_250)


def test_bad_input_is_said_in_one_line():
    (features, labels), other = clusters(20, 0), clusters(20, 1, (5,))
    with pytest.raises(ValueError, match="all positive"):
        sgd.SGD(())
    with pytest.raises(ValueError, match=r"momentum in \[0, 1\)"):
        sgd.SGD((0.1,), momentum=1.0)
    with pytest.raises(ValueError, match="a list of at least one"):
        sgd.fit(features[0], labels, CLASSES, GRID)
    with pytest.raises(ValueError, match="differ in number or width"):
        sgd.probe(features, labels, *other, *other, CLASSES, GRID)
