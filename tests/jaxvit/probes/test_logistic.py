"""Softmax regression against scikit-learn, along the path of penalties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression

from jaxvit.probes import logistic
from jaxvit.probes.selection import one_hot
from tests.jaxvit.probes.clusters import CLASSES, clusters


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_softmax_regression_agrees_with_scikit_learn(penalty):
    features, labels = load_digits(return_X_y=True)
    features, labels = features[:600].astype(np.float32), labels[:600]
    rows = np.concatenate([features, 100 + features[:7]])  # the last seven are padding
    padding = np.r_[np.ones(600), np.zeros(7)]
    ours = logistic.fit(jnp.asarray(rows), jnp.eye(10)[np.r_[labels, labels[:7]]], penalty, jnp.asarray(padding), 500, 1e-8)
    z = (features.astype(np.float64) - np.asarray(ours.mean)) / np.asarray(ours.scale)
    theirs = LogisticRegression(C=1 / (penalty * 600), tol=1e-8, max_iter=5000).fit(z, labels)
    predicted = jax.nn.softmax(logistic.predict(ours, jnp.asarray(features)))
    np.testing.assert_allclose(predicted, theirs.predict_proba(z), atol=3e-5)  # measured: 7e-6


def test_without_standardisation_it_is_scikit_learns_on_raw_features():
    """Of fewer rows than channels."""
    features, labels = clusters(30, 40)
    features[:, 5] /= 10  # raw channels of very different sizes are what standardisation is for
    x, targets = jnp.asarray(features), one_hot(jnp.asarray(labels), CLASSES)
    penalty = 0.3
    readout = logistic.fit_path(x, targets, jnp.asarray([penalty]), tolerance=1e-6, standardised=False).at(0)
    reference = LogisticRegression(C=1 / (penalty * len(x)), max_iter=5000, tol=1e-9).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(readout.weights.T, reference.coef_, atol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(logistic.predict(readout, x)), reference.predict_proba(features), atol=1e-4)


def fit_800_rows(features, targets, weights, penalty: float) -> logistic.Logistic:
    """Of one shape, and so of one program: rows of five features and targets of three classes, some of weight 0."""
    arrays = (jnp.asarray(array, jnp.float32) for array in (features, targets))
    return logistic.fit(*arrays, penalty, jnp.asarray(weights, jnp.float32), tolerance=1e-5)


def test_softmax_regression_of_soft_targets_is_that_of_repeated_rows():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 5)).astype(np.float32)
    labels = generator.integers(0, 3, (200, 4))
    rows, targets = np.repeat(features, 4, axis=0), np.eye(3, dtype=np.float32)[labels]
    hard = fit_800_rows(rows, targets.reshape(800, 3), np.ones(800), 1e-2)
    padding = np.arange(800) >= 200
    soft = fit_800_rows(
        np.where(padding[:, None], 100, np.resize(features, (800, 5))), np.resize(targets.mean(axis=1), (800, 3)), ~padding, 1e-2
    )
    np.testing.assert_allclose(soft.weights, hard.weights, atol=1e-4)


def test_softmax_regression_of_a_constant_gives_the_shares():
    readout = fit_800_rows(np.ones((800, 5)), np.eye(3)[[0, 0, 0, 0, 0, 1, 1, 2] * 100], np.ones(800), 1e-4)
    np.testing.assert_allclose(jax.nn.softmax(logistic.predict(readout, jnp.ones((1, 5)))), [[0.625, 0.25, 0.125]], atol=1e-4)


def digits(width: int = 64) -> list[np.ndarray]:
    """Features and labels of three parts of scikit-learn's digits, the last five times over, under noise; with all channels, a
    plane separates the classes of the first."""
    features, labels = load_digits(return_X_y=True)
    rows = np.concatenate([np.arange(1100), np.tile(np.arange(1100, 1797), 5)])
    noise = 6 * np.random.default_rng(0).normal(size=(len(rows), 64))
    features = (features[rows] + noise)[:, (64 - width) // 2 : (64 + width) // 2].astype(np.float32)
    parts = slice(0, 700), slice(700, 1100), slice(1100, None)
    return [array for part in parts for array in (features[part], labels[rows][part])]


def nearly_separable() -> tuple[np.ndarray, np.ndarray]:
    """Two classes that one channel of twenty all but separates, where the others can do the rest."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(400, 20))
    return features, (features[:, 0] + 0.05 * generator.normal(size=400) > 0).astype(int)


def one_class_apart() -> tuple[np.ndarray, np.ndarray]:
    """Two classes that do not differ, and one that lies far from them: its curvature is a tiny part of theirs."""
    generator = np.random.default_rng(3)
    near, apart = 0.3 * generator.normal(size=(200, 8)), 20 + 0.1 * generator.normal(size=(100, 8))
    return np.r_[near, apart], np.r_[generator.integers(0, 2, 200), np.full(100, 2)]


