"""Options of a study: what they start from, what they refuse, and that a run.json tells of the study again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import reproduce
from experiments.datasets.folders import Folders
from experiments.reproduce import Study
from experiments.tasks.base import Readouts
from jaxvit.probes.logistic import DINOV2_CS
from jaxvit.sharding import batch_mesh


def test_help_says_what_a_study_takes():
    done = subprocess.run([sys.executable, "-m", "experiments.reproduce", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for option in ("--preset", "--only", "--folders.images", "--readouts.norm", "--dry-run"):
        assert option in done.stdout


def test_a_manifest_tells_of_its_study_again():
    study = Study("parodi2026", readouts=Readouts(norm="none", cs=(1.0, 2.0), layer=3), seeds=2)
    assert reproduce.study_of({"study": study.identity}) == study
    assert "out" not in study.identity
    assert dataclasses.replace(study, dry_run=True, out=Path("x")).identity == study.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [({"cs": (0.0,)}, "cs are"), ({"neighbours": ()}, "neighbours are"), ({"epochs": 0}, "epochs is 0"), ({"memory": 0}, "memory is 0")],
)
def test_impossible_read_outs_are_refused_before_anything_runs(change, message):
    with pytest.raises(ValueError, match=message):
        Readouts(**change)


@pytest.mark.parametrize("name", ["seeds", "resamples", "batch_size"])
def test_numbers_below_one_are_refused(name):
    data = SimpleNamespace(parts={}, analysis_images=[])
    with pytest.raises(ValueError, match=r"is 0; give at least 1"):
        reproduce.settings(dataclasses.replace(Study(), **{name: 0}), data, batch_mesh())


def test_folders_without_a_preset_that_reads_them_are_refused():
    with pytest.raises(ValueError, match="the demo preset reads no folders; choose another --preset"):
        reproduce.study_data(Study(folders=Folders(Path("photos"))))


def test_the_command_line_starts_from_the_read_outs_of_its_preset(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", "--preset", "parodi2026", "--seed", "3"])
    assert reproduce.from_preset().readouts.cs == DINOV2_CS
    monkeypatch.setattr(sys, "argv", ["reproduce", "--preset=nonesuch"])
    assert reproduce.from_preset() == Study()


def test_a_quick_look_is_a_demo_study_of_its_own():
    quick = Study(quick=True)
    assert quick.folder == Path("runs/demo-quick")
    assert quick.identity != Study().identity
    assert quick.model_names == ("demo_reg", "demo_reg_read")
    with pytest.raises(ValueError, match="--quick is a look at the demo study; leave out --preset parodi2026"):
        Study("parodi2026", quick=True)
