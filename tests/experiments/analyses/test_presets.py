"""Presets name models, conditions, tasks and analyses that exist, and no analysis is forgotten."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from experiments import demo
from experiments.analyses import presets
from experiments.analyses.presets import ANALYSES, PRESETS
from experiments.features.conditions import conditions
from experiments.tasks.table import TASKS
from jaxvit import MODELS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_models_conditions_tasks_and_analyses_that_exist(name):
    preset = PRESETS[name]
    configs = demo.CONFIGS | MODELS
    assert set(preset.models) <= set(configs)
    assert set(preset.conditions) <= {c for m in preset.models for c in conditions(configs[m])}
    assert set(preset.tasks) <= set(TASKS)
    assert set(preset.analyses) <= set(ANALYSES)
    assert (preset.image_size is None) == (name == "demo")
    for model in preset.models:
        if preset.image_size:
            assert preset.image_size % configs[model].patch_size == 0


def test_every_analysis_of_the_package_is_listed_under_the_name_of_its_module():
    files = {path.stem for path in Path(presets.__file__).parent.glob("*.py")}
    assert set(ANALYSES) == files - {"__init__", "base", "presets"}
    for name, analysis in ANALYSES.items():
        assert inspect.getmodulename(inspect.getfile(analysis)) == name


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_has_a_title_a_note_its_jobs_and_its_section(name):
    analysis = ANALYSES[name]
    assert analysis.TITLE
    assert analysis.NOTE.endswith(".")
    assert list(inspect.signature(analysis.jobs).parameters) == ["target"]
    assert list(inspect.signature(analysis.section).parameters) == ["results"]


def test_titles_are_those_of_one_section_each():
    titles = [analysis.TITLE for analysis in ANALYSES.values()]
    assert len(set(titles)) == len(titles)
