"""The examples run: two plug-ins and a notebook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import open_study
from experiments.plugins import load_plugin
from experiments.report import page
from experiments.reproduce import Study, reproduce
from experiments.rows import select
from tests.experiments.tiny_study import READOUTS, SIZE, save_models, targets

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A study with both plug-ins, copied beside it."""
    folder = tmp_path_factory.mktemp("examples")
    plugins = []
    for name in ("rotation_task.py", "half_registers.py"):
        (folder / name).write_text((EXAMPLES / name).read_text())
        plugins.append(str(folder / name))
    few = {"sizes": SIZE, "batch_size": 16, "resamples": 50, "seeds": 1, "readouts": READOUTS, "tasks": ("rotation", "knn")}
    chosen = {"conditions": ("zero_registers", "mean_registers", "mean_early", "mean_late"), "plugins": plugins, **few}
    models = save_models(folder / "models")[:1]
    reproduce(Study(models=models, out=folder / "run", analyses=("ablation_table", "half_registers"), **chosen))
    return folder


def test_the_rotation_task_has_its_numbers_and_its_columns(finished):
    rows = select(open_study(finished / "run").rows, model="with_registers", task="rotation")
    assert {(row["feature"], row["readout"]) for row in rows if row["condition"] == "zero_registers"} == {
        (feature, readout) for feature in ("cls", "patch_mean") for readout in ("refitted", "frozen")
    }
    assert all(0 <= row["value"] <= 1 for row in rows)
    assert all(row["n"] <= SIZE.test and row["n_unit"] == "digits" for row in rows), "units are what images show, not their turns"
    assert "rotation<br>CLS" in (finished / "run" / "report.html").read_text()


@pytest.mark.parametrize("condition", ["full", "noise_registers", "random_patches"])
def test_images_that_a_task_makes_get_the_features_and_draws_of_those_they_are_made_from(finished, condition):
    (target,) = targets((str(finished / "models" / "with_registers"),))
    features, images = target.features(condition, 0), target.data.parts["test"].images
    for name in ("cls", "patch_mean"):
        np.testing.assert_array_equal(getattr(features.of_images(images, "test"), name), getattr(features["test"], name))
        turned = getattr(features.of_images(np.rot90(images, axes=(1, 2)), "test"), name)
        assert not np.allclose(turned, getattr(features["test"], name))


def test_the_protocol_says_how_many_images_are_turned(finished):
    rows = select(open_study(finished / "run").rows, task="rotation")
    assert all("most=256" in row["protocol"] for row in rows)


def test_the_half_registers_have_their_section(finished):
    rows = open_study(finished / "run").rows
    windows = {row["condition"]: row["window"] for row in rows if row["model"] == "with_registers"}
    assert (windows["mean_early"], windows["mean_late"]) == ("0", "1")
    written = (finished / "run" / "report.html").read_text()
    assert "Registers replaced in half of the blocks" in written
    assert "late (blocks 1)" in written


def test_the_half_registers_have_their_section_where_no_main_score_was_run(finished):
    study = open_study(finished / "run")
    rows = select(study.rows, task="rotation")
    assert rows
    assert not any(row["primary"] for row in rows)
    assert "late (blocks 1)" in load_plugin(str(EXAMPLES / "half_registers.py")).analyses["half_registers"].section(
        study._replace(rows=rows)
    )


def test_the_page_is_written_again_with_its_plug_ins_and_says_where_one_is_gone(finished):
    before = (finished / "run" / "report.html").read_text()
    assert page.write(finished / "run").read_text() == before
    (finished / "half_registers.py").rename(finished / "moved.py")
    without = page.write(finished / "run").read_text()
    assert "Registers replaced in half of the blocks" not in without
    assert "section half_registers is left out: its analysis is not here" in without
    (finished / "moved.py").rename(finished / "half_registers.py")


def test_the_notebook_runs(tmp_path):
    notebook = json.loads((EXAMPLES / "own_study.ipynb").read_text())
    cells = notebook["cells"]
    assert notebook["nbformat_minor"] < 5 or all("id" in cell for cell in cells), "format 4.5 wants an id in every cell"
    assert not any(cell.get("outputs") for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean_late" in done.stdout
    assert (tmp_path / "runs" / "own_study" / "report.html").exists()
