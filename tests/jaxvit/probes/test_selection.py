"""What all probes share: how ties are chosen, and many problems in one program, on one device or two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.probes import ridge
from jaxvit.probes.selection import one_hot, select
from tests.jaxvit.probes.clusters import CLASSES, clusters

LAMBDAS = (1e-4, 1e-2, 1.0, 100.0)


def test_ties_go_to_the_larger_lambda_in_any_order():
    features, labels = clusters(noise=0.01)
    targets = one_hot(jnp.asarray(labels), CLASSES)
    path = ridge.fit(jnp.asarray(features), targets, (1e-2, 1e-1, 1e-3))
    assert select(path, ridge.predict, path.lambdas, jnp.asarray(features), targets) == 1


def test_many_problems_are_a_loop():
    splits = [[clusters(rows, 6, seed=10 * problem + rows, noise=4.0) for problem in range(3)] for rows in (60, 40, 50)]
    arrays = [jnp.asarray(np.stack(array)) for split in splits for array in zip(*split, strict=True)]
    many = ridge.probe_many(*arrays, CLASSES, LAMBDAS, at_a_time=2)
    for problem in range(3):
        one = ridge.probe(*(a[problem] for a in arrays), CLASSES, LAMBDAS)
        np.testing.assert_array_equal(many.correct[problem], one.correct)
        assert many.chosen[problem] == one.chosen
        np.testing.assert_allclose(many.readout.weights[problem], one.readout.weights, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[2, 3\] problems"):
        ridge.probe_many(*arrays[:4], arrays[4][:2], arrays[5][:2], CLASSES)


def test_two_devices_give_the_results_of_one():
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
assert isinstance(two.correct, np.ndarray)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
bank, queries = features[0][0], features[1][0, :7]
np.testing.assert_array_equal(*(knn.classify(bank, labels[0], queries, 3, (1, 5), rows=16, mesh=where) for where in (None, mesh)))
on_mesh = replicate((bank, labels[0], queries), mesh)
np.testing.assert_array_equal(knn.classify(*on_mesh, 3, (1, 5), mesh=mesh), knn.classify(bank, labels[0], queries, 3, (1, 5)))
averages = [knn.retrieve(x[0], x[0], x[2], 3, mesh=mesh) for x in (on_mesh, (bank, labels[0], queries))]
np.testing.assert_array_equal(*averages)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