def one_row_far_out() -> tuple[np.ndarray, np.ndarray]:
    """Labels that features know nothing of, and a row of 1,000 standard deviations."""
    generator = np.random.default_rng(3)
    features, labels = generator.normal(size=(300, 8)), generator.integers(0, 4, 300)
    return np.r_[features, 1000 * features[:1]], np.r_[labels, labels[1:2]]


DATA = {
    "digits": lambda: digits()[:2],
    "digits, classes overlap": lambda: digits(20)[:2],
    "wine": lambda: load_wine(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "nearly separable": nearly_separable,
    "one class apart": one_class_apart,
    "one row far out": one_row_far_out,
}


def objective(features, labels, weights, intercept, penalty: float) -> float:
    """Of softmax regression in float64, exact also where it is tiny."""
    logits = features @ weights + intercept
    rows = np.arange(len(labels))
    relative = logits - logits[rows, labels][:, None]
    relative[rows, labels] = -np.inf
    return np.logaddexp(0, logsumexp(relative, axis=1)).mean() + penalty / 2 * (weights**2).sum()


def scikit_learns_objectives(features, labels, cs) -> list[float]:
    """At its own minima, from float64 and many iterations; of two classes it has one vector instead of two, and another C."""
    two = labels.max() == 1
    reference = LogisticRegression(solver="newton-cholesky" if two else "lbfgs", tol=1e-12, max_iter=20_000, warm_start=True)
    minima = []
    for c in cs:
        reference.set_params(C=2 * c if two else c).fit(features, labels)
        weights, intercept = reference.coef_.T, reference.intercept_
        if two:
            weights, intercept = np.hstack([-weights, weights]) / 2, np.r_[-intercept, intercept] / 2
        minima.append(objective(features, labels, weights, intercept, 1 / (c * len(features))))
    return minima


@pytest.mark.parametrize(
    ("name", "standardised"),
    [
        ("digits", True),
        ("digits, classes overlap", False),
        ("wine", False),
        ("breast cancer", True),
        ("nearly separable", False),
        ("one class apart", False),
        ("one row far out", True),
    ],
)
def test_the_path_converges_at_every_c_of_dinov2(name, standardised):
    """From C = 1e-6 to 1e5 the objective, in float64, is at most 1e-4 above scikit-learn's."""
    features, labels = DATA[name]()
    features, classes = features.astype(np.float32), labels.max() + 1
    penalties = 1 / (np.asarray(logistic.DINOV2_CS) * len(features))
    targets = jnp.eye(classes)[labels]
    path = logistic.fit_path(jnp.asarray(features), targets, jnp.asarray(penalties, jnp.float32), standardised=standardised)
    assert path.converged.all()
    assert path.gap.max() <= 1e-6
    z = (features.astype(np.float64) - np.asarray(path.mean, np.float64)) / np.asarray(path.scale, np.float64)
    some = [0, 12, 24, 32, 40, 44]
    minima = scikit_learns_objectives(z, labels, [logistic.DINOV2_CS[i] for i in some])
    for i, minimum in zip(some, minima, strict=True):
        weights, intercept = (np.asarray(array[i], np.float64) for array in (path.weights, path.intercept))
        ours = objective(z, labels, weights, intercept, penalties[i])
        assert ours <= (1 + 1e-4) * minimum, f"C {logistic.DINOV2_CS[i]:g}: {ours} against {minimum}"
        assert float(path.loss[i]) == pytest.approx(ours, rel=2e-5)


def test_a_c_that_did_not_converge_is_marked_and_never_chosen():
    features, labels = nearly_separable()
    parts = [(jnp.asarray(features[i::3], jnp.float32), labels[i::3]) for i in range(3)]
    cs = (1e-6, 1e2, 1e5)  # two steps are enough for the first alone, which is the worst
    result = logistic.probe(*parts[0], *parts[1], *parts[2], 2, cs, iterations=2)
    assert (int(result.chosen), int(result.unconverged), bool(result.readout.converged)) == (0, 2, True)
    none = logistic.probe(*parts[0], *parts[1], *parts[2], 2, cs[1:], iterations=2)
    assert (int(none.unconverged), bool(none.readout.converged)) == (2, False), "where none converged one is chosen, and says so"


def test_a_class_without_examples_changes_nothing():
    features, labels = one_class_apart()
    rows, penalties = jnp.asarray(features, jnp.float32), jnp.asarray([1e-2, 1e-5, 1e-8])
    present, more = (logistic.fit_path(rows, jnp.eye(classes)[labels], penalties) for classes in (3, 5))
    assert more.converged.all()
    np.testing.assert_allclose(more.loss, present.loss, rtol=1e-4)
    np.testing.assert_array_equal(np.argmax(logistic.predict(more.at(2), rows), axis=1) < 3, True)


def test_two_classes_have_scikit_learns_c():
    features, labels = nearly_separable()
    rows = jnp.asarray(features, jnp.float32), labels
    ours = logistic.probe(*rows, *rows, *rows, 2, (0.3,), standardised=False).readout
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=1000).fit(features, labels)
    np.testing.assert_allclose(ours.weights[:, 1] - ours.weights[:, 0], theirs.coef_[0], atol=2e-3)


