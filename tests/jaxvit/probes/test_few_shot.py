"""Few-shot regression against a statement of big_vision's definition in float64, and scikit-learn."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference

from jaxvit.probes import few_shot, ridge

CLASSES = 4
SHOTS, SEEDS = (1, 5), (0, 3)
PENALTIES = (2.0**-10, 1.0, 2.0**10, 2.0**19)


def clusters(rows: int, seed: int, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of very different size, channels of very different scale, one of them constant."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, width))
    generator = np.random.default_rng(seed)
    labels = generator.choice(CLASSES, rows, p=[0.1, 0.2, 0.3, 0.4])
    features = (centres[labels] + 1.5 * generator.normal(size=(rows, width)) - 3) * np.geomspace(1e-4, 10, width)
    features[:, 3] = 3.1415926
    return features.astype(np.float32), labels


def original(x: np.ndarray, y: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """Scores of the original: standardised by the examples, bias constant 100, targets -1 and 1, normal equations; float64."""
    x, test = x.astype(np.float64), test.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-5
    x, test = (np.pad((part - mean) / deviation, ((0, 0), (0, 1)), constant_values=100) for part in (x, test))
    targets = 2 * np.eye(CLASSES)[y] - 1
    return test @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ targets)


def big_visions_draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.permutation(np.where(labels == label)[0])[:shots] for label in range(CLASSES)])


def test_the_fixed_penalty_gives_the_scores_of_the_original_up_to_what_all_classes_share():
    """Scores without their mean over classes: 2 x ours is the original's; measured: 7e-7 of the largest."""
    (train, labels), (test, truth) = clusters(200, 0), clusters(150, 1)
    probes = few_shot.few_shot(train, labels, test, truth, CLASSES, shots=SHOTS, seeds=SEEDS)
    assert probes.correct.shape == (2, 2, 150)
    for i, shots in enumerate(SHOTS):
        for j, seed in enumerate(SEEDS):
            rows = big_visions_draw(labels, shots, seed)
            want = original(train[rows], labels[rows], test, 2.0**10)
            ours = 2 * np.asarray(ridge.predict(probes.at(i, j).readout, jnp.asarray(test)), np.float64)
            centred = want - want.mean(axis=1, keepdims=True)
            np.testing.assert_allclose(ours - ours.mean(axis=1, keepdims=True), centred, atol=3e-6 * np.abs(centred).max())
            np.testing.assert_array_equal(probes.correct[i, j], want.argmax(axis=1) == truth)
    assert 0.3 < probes.correct[0].mean() < probes.correct[1].mean() < 0.95


def test_of_a_grid_the_penalty_is_chosen_on_validation():
    (train, labels), (val, val_labels), (test, truth) = clusters(200, 0), clusters(100, 2), clusters(150, 1)
    val, val_labels = np.concatenate([val, np.full((3, 16), np.nan, np.float32)]), np.r_[val_labels, -1, -1, -1]
    probes = few_shot.few_shot(train, labels, test, truth, CLASSES, val, val_labels, (5,), (0, 3, 4), PENALTIES)
    for j, seed in enumerate((0, 3, 4)):
        rows = big_visions_draw(labels, 5, seed)
        scores = [original(train[rows], labels[rows], val[:-3], penalty) for penalty in PENALTIES]
        accuracy = [np.mean(s.argmax(axis=1) == val_labels[:-3]) for s in scores]
        best = max(range(4), key=lambda p: (accuracy[p], PENALTIES[p]))
        assert probes.chosen[0, j] == best
        assert probes.edge[0, j] == (best in (0, 3))
        want = original(train[rows], labels[rows], test, PENALTIES[best]).argmax(axis=1) == truth
        np.testing.assert_array_equal(probes.at(0, j).correct, want)


def test_the_weights_are_scikit_learns():
    """With fewer examples than channels, and the smallest penalty; measured: 2e-7 of the largest weight."""
    train, labels = clusters(200, 0)
    probes = few_shot.few_shot(train, labels, train, labels, CLASSES, shots=(2,), seeds=(7,), penalties=(2.0**-10,))
    rows = big_visions_draw(labels, 2, 7)
    x = train[rows].astype(np.float64)
    z = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-5)
    reference = Reference(alpha=2.0**-10).fit(z, np.eye(CLASSES)[labels[rows]])
    # divided by 1, not by 1e-5, the constant channel has the weight 0 as well
    np.testing.assert_allclose(probes.readout.weights[0, 0].T, reference.coef_, atol=3e-6 * np.abs(reference.coef_).max())


def test_padding_is_never_drawn():
    train, labels = clusters(200, 0)
    padded = np.concatenate([np.full((5, 16), np.nan, np.float32), train]), np.r_[np.full(5, -1), labels]
    plain, filled = (few_shot.draw(y, CLASSES, 5, 1) for y in (labels, padded[1]))
    np.testing.assert_array_equal(filled, plain + 5)


def test_bad_input_is_said_in_one_line():
    (train, labels), more = clusters(60, 0), {"penalties": (1.0, 2.0)}
    rarest = np.bincount(labels).min()
    with pytest.raises(ValueError, match=f"class 0 has {rarest} training examples, fewer than {rarest + 1} shots"):
        few_shot.few_shot(train, labels, train, labels, CLASSES, shots=(rarest + 1,))
    with pytest.raises(ValueError, match="no validation split"):
        few_shot.few_shot(train, labels, train, labels, CLASSES, shots=(1,), **more)
    with pytest.raises(ValueError, match="at least one of each"):
        few_shot.few_shot(train, labels, train, labels, CLASSES, shots=())
    with pytest.raises(ValueError, match="all positive"):
        few_shot.few_shot(train, labels, train, labels, CLASSES, shots=(1,), penalties=(0.0,))
