"""The page of a finished study: its sections, and what it says of those that are not there."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.report import page
from experiments.rows import Row
from experiments.study.folder import write_manifest
from experiments.tasks.table import score_columns
from tests.experiments.plotting.made_rows import made_row

PLUGIN = """
from types import SimpleNamespace

mine = SimpleNamespace(TITLE="My section", NOTE="A note.", jobs=lambda target: iter(()), section=lambda results: "<p>body</p>")
ANALYSES = {"mine": mine}
"""
ROWS = [made_row(model="demo_reg", condition="full", delta=None), made_row(model="demo_reg")]


@pytest.fixture(autouse=True)
def _without_the_script(monkeypatch):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")


def finished(folder: Path, only: tuple[str, ...] = ("ablation_table",), rows: list[Row] = ROWS, **changes: Any) -> Path:
    """The folder of a finished study of these rows."""
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    machine = {"devices": 1, "device": "cpu", "python": "3.11", "versions": {"jax": "0"}}
    manifest = {"study": {"preset": "demo", "quick": False}, "hash": "0" * 20, "protocol": "As <always>.", "precision": "float32"}
    manifest |= {"images": "digits & more", "image_size": [64, 32], "image_counts": {"train": 2000, "val": 3, "test": 4}}
    manifest |= {"models": {"demo_reg": "0"}, "cells": [], "columns": [list(c) for c in score_columns()], "machine": machine}
    manifest |= {"random_weights": False, "plugins": {}, "runs": [{"only": list(only)}]} | changes
    write_manifest(folder, manifest)
    return folder


def headings(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def test_the_page_has_the_sections_that_were_run_in_the_order_of_the_page_where_there_is_something_to_show(tmp_path):
    runs = [{"only": ["random_patch_control", "scale_comparison"]}, {"only": ["ablation_table"]}]
    rows = [*ROWS, made_row(model="demo_reg", condition="random_patches")]
    text = page.write(finished(tmp_path, rows=rows, runs=runs)).read_text()
    assert headings(text) == ["What an ablation costs", "Zeroing random patches instead"]
    assert "is left out" not in text
    assert "digits &amp; more (32 x 64 px; 2,000 to fit on, 3 to choose on, 4 to report)" in text
    assert "As &lt;always&gt;." in text


def test_a_section_of_a_plugin_is_written_from_the_file_that_the_study_names(tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    sha256 = hashlib.sha256(plugin.read_bytes()).hexdigest()
    folder = finished(tmp_path / "run", ("mine", "ablation_table"), plugins={str(plugin): sha256})
    text = page.write(folder).read_text()
    assert headings(text) == ["What an ablation costs", "My section"]
    assert "has changed" not in text
    plugin.write_text(PLUGIN + "\nMORE = 1\n")
    text = page.write(folder).read_text()
    assert headings(text) == ["What an ablation costs", "My section"]
    assert f"plug-in {plugin} has changed since the study ran" in text


def test_what_is_not_there_any_more_is_named_and_the_others_are_written(tmp_path):
    folder = finished(tmp_path, ("mine", "ablation_table"), plugins={"nowhere.py": "0" * 64})
    text = page.write(folder).read_text()
    assert headings(text) == ["What an ablation costs"]
    assert "plug-in nowhere.py is not here, and what it would show is left out: there is no plug-in nowhere.py" in text
    assert "section mine is left out: its analysis is not here" in text
    given = {"mine": SimpleNamespace(TITLE="Given", NOTE="", section=lambda results: f"{len(results.rows)} rows")}
    text = page.write(folder, given).read_text()
    assert headings(text) == ["What an ablation costs", "Given"]
    assert "section mine is left out" not in text


def test_cautions_are_those_that_the_study_needs(tmp_path):
    demo = page.write(finished(tmp_path / "demo")).read_text()
    assert "These are demo numbers" in demo
    assert "Nothing in its training asks for the registers to be read" in demo
    assert "A quick look" not in demo
    assert "random initialisation" not in demo
    other = [made_row(model=name, condition="full", delta=None) for name in ("mine", "mine_random")]
    changes = {"models": {"mine": "0"}, "random_weights": True, "study": {"preset": "custom", "quick": True}}
    mine = page.write(finished(tmp_path / "mine", rows=other, **changes)).read_text()
    assert "These are demo numbers" not in mine
    for caution in ("Random weights", "A quick look", "random initialisation", "95 % intervals over independent units"):
        assert caution in mine


def test_a_folder_without_a_finished_study_is_refused(tmp_path):
    folder = finished(tmp_path)
    (folder / "results.jsonl").unlink()
    with pytest.raises(ValueError, match="holds no finished study"):
        page.write(folder)
    assert not (folder / "report.html").exists()
