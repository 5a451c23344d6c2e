"""Exact nearest neighbours, whatever the chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.neighbours import nearest, sizes


def ties(rows: int, seed: int) -> np.ndarray:
    """Vectors of length exactly 1 whose cosines are multiples of a quarter: many are equal, and no order of sums changes one."""
    generator = np.random.default_rng(seed)
    signs = generator.choice([-0.5, 0.5], (rows, 4))
    vectors = np.zeros((rows, 6), np.float32)
    np.put_along_axis(vectors, generator.random((rows, 6)).argsort(axis=1)[:, :4], signs, axis=1)
    return vectors


@pytest.mark.parametrize(("k", "rows"), [(1, 64), (7, 1000), (50, 1000), (60, 13)])
def test_of_equally_near_rows_the_lower_index_comes_first_whatever_the_chunks(k, rows):
    """Against a stable sort; 450 rows are no multiple of the chunks; from k 50 on some of the nearest are not valid."""
    bank, queries = ties(450, 0), ties(9, 1)
    valid = np.random.default_rng(2).random(450) < (0.1 if k >= 50 else 0.8)
    bank[~valid] = np.nan
    cosine = np.where(valid, queries @ np.nan_to_num(bank).T, -np.inf)
    want = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    similarity, index = nearest(jnp.asarray(queries), jnp.asarray(bank), k, jnp.asarray(valid), chunk=4, rows=rows)
    np.testing.assert_array_equal(index, want)
    np.testing.assert_array_equal(similarity, np.take_along_axis(cosine, want, axis=1))


def test_chunks_hold_at_least_one_row():
    with pytest.raises(ValueError, match="at least 1"):
        nearest(jnp.ones((3, 2)), jnp.ones((4, 2)), 1, rows=0)


def test_a_gpu_takes_larger_steps(monkeypatch):
    assert sizes(50_000, None, None) == (256, 65_536)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert sizes(50_000, None, None) == (1_024, 262_144)
    assert sizes(50_000, 64, 5) == (64, 5)
    assert sizes(100, None, 5) == (16, 5)
