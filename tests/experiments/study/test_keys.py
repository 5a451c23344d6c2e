"""Keys of cells hold definitions: whatever a number depends on changes them, and nothing else does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import jaxvit
from experiments.datasets.digits import digit_scenes
from experiments.features.conditions import conditions
from experiments.planning import settings
from experiments.study import cells, grid, jobs
from experiments.study.cells import cell_hash
from experiments.study.target import Target
from experiments.tasks.table import TASKS
from jaxvit.sharding import batch_mesh
from tests.experiments.tiny_study import CONFIG, SIZE, study


def target(model: jaxvit.ViT | None = None, name: str = "m", table: dict | None = None, tasks: dict | None = None) -> Target:
    """A target whose model has never run."""
    chosen = study(Path("nowhere"), ())
    model = model or jaxvit.create(CONFIG, 0)
    data = digit_scenes(SIZE, chosen.seed)
    options = settings(chosen, tasks or TASKS)
    return Target(name, model, batch_mesh(), data, options, conditions(CONFIG) if table is None else table)


def hashes(planned: Target, kind: str, condition: str = "zero_registers", task: str = "knn") -> set[str]:
    """Hashes of the cells of a kind for a condition and a task."""
    label = f"{planned.name}, {condition}: {task}" + (", intervals" if kind == "rows" else "")
    found = {cell_hash(job.key) for job in grid.jobs(planned, (condition,), (task,)) if job.label.replace(", seed 0", "") == label}
    assert found
    return found


@pytest.fixture(scope="module")
def plain() -> Target:
    return target()


def test_the_same_definitions_are_the_same_cells_however_they_are_named(plain):
    other = target(name="another", table={"nothing_there": lambda config, moments, seed: jaxvit.zero("registers")})
    assert hashes(plain, "scores") == hashes(other, "scores", "nothing_there")
    assert hashes(plain, "rows") != hashes(other, "rows", "nothing_there"), "rows say the names"


def test_planning_runs_no_model(plain, monkeypatch):
    def running(*arguments, **options):
        raise AssertionError("a model ran")

    monkeypatch.setattr(jaxvit, "forward", running)
    monkeypatch.setattr(jaxvit, "calibrate", running)
    assert len(list(grid.jobs(target()))) > 100


@pytest.mark.parametrize(
    "definition",
    [
        lambda config, moments, seed: jaxvit.zero("registers", layers=[1]),
        lambda config, moments, seed: jaxvit.zero(["registers[0]", "registers[1]"]) & jaxvit.zero("cls"),
        lambda config, moments, seed: jaxvit.zero("registers", at="block_input"),
        lambda config, moments, seed: jaxvit.mean("registers", moments),
        lambda config, moments, seed: jaxvit.mean("registers", moments, any_size=True),
        lambda config, moments, seed: jaxvit.constant("registers", 2 * moments.mean["block_output"][0, 0]),
        lambda config, moments, seed: jaxvit.constant("registers", [1.0] * config.width),
        lambda config, moments, seed: jaxvit.constant("registers", [1.5] * config.width),
        lambda config, moments, seed: jaxvit.shuffle("registers", 3),
        lambda config, moments, seed: jaxvit.shuffle("registers", 4),
    ],
)
def test_a_changed_condition_of_the_same_name_is_another_cell(plain, definition):
    changed = target(table={**conditions(CONFIG), "zero_registers": definition})
    for kind in ("scores", "rows"):
        assert hashes(changed, kind).isdisjoint(hashes(plain, kind))
        assert hashes(changed, kind, "zero_cls") == hashes(plain, kind, "zero_cls"), "and of others it is the same"
    assert changed.recipe("zero_registers", 0).hash != plain.recipe("zero_registers", 0).hash


def test_definitions_differ_among_one_another(plain):
    recipes = [plain.recipe(name, 0) for name in plain.conditions]
    assert len({recipe.hash for recipe in recipes}) == len(recipes)


@pytest.mark.parametrize(
    "change",
    [
        {"version": TASKS["knn"].version + 1},
        {"settings": lambda readouts: {"neighbours": [5, 20], "temperature": 0.1}},
    ],
)
def test_a_changed_task_is_another_cell(plain, change):
    changed = target(tasks={**TASKS, "knn": dataclasses.replace(TASKS["knn"], **change)})
    for kind in ("scores", "rows"):
        assert hashes(changed, kind).isdisjoint(hashes(plain, kind))
        assert hashes(changed, kind, task="few_shot") == hashes(plain, kind, task="few_shot")


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"seed": 1}, ("scores", "rows")),
        ({"seeds": 3}, ("scores", "rows")),
        ({"batch_size": 8}, ()),
        ({"dtype": "bfloat16"}, ("scores", "rows")),
        ({"resamples": 201}, ("rows",)),
        ({"readouts": {"neighbours": (5,)}}, ("scores", "rows")),
        ({"readouts": {"norm": "none"}}, ("scores", "rows")),
        ({"readouts": {"layer": 0}}, ("scores", "rows")),
        ({"readouts": {"shots": (2,)}}, ()),
        ({"sizes": {"test": 28}}, ("scores", "rows")),
        ({"sizes": {"calibration": 16}}, ("scores", "rows")),
    ],
)
def test_a_changed_setting_is_another_cell_where_numbers_depend_on_it(plain, change, kinds):
    base = study(Path("nowhere"), ())
    replaced = {name: dataclasses.replace(getattr(base, name), **v) if isinstance(v, dict) else v for name, v in change.items()}
    chosen = dataclasses.replace(base, **replaced)
    data = digit_scenes(chosen.sizes, chosen.seed)
    changed = Target("m", plain.model, batch_mesh(), data, settings(chosen), conditions(CONFIG))
    for kind in ("scores", "rows"):
        assert hashes(changed, kind).isdisjoint(hashes(plain, kind)) == (kind in kinds)


def test_other_weights_and_another_shape_are_other_cells(plain):
    first = jaxvit.create(CONFIG, 0)
    moved = jaxvit.create(CONFIG, 1)
    shaped = jaxvit.create(dataclasses.replace(CONFIG, pixel_mean=(0.5, 0.5, 0.5)), 0)
    assert hashes(target(first), "scores") == hashes(plain, "scores")
    for model in (moved, shaped):
        assert hashes(target(model), "scores").isdisjoint(hashes(plain, "scores"))


def test_the_versions_of_rows_and_of_cells_are_in_the_keys(plain, monkeypatch):
    before = {kind: hashes(plain, kind) for kind in ("scores", "rows")}
    monkeypatch.setattr(jobs, "SCHEMA", jobs.SCHEMA + 1)
    assert hashes(plain, "rows").isdisjoint(before["rows"])
    assert hashes(plain, "scores") == before["scores"], "scores are no rows"
    monkeypatch.setattr(cells, "FORMAT", cells.FORMAT + 1)
    assert hashes(plain, "scores").isdisjoint(before["scores"])
