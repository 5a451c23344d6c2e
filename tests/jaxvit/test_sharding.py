"""Batches: every row once, in shares of one shape; loops whose number of steps is data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvit.sharding import batch_mesh, batches, one_by_one


@given(st.integers(1, 60), st.integers(1, 9))
def test_every_row_comes_once_and_shares_have_one_shape(count, size):
    rows = np.arange(10, 10 + count)
    parts = list(batches(rows, size, batch_mesh(), 100 + np.arange(count)))
    assert {len(part.rows) for part in parts} == {size * jax.device_count()}
    assert np.concatenate([part.source for part in parts])[:count].tolist() == list(range(count))
    for part in parts:
        valid = np.asarray(part.valid)
        np.testing.assert_array_equal(valid, part.source >= 0)
        np.testing.assert_array_equal(np.asarray(part.rows)[valid], rows[part.source[valid]])
        np.testing.assert_array_equal(np.asarray(part.example_ids)[valid], 100 + part.source[valid])
        assert set(np.asarray(part.rows)[~valid]) <= {rows[-1]}, "padding repeats the last row"


def test_rows_come_in_the_order_asked_for():
    order = np.array([4, 0, -1, 2, 1, 3, -1])
    parts = list(batches(np.arange(10, 15), 3, batch_mesh(jax.devices()[:1]), order=order))
    assert np.concatenate([part.source for part in parts]).tolist() == [4, 0, -1, 2, 1, 3, -1, -1, -1]
    assert np.asarray(parts[0].rows).tolist() == [14, 10, 14]
    assert np.asarray(parts[0].valid).tolist() == [True, True, False]


def test_no_rows_a_device_are_refused():
    with pytest.raises(ValueError, match="0 rows a device is not a number of rows"):
        list(batches(np.arange(3), 0, batch_mesh()))


@given(st.integers(1, 7))
def test_one_by_one_is_a_map(count):
    entries = {"a": np.arange(count * 6.0).reshape(count, 2, 3), "b": np.arange(count)}

    def function(entry):
        return entry["a"].sum(axis=0) * entry["b"], entry["b"] > 1

    got = jax.jit(lambda entries, n: one_by_one(function, entries, n))(entries, count)
    jax.tree.map(np.testing.assert_array_equal, got, jax.lax.map(function, jax.tree.map(jnp.asarray, entries)))
