"""Batches: every row once, none alone, short ones padded to short shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvit.sharding import batch_mesh, batches, bounds, halved, padded


@given(st.integers(0, 300), st.integers(1, 40))
def test_bounds_follow_on_one_another_and_leave_no_row_alone(count, size):
    pairs = bounds(count, size)
    assert [row for start, stop in pairs for row in range(start, stop)] == list(range(count))
    assert all(0 < stop - start <= size for start, stop in pairs)
    if size > 2 and count > 1:
        assert all(stop - start > 1 for start, stop in pairs)
    if count % size != 1:
        assert [stop - start for start, stop in pairs[:-1]] == [size] * (len(pairs) - 1), "as many full batches as there can be"


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 8))
def test_a_batch_is_padded_to_a_half_or_less_where_that_holds_it(count, multiple, devices):
    size = max(count, multiple * devices)
    size = -(-size // devices) * devices
    rows = padded(count, size, devices)
    assert count <= rows <= size
    assert rows % devices == 0
    half = -(-rows // 2 // devices) * devices
    assert half < count or half == rows, "the next shorter shape would not do"
    assert len({padded(n, size, devices) for n in range(1, size + 1)}) <= 1 + np.log2(size) + devices, "few shapes, so few programs"


def test_batches_say_where_their_rows_come_from():
    rows = np.arange(10, 23)
    parts = list(batches(rows, 4, batch_mesh(), first_id=100))
    assert [(p.start, p.length, len(p.rows)) for p in parts] == [(0, 4, 4), (4, 4, 4), (8, 3, 4), (11, 2, 2)]
    for part in parts:
        valid = np.asarray(part.valid)
        np.testing.assert_array_equal(valid, np.arange(len(valid)) < part.length)
        np.testing.assert_array_equal(np.asarray(part.rows)[valid], rows[part.start : part.start + part.length])
        np.testing.assert_array_equal(np.asarray(part.example_ids)[valid], 100 + np.arange(part.start, part.start + part.length))
        assert set(np.asarray(part.rows)[~valid]) <= {rows[part.start + part.length - 1]}, "padding repeats the last row"


def test_a_size_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch size 0 is no positive multiple of the \d+ devices"):
        list(batches(np.arange(3), 0, batch_mesh()))


@given(st.integers(1, 100), st.integers(1, 200), st.integers(1, 8))
def test_a_size_is_halved_until_it_is_small_enough(multiple, most, devices):
    size = multiple * devices
    step = halved(size, most, devices)
    assert step % devices == 0
    assert step <= size
    half = -(-step // 2 // devices) * devices
    assert step <= most or half == step, "too large only where there is no shorter one"
    assert step == size or halved(size, 2 * step * devices, devices) >= step
    assert step in {padded(n, size, devices) for n in range(1, size + 1)}, "one of the shapes that short batches have, too"
