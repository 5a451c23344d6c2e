"""Studies by name, and experiments as programs of their own."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import demo, reproduce
from experiments.conditions import conditions
from experiments.folders import Folders
from experiments.measures import Readouts
from experiments.presets import EXPERIMENTS, PRESETS
from experiments.tasks import TASKS
from jaxvit import MODELS
from jaxvit.probes.logistic import DINOV2_CS
from jaxvit.sharding import batch_mesh


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_models_conditions_and_tasks_that_there_are(name):
    preset = PRESETS[name]
    configs = demo.CONFIGS | MODELS
    assert set(preset.models) <= set(configs)
    assert set(preset.conditions) <= {c for m in preset.models for c in conditions(configs[m])}
    assert set(preset.tasks) <= set(TASKS)
    assert set(preset.experiments) <= set(EXPERIMENTS)
    assert (preset.image_size is None) == (name == "demo")
    for model in preset.models:
        if preset.image_size:
            assert preset.image_size % configs[model].patch_size == 0


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda module: module.__name__)
def test_an_experiment_is_a_program_of_its_own_name(experiment):
    name = experiment.__name__.rpartition(".")[2]
    assert re.findall(r'alone\("(\w+)", __doc__\)', Path(experiment.__file__).read_text()) == [name]
    assert experiment.TITLE
    assert experiment.NOTE


def test_help_tells_what_an_experiment_is_and_takes():
    done = subprocess.run([sys.executable, "-m", "experiments.register_lesions", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for said in ("Which register counts", "--preset", "--folders.images", "--readouts.norm", "--dry-run"):
        assert said in done.stdout


def test_a_study_is_told_again_by_its_manifest():
    study = reproduce.Reproduce("parodi2026", None, ("a", "b"), readouts=Readouts(norm="none", cs=(1.0, 2.0), layer=3), seeds=2)
    identity = reproduce._identity(study, EXPERIMENTS)
    assert reproduce.from_manifest({"study": identity}) == study
    assert "out" not in identity
    assert reproduce._identity(dataclasses.replace(study, dry_run=True, out=Path("x")), EXPERIMENTS) == identity


@pytest.mark.parametrize(
    ("change", "message"),
    [({"cs": (0.0,)}, "cs are"), ({"neighbours": ()}, "neighbours are"), ({"epochs": 0}, "epochs is 0"), ({"memory": 0}, "memory is 0")],
)
def test_read_outs_that_cannot_be_are_refused_before_anything_runs(change, message):
    with pytest.raises(ValueError, match=message):
        Readouts(**change)


@pytest.mark.parametrize("name", ["seeds", "resamples", "batch_size"])
def test_numbers_below_one_are_refused(name):
    data = SimpleNamespace(parts={}, sample=[])
    with pytest.raises(ValueError, match=r"is 0; give at least 1"):
        reproduce.settings(dataclasses.replace(reproduce.Reproduce(), **{name: 0}), data, batch_mesh())


def test_folders_without_a_preset_that_reads_them_are_refused():
    with pytest.raises(ValueError, match="the demo preset reads no folders; choose another --preset"):
        reproduce.study_data(reproduce.Reproduce(folders=Folders(Path("photos"))))


def test_the_command_line_starts_from_the_read_outs_of_its_preset(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce", "--preset", "parodi2026", "--seed", "3"])
    assert reproduce.from_preset().readouts.cs == DINOV2_CS
    monkeypatch.setattr(sys, "argv", ["reproduce", "--preset=nonesuch"])
    assert reproduce.from_preset() == reproduce.Reproduce()


def test_no_solver_is_refused():
    with pytest.raises(ValueError, match="at least one of logistic, ridge, parodi"):
        Readouts(solvers=())
