"""The program measures the rows that were asked for, keeps the others, and refuses what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.bench import results
from experiments.bench.__main__ import Bench, all_rows, bench


def test_rows_are_measured_one_by_one_and_the_others_keep_their_place(tmp_path):
    out = tmp_path / "results.json"
    for name in ("effective_rank", "knn"):
        bench(Bench(rows=(name,), small=True, repeats=1, out=out))
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == list(all_rows())
    assert [name for name, row in rows.items() if "seconds" in row] == ["knn", "effective_rank"]
    assert rows["knn"]["met"] is None  # small sizes meet no goal
    assert {"device", "threads", "versions", "dtype", "goal"} <= rows["effective_rank"].keys()
    tables = results.tables(results.read(out))
    assert "python -m experiments.bench --rows study_bf16, on a GPU" in tables
    assert f"**{rows['knn']['ratio']:.2f}x**" in tables


def test_a_row_that_waits_is_described_as_it_is_now(tmp_path):
    out = tmp_path / "results.json"
    waiting = {"what": "what it was once", "note": "not measured"}
    out.write_text(json.dumps({"rows": {"study_f32": waiting}, "scaling": {}}))
    bench(Bench(rows=("effective_rank",), small=True, repeats=1, out=out))
    assert json.loads(out.read_text())["rows"]["study_f32"]["what"] == all_rows()["study_f32"].what


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(ValueError, match='unknown row "forwards"; known are forward_s'):
        bench(Bench(rows=("forwards",)))
    with pytest.raises(ValueError, match='unknown axis "heads"; known are images'):
        bench(Bench(scaling=("heads",)))
    with pytest.raises(ValueError, match="at least once"):
        bench(Bench(repeats=0))
    with pytest.raises(ValueError, match="leave out --small"):
        bench(Bench(small=True, readme=Path("README.md")))


def test_no_row_of_the_plan_is_missing():
    planned = {
        "forward_s", "forward_b", "forward_s_bf16", "forward_b_bf16", "forward_l_bf16", "conditions", "layer_sweep", "attention_flow",
        "attention_divergence", "probes", "probes_gpu", "knn", "knn_gpu", "effective_rank", "study_bf16", "study_f32", "dispatch",
        "compile_s", "compile_g", "tpu_v5e", "tpu_v4", "edit_query", "edit_key", "edit_value", "edit_head_output", "edit_mlp_hidden",
        "edit_noise", "cut", "three_cuts", "flow_with_a_cut",
    }  # fmt: skip
    assert planned <= all_rows().keys()
