"""Results become tables, pages say what the results say, and files of something else are refused."""

from __future__ import annotations

import pytest

from experiments.bench import results
from experiments.bench.results import Results


def one_row(name: str, **more) -> Results:
    row = {"what": "w", "against": "a", "dtype": "d", "goal": "", "met": None, "device": "v5e:2x4"}
    return {"rows": {name: row | more}, "scaling": {}}


def test_programs_compiled_for_a_slice_have_a_table_of_their_own():
    entry = {"program": "forward", "model": "s", "dtype": "bfloat16", "seconds": 0.0234, "bytes": 2e9, "fits": True}
    rank = {"program": "rank", "model": "s", "dtype": "float32", "bytes": 3e10, "fits": False}
    programs = [entry | {"images_per_second_per_chip": 2_700.4}, rank]
    lines = results.tables(one_row("tpu", facts={"programs": programs})).splitlines()
    assert lines[-4:] == [
        "| forward | s | bfloat16 | 23.40 | 2700 | 2000 | yes |",
        "| rank | s | float32 |  |  | 30000 | no |",
        "",
        "</details>",
    ]
    assert lines[-6].startswith("| v5e:2x4 |")


def test_programs_with_split_weights_have_a_table_of_their_own():
    sizes = {"images": 128, "weight_bytes": 3.387e9, "temporary_bytes": 6e9, "bytes": 9.9e9, "fits": True}
    program = {"program": "forward", "model": "l", "dtype": "float32", "collectives": ["all-gather"], **sizes}
    refused = {"program": "flow", "model": "l", "dtype": "float32", "images": 128, "weight_bytes": 3.387e9, "fits": False}
    lines = results.tables(one_row("large", facts={"programs": [program, refused]})).splitlines()
    assert lines[-4:-2] == [
        "| forward | l | float32 | 128 | 3.39 | 6.00 | 9.90 | all-gather | yes |",
        "| flow | l | float32 | 128 | 3.39 |  |  |  | no |",
    ]


def test_metrics_in_two_precisions_have_a_table_of_their_own():
    metric = {"task": "t", "metric": "cosine", "numbers": 2, "mean_difference": 0.25, "largest_difference": 0.375, "half_interval": 0.15}
    lines = results.tables(one_row("precision", facts={"metrics": [metric]})).splitlines()
    assert "| t | cosine | 2 | 0.25 | 0.38 | 0.15 |" in lines


def test_the_page_in_this_package_is_made_of_its_results():
    assert results.PAGE.read_text() == results.page()


def test_the_summary_stands_between_its_marks_in_a_readme(tmp_path):
    measured, readme = results.read(results.results_file("cpu")), tmp_path / "README.md"
    begin, end = "<!-- bench summary: begin -->", "<!-- bench summary: end -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    results.fill_readme(readme, measured)
    summary = results.summary(measured)
    assert readme.read_text() == f"before\n{begin}\n{summary}\n{end}\nafter\n"
    lines = summary.splitlines()
    assert len(lines) == 2 + 5
    for line, name in zip(lines[2:], ("forward_s", "conditions", "layer_sweep", "attention_flow", "probes"), strict=True):
        row = measured["rows"][name]
        assert line == f"| **{row['ratio']:.2f}x** | {row['what']} | {row['against']} | {row['device']} |"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="add them"):
        results.fill_readme(readme, measured)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="no results of the benchmark"):
        results.read(tmp_path / "x.json")