def test_the_probe_of_dinov2_is_scikit_learns_refitted_on_train_and_validation():
    """The same C (of every fourth of the 45), and the same predictions but for near ties, on raw channels."""
    cs = logistic.DINOV2_CS[::4]
    train, labels, val, val_labels, test, truth = digits(12)
    ours = logistic.probe(train, labels, val, val_labels, test, truth, 10, cs, standardised=False, refit=True)
    reference = LogisticRegression(tol=1e-6, max_iter=20_000, warm_start=True)
    right_on_val = [reference.set_params(C=c).fit(train.astype(float), labels).score(val, val_labels) for c in cs]
    chosen = int(np.argmax(right_on_val))  # the first of equals, as in the original
    assert int(ours.chosen) == chosen
    both, both_labels = np.concatenate([train, val]).astype(float), np.concatenate([labels, val_labels])
    final = LogisticRegression(C=cs[chosen], tol=1e-6, max_iter=20_000).fit(both, both_labels)
    top = np.sort(final.predict_proba(test), axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(ours.correct)[clear], (final.predict(test) == truth)[clear])


def test_a_warm_start_saves_iterations_and_changes_no_solution():
    train, labels, *_ = digits()
    features, targets = jnp.asarray(train), jnp.eye(10)[labels]
    penalties = jnp.asarray([3e-3, 1e-3])
    path = logistic.fit_path(features, targets, penalties, iterations=500, tolerance=1e-6)
    cold = logistic.fit(features, targets, 1e-3, iterations=500, tolerance=1e-6)
    assert path.iterations[1] < cold.iterations
    np.testing.assert_allclose(path.weights[1], cold.weights, atol=1e-3)
    assert path.loss[1] == pytest.approx(float(cold.loss), rel=1e-5)


def test_the_logistic_probe_chooses_on_validation_and_scores_on_test():
    arrays = [jnp.asarray(a) for a in digits()]
    cs = (1e-4, 1e-2, 1.0, 1e4)
    result = logistic.probe(*arrays, 10, cs, iterations=500, tolerance=1e-5)
    accuracy, scores = [], []
    for c in cs:
        one = logistic.fit(arrays[0], one_hot(arrays[1], 10), 1 / (c * 700), iterations=500, tolerance=1e-6)
        accuracy.append(np.mean(np.argmax(logistic.predict(one, arrays[2]), axis=-1) == arrays[3]))
        scores.append(np.argmax(logistic.predict(one, arrays[4]), axis=-1) == arrays[5])
    best = max(range(4), key=lambda i: (accuracy[i], -cs[i]))
    assert result.chosen == best
    assert bool(result.edge) == (best in (0, 3))
    assert np.mean(np.asarray(result.correct) != scores[best]) <= 0.002
    assert float(result.readout.penalty) == pytest.approx(1 / (cs[best] * 700))
    narrow = logistic.probe(*arrays, 10, cs[1::-1], iterations=500, tolerance=1e-5)
    assert cs[1::-1][int(narrow.chosen)] == cs[max(range(2), key=lambda i: (accuracy[i], -cs[i]))], "a position in the grid as passed"
    assert narrow.edge
    padded = [jnp.concatenate([a, jnp.full((5, *a.shape[1:]), jnp.nan if a.ndim == 2 else -1, a.dtype)]) for a in arrays]
    both = [jnp.stack([a, 2 * a]) if a.ndim == 2 else a for a in padded]  # twice the features are the same problem
    filled = logistic.probe_many(*both, 10, cs, iterations=500, tolerance=1e-5)
    np.testing.assert_array_equal(filled.chosen, [best, best])
    assert not np.asarray(filled.correct[:, -5:]).any()
    assert np.abs(np.asarray(filled.correct)[:, :-5] - np.asarray(result.correct)).mean(axis=1).max() <= 0.002
    with pytest.raises(ValueError, match="all positive"):
        logistic.probe(*arrays, 10, ())


def test_the_path_of_dinov2_has_45_values_from_a_millionth_to_a_hundred_thousand():
    np.testing.assert_allclose(logistic.DINOV2_CS, 10 ** np.linspace(-6, 5, 45))
