"""Cells are whole or absent, and are loaded again by what determines them."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.study.cells import Store, cell_hash

KEY = {"kind": "table", "model": {"name": "m"}, "seed": 0}


def test_a_saved_cell_comes_back(tmp_path):
    store = Store(tmp_path / "cells")
    assert KEY not in store
    saved = store.save(KEY, [{"value": 0.5, "scores_cell": None}], {"a": np.arange(3)}, {"device": "cpu"})
    loaded = store.load({"seed": 0, "model": {"name": "m"}, "kind": "table"})
    assert KEY in store
    assert loaded.rows == saved.rows == [{"value": 0.5, "scores_cell": None, "cell": cell_hash(KEY)}]
    assert loaded.provenance == {"device": "cpu"}
    np.testing.assert_array_equal(loaded.arrays["a"], np.arange(3))


def test_rows_find_the_scores_of_their_own_cell_and_keep_those_of_others(tmp_path):
    rows = [{"scores_cell": None}, {"scores_cell": ["another"]}]
    saved = Store(tmp_path).save(KEY, rows, {"scores/0": np.zeros(3)}, {})
    assert [row["scores_cell"] for row in saved.rows] == [[cell_hash(KEY)], ["another"]]


def test_provenance_is_no_part_of_the_key_and_every_entry_of_the_key_is(tmp_path):
    hashes = {cell_hash(KEY), cell_hash(KEY | {"seed": 1}), cell_hash(KEY | {"model": {"name": "n"}}), cell_hash(KEY | {"more": 1})}
    assert len(hashes) == 4


def test_a_write_that_dies_leaves_no_cell(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="Out of range float values"):
        store.save(KEY, [{"value": float("nan"), "scores_cell": None}], {"a": np.zeros(2)}, {})
    assert KEY not in store
    assert not list(tmp_path.glob(".*")), "no temporary file stays"
    with pytest.raises(ValueError, match="delete it and run the study again"):
        store.load(KEY)


def test_a_damaged_cell_is_named(tmp_path):
    store = Store(tmp_path)
    store.save(KEY, [], {}, {})
    (tmp_path / f"{cell_hash(KEY)}.json").write_text("{")
    with pytest.raises(ValueError, match=cell_hash(KEY)):
        store.load(KEY)
