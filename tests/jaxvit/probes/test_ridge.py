"""Probes against scikit-learn and plain loops over their definitions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as Reference

from jaxvit.probes import knn, logistic, ridge, segmentation
from jaxvit.probes.selection import one_hot, select

CLASSES = 4
LAMBDAS = (1e-4, 1e-2, 1.0, 100.0)


def clusters(rows: int = 200, width: int = 12, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features with channels of very different mean and scale, one constant and one massive."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, rows)
    features = (centres[labels] + noise * generator.normal(size=(rows, width))) * np.geomspace(0.1, 10, width)
    features[:, 3] = 3.1415926
    features[:, 5] -= 93
    return features.astype(np.float32), labels


def standardised(features: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    x = features.astype(np.float64)
    mean = np.average(x, axis=0, weights=weights)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    return (x - mean) / np.where(scale > 1e-9, scale, 1)


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


def test_without_standardisation_read_outs_are_scikit_learns_on_raw_features():
    """Of fewer rows than channels."""
    features, labels = clusters(30, 40)
    features[:, 5] /= 10  # raw channels of very different sizes are what standardisation is for
    x, targets = jnp.asarray(features), one_hot(jnp.asarray(labels), CLASSES)
    penalty = 0.3
    found = ridge.fit(x, targets, (penalty,), standardised=False).at(0)
    reference = Reference(alpha=penalty * len(x)).fit(features.astype(np.float64), np.asarray(targets))
    np.testing.assert_allclose(ridge.predict(found, x), reference.predict(features), atol=1e-5)  # 1e-7 |C| / lambda
    raw = logistic.fit_path(x, targets, jnp.asarray([penalty]), tolerance=1e-6, standardised=False).at(0)
    reference = LogisticRegression(C=1 / (penalty * len(x)), max_iter=5000, tol=1e-9).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(raw.weights.T, reference.coef_, atol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(logistic.predict(raw, x)), reference.predict_proba(features), atol=1e-4)


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


def test_ties_go_to_the_larger_lambda_in_any_order():
    features, labels = clusters(noise=0.01)
    targets = one_hot(jnp.asarray(labels), CLASSES)
    path = ridge.fit(jnp.asarray(features), targets, (1e-2, 1e-1, 1e-3))
    assert select(path, ridge.predict, path.lambdas, jnp.asarray(features), targets) == 1


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


def ties(rows: int, seed: int) -> np.ndarray:
    """Vectors of length exactly 1 whose cosines are multiples of a quarter: many are equal, and no order of sums changes one."""
    generator = np.random.default_rng(seed)
    signs = generator.choice([-0.5, 0.5], (rows, 4))
    vectors = np.zeros((rows, 6), np.float32)
    np.put_along_axis(vectors, generator.random((rows, 6)).argsort(axis=1)[:, :4], signs, axis=1)
    return vectors


@pytest.mark.parametrize(("k", "rows"), [(1, 64), (7, 1000), (60, 13)])
def test_of_equally_near_rows_the_lower_index_comes_first_whatever_the_chunks(k, rows):
    """Against a stable sort; 450 rows are no multiple of the chunks, and with k 60 rows that are not valid are among the nearest."""
    bank, queries = ties(450, 0), ties(9, 1)
    valid = np.random.default_rng(2).random(450) < (0.1 if k == 60 else 0.8)
    bank[~valid] = np.nan
    cosine = np.where(valid, queries @ np.nan_to_num(bank).T, -np.inf)
    want = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    similarity, index = knn.nearest(jnp.asarray(queries), jnp.asarray(bank), k, jnp.asarray(valid), chunk=4, rows=rows)
    np.testing.assert_array_equal(index, want)
    np.testing.assert_array_equal(similarity, np.take_along_axis(cosine, want, axis=1))


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


def test_chunks_hold_at_least_one_row():
    with pytest.raises(ValueError, match="at least 1"):
        knn.nearest(jnp.ones((3, 2)), jnp.ones((4, 2)), 1, rows=0)


def test_class_shares_count_pixels():
    generator = np.random.default_rng(0)
    labels = np.where(generator.random((2, 6, 9)) < 0.3, 255, generator.integers(0, CLASSES, (2, 6, 9))).astype(np.uint8)
    labels[0, :3, :3] = 255
    shares, weights = segmentation.class_shares(jnp.asarray(labels), CLASSES, 3)
    for image, patch in np.ndindex(2, 6):
        row, column = divmod(patch, 3)
        pixels = labels[image, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].ravel()
        pixels = pixels[pixels != 255]
        assert weights[image, patch] == pytest.approx(len(pixels) / 9)
        want = np.bincount(pixels, minlength=CLASSES) / max(len(pixels), 1)
        np.testing.assert_allclose(shares[image, patch], want, atol=1e-6)
    with pytest.raises(ValueError, match="whole patches"):
        segmentation.class_shares(jnp.asarray(labels), CLASSES, 4)


def test_pixels_are_predicted_from_bilinear_scores():
    scores = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    height, width = 21, 20
    want = np.empty((1, height, width), int)
    for y, x in np.ndindex(height, width):
        row, column = (np.clip((p + 0.5) * n / size - 0.5, 0, n - 1) for p, n, size in ((y, 3, height), (x, 4, width)))
        r, c = min(int(row), 1), min(int(column), 2)
        fy, fx = row - r, column - c
        top, bottom = (scores[0, q, c] * (1 - fx) + scores[0, q, c + 1] * fx for q in (r, r + 1))
        want[0, y, x] = np.argmax(top * (1 - fy) + bottom * fy)
    np.testing.assert_array_equal(segmentation.predict_pixels(jnp.asarray(scores), (height, width)), want)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_softmax_regression_agrees_with_scikit_learn(penalty):
    features, labels = load_digits(return_X_y=True)
    features, labels = features[:600].astype(np.float32), labels[:600]
    rows = np.concatenate([features, 100 + features[:7]])  # the last seven are padding
    padding = np.r_[np.ones(600), np.zeros(7)]
    ours = logistic.fit(jnp.asarray(rows), jnp.eye(10)[np.r_[labels, labels[:7]]], penalty, jnp.asarray(padding), 500, 1e-6)
    z = (features.astype(np.float64) - np.asarray(ours.mean)) / np.asarray(ours.scale)
    theirs = LogisticRegression(C=1 / (penalty * 600), tol=1e-8, max_iter=5000).fit(z, labels)
    found = jax.nn.softmax(logistic.predict(ours, jnp.asarray(features)))
    np.testing.assert_allclose(found, theirs.predict_proba(z), atol=3e-5)  # measured: 7e-6


def test_softmax_regression_of_soft_targets_is_that_of_repeated_rows():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 5)).astype(np.float32)
    labels = generator.integers(0, 3, (200, 4))
    soft = logistic.fit(jnp.asarray(features), jnp.eye(3)[labels].mean(axis=1), 1e-2, tolerance=1e-5)
    hard = logistic.fit(jnp.asarray(np.repeat(features, 4, axis=0)), jnp.eye(3)[labels.ravel()], 1e-2, tolerance=1e-5)
    np.testing.assert_allclose(soft.weights, hard.weights, atol=1e-4)


def test_softmax_regression_of_a_constant_gives_the_shares():
    found = logistic.fit(jnp.ones((40, 3)), jnp.eye(2)[np.arange(40) % 4 // 3])
    np.testing.assert_allclose(jax.nn.softmax(logistic.predict(found, jnp.ones((1, 3)))), [[0.75, 0.25]], atol=1e-4)


CS = tuple(10.0**e for e in range(-6, 6))


def digits(width: int = 64) -> list[np.ndarray]:
    """Features and labels of three parts of scikit-learn's digits, the last five times over, under noise; with all channels, a
    plane separates the classes of the first."""
    features, labels = load_digits(return_X_y=True)
    rows = np.concatenate([np.arange(1100), np.tile(np.arange(1100, 1797), 5)])
    noise = 6 * np.random.default_rng(0).normal(size=(len(rows), 64))
    features = (features[rows] + noise)[:, (64 - width) // 2 : (64 + width) // 2].astype(np.float32)
    parts = slice(0, 700), slice(700, 1100), slice(1100, None)
    return [array for part in parts for array in (features[part], labels[rows][part])]


@pytest.mark.parametrize(("width", "cs"), [(20, CS), (64, CS[:-1])], ids=["overlapping", "separable"])
def test_the_path_agrees_with_scikit_learn_at_every_c(width, cs):
    """Relative loss within 1e-4 and accuracy within 0.2 points, from C = 1e-6 to 1e5 (to 1e4 where classes are separable: beyond, the
    loss itself is 3e-5, and float32 is off by 4e-4 of it); measured otherwise: 3e-6."""
    train, labels, _, _, test, truth = digits(width)
    penalties = jnp.asarray([1 / (c * len(train)) for c in cs])
    path = logistic.fit_path(jnp.asarray(train), jnp.eye(10)[labels], penalties, iterations=500, tolerance=1e-7)
    mean, scale = np.asarray(path.mean), np.asarray(path.scale)
    z = (train.astype(np.float64) - mean) / scale
    for i, c in enumerate(cs):
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(z, labels)
        entropy = -np.mean(theirs.predict_log_proba(z)[np.arange(len(z)), labels])
        want = entropy + float(penalties[i]) / 2 * np.sum(theirs.coef_**2)
        assert abs(float(path.loss[i]) - want) <= 1e-4 * want, f"C {c}: {path.loss[i]} against {want}, gradient {path.gradient_norm[i]}"
        predicted = np.argmax(logistic.predict(path.at(i), jnp.asarray(test)), axis=-1)
        ours, accuracy = np.mean(predicted == truth), np.mean(theirs.predict((test - mean) / scale) == truth)
        assert abs(ours - accuracy) <= 0.002, f"C {c}: {ours} against {accuracy}"
        assert path.gradient_norm[i] < 1e-5
        assert path.iterations[i] <= 500


def test_a_warm_start_saves_iterations_and_changes_no_solution():
    train, labels, *_ = digits()
    features, targets = jnp.asarray(train), jnp.eye(10)[labels]
    penalties = jnp.asarray([3e-3, 1e-3])
    path = logistic.fit_path(features, targets, penalties, tolerance=1e-6)
    cold = logistic.fit(features, targets, 1e-3, tolerance=1e-6)
    assert path.iterations[1] < cold.iterations
    np.testing.assert_allclose(path.weights[1], cold.weights, atol=1e-3)
    assert path.loss[1] == pytest.approx(float(cold.loss), rel=1e-5)


def test_the_logistic_probe_chooses_on_validation_and_scores_on_test():
    arrays = [jnp.asarray(a) for a in digits()]
    cs = (1e-4, 1e-2, 1.0, 1e4)
    result = logistic.probe(*arrays, 10, cs, iterations=500, tolerance=1e-5)
    accuracy, scores = [], []
    for c in cs:
        one = logistic.fit(arrays[0], one_hot(arrays[1], 10), 1 / (c * 700), iterations=500, tolerance=1e-5)
        accuracy.append(np.mean(np.argmax(logistic.predict(one, arrays[2]), axis=-1) == arrays[3]))
        scores.append(np.argmax(logistic.predict(one, arrays[4]), axis=-1) == arrays[5])
    best = max(range(4), key=lambda i: (accuracy[i], -cs[i]))
    assert result.chosen == best
    assert bool(result.edge) == (best in (0, 3))
    assert np.mean(np.asarray(result.correct) != scores[best]) <= 0.002
    assert float(result.readout.penalty) == pytest.approx(1 / (cs[best] * 700))
    narrow = logistic.probe(*arrays, 10, cs[1::-1], iterations=500, tolerance=1e-5)
    assert cs[1::-1][int(narrow.chosen)] == cs[max(range(2), key=lambda i: (accuracy[i], -cs[i]))], "a position in the grid as it was given"
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


def test_many_problems_are_a_loop():
    splits = [[clusters(rows, 6, seed=10 * problem + rows, noise=4.0) for problem in range(3)] for rows in (60, 40, 50)]
    arrays = [jnp.asarray(np.stack(array)) for split in splits for array in zip(*split, strict=True)]
    found = ridge.probe_many(*arrays, CLASSES, LAMBDAS, together=2)
    for problem in range(3):
        one = ridge.probe(*(a[problem] for a in arrays), CLASSES, LAMBDAS)
        np.testing.assert_array_equal(found.correct[problem], one.correct)
        assert found.chosen[problem] == one.chosen
        np.testing.assert_allclose(found.readout.weights[problem], one.readout.weights, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[2, 3\] problems"):
        ridge.probe_many(*arrays[:4], arrays[4][:2], arrays[5][:2], CLASSES)


def test_two_devices_find_what_one_finds():
    """In a process of its own, which has two devices; three problems and seven queries do not divide evenly."""
    script = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jaxvit.probes import knn, ridge
from jaxvit.sharding import batch_mesh, replicate
mesh, generator = batch_mesh(), np.random.default_rng(0)
assert mesh.size == 2
features = [generator.normal(size=(3, rows, 4)).astype(np.float32) for rows in (40, 20, 30)]
labels = [generator.integers(0, 3, rows) for rows in (40, 20, 30)]
arrays = [array for part in zip(features, labels) for array in part]
one, two = (ridge.probe_many(*arrays, 3, (1e-2, 1.0), mesh=where) for where in (None, mesh))
assert len(two.correct.sharding.device_set) == 2
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
bank, queries = features[0][0], features[1][0, :7]
np.testing.assert_array_equal(*(knn.classify(bank, labels[0], queries, 3, (1, 5), rows=16, mesh=where) for where in (None, mesh)))
there = replicate((bank, labels[0], queries), mesh)  # what is on the mesh already
np.testing.assert_array_equal(knn.classify(*there, 3, (1, 5), mesh=mesh), knn.classify(bank, labels[0], queries, 3, (1, 5)))
found = (knn.retrieve(where[0], where[0], where[2], 3, mesh=mesh) for where in (there, (bank, labels[0], queries)))
np.testing.assert_array_equal(*found)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
