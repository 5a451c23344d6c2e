"""Options of a study: what they start from, what they refuse, and that a run.json tells of the study again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import planning, reproduce
from experiments.datasets.digits import digit_scenes
from experiments.datasets.folders import Folders
from experiments.reproduce import Options, Study
from experiments.tasks.base import Readouts
from jaxvit.probes.logistic import DINOV2_CS
from tests.experiments.tiny_study import SIZE


def test_help_says_what_a_study_takes():
    done = subprocess.run([sys.executable, "-m", "experiments.reproduce", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for option in ("--preset", "--only", "--folders.images", "--readouts.norm", "--dry-run"):
        assert option in done.stdout


def test_a_manifest_tells_of_its_study_again():
    data = digit_scenes(SIZE, 0)
    study = Study(readouts=Readouts(norm="none", cs=(1.0, 2.0), layer=3), seeds=2, sizes=SIZE)
    assert planning.study_of({"study": study.identity(data)}) == study
    assert "out" not in study.identity(data)
    assert dataclasses.replace(study, dry_run=True, out=Path("x")).identity(data) == study.identity(data)
    assert study.identity(digit_scenes(SIZE, 1)) != study.identity(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"cs": (0.0,)}, "cs are"), ({"neighbours": ()}, "neighbours are"), ({"epochs": 0}, "epochs is 0"), ({"memory": 0}, "memory is 0")],
)
def test_impossible_read_outs_are_refused_before_anything_runs(change, message):
    with pytest.raises(ValueError, match=message):
        Readouts(**change)


@pytest.mark.parametrize("name", ["seeds", "resamples", "batch_size"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=r"is 0; give at least 1"):
        Study(**{name: 0})


def test_folders_without_a_preset_that_reads_them_are_refused():
    with pytest.raises(ValueError, match="the demo preset reads no folders; choose another --preset"):
        planning.study_data(Study(data=Folders(Path("photos"))))


def test_the_command_line_starts_from_the_read_outs_of_its_preset(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", "--preset", "parodi2026", "--seed", "3"])
    assert reproduce.from_preset().readouts.cs == DINOV2_CS
    monkeypatch.setattr(sys, "argv", ["reproduce", "--preset=nonesuch"])
    assert reproduce.from_preset() == Options()


def test_a_quick_look_is_a_demo_study_of_its_own():
    quick = Study(quick=True)
    assert quick.folder == Path("runs/demo-quick")
    data = digit_scenes(SIZE, 0)
    assert quick.identity(data) != Study().identity(data)
    assert quick.chosen_preset.models == ("demo_reg", "demo_reg_read")
    with pytest.raises(ValueError, match="--quick is a look at the demo study; leave out --preset parodi2026"):
        Study("parodi2026", quick=True)
