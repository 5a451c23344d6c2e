"""The user's own conditions, tasks and data, from Python, from the command line and from plug-ins, without touching the project."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxvit
from experiments import open_study, planning
from experiments.planning import Study
from experiments.reproduce import Options, reproduce
from experiments.rows import select
from jaxvit import Ablation
from jaxvit.checkpoint import weights_hash
from jaxvit.sharding import batch_mesh, shard_weights, with_weight_shards
from tests.experiments.tiny_study import CONFIG, READOUTS, SIZE, save_models

TOY = '''
"""A task in one file: how long CLS is."""

import numpy as np

from experiments.plotting.columns import Column
from experiments.tasks.base import MetricResult, Task, Unit
from jaxvit.inference import mean_scores


def cls_length(features, context, frozen_readouts):
    lengths = np.linalg.norm(features["test"].cls, axis=1)
    return [MetricResult("length", "cls", "length(norm=2)", [mean_scores(lengths)], Unit("a.u."))]


TASKS = {
    "cls_length": Task(
        cls_length,
        parts=lambda data: ("test",),
        possible=lambda data: True,
        columns=(Column("length", "cls", "how long<br>CLS is", primary=True),),
    )
}
'''


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def study(models, tmp_path) -> Study:
    """A study of one task that takes a second."""
    few = {"sizes": SIZE, "batch_size": 16, "resamples": 50, "seeds": 1, "readouts": READOUTS}
    return Study(models=models[:1], out=tmp_path / "run", tasks=("knn",), analyses=("ablation_table",), **few)


def late_mean(config: jaxvit.ViTConfig, moments: jaxvit.Moments, seed: int) -> Ablation:
    return jaxvit.mean("registers", moments, layers=[config.depth - 1])


def conditions_of(rows: list) -> set[str]:
    return {row["condition"] for row in rows}


def test_conditions_of_ones_own_are_run_and_no_others(study):
    both = jaxvit.zero("cls") & jaxvit.zero("registers", layers="0-1")
    own = {"both": both, "late": late_mean, "built_in": "zero_registers", "text": 'zero("registers")'}
    reproduce(dataclasses.replace(study, conditions=own))
    opened = open_study(study.out)
    assert conditions_of(opened.rows) == {"full", *own}
    row = {name: select(opened.rows, model="with_registers", condition=name, metric="top1_k20", feature="cls")[0] for name in own}
    assert (row["both"]["tokens"], row["both"]["window"]) == ("cls & registers", "all & 0-1")
    assert (row["late"]["tokens"], row["late"]["window"]) == ("registers", "1")
    assert row["built_in"]["value"] == row["text"]["value"]
    assert row["built_in"]["scores_cell"] == row["text"]["scores_cell"], "one definition is one cell, under any name"


def test_a_changed_condition_of_the_same_name_replaces_its_numbers(study):
    for layers in ("0", "1"):
        reproduce(dataclasses.replace(study, conditions={"mine": jaxvit.zero("registers", layers=layers)}))
    rows = select(open_study(study.out).rows, model="with_registers", condition="mine", metric="top1_k20", feature="cls")
    assert [row["window"] for row in rows] == ["1"]


def test_conditions_are_added_to_those_of_the_study(models, tmp_path):
    options = Options(quick=True, condition=('late=mean("registers", layers="4-5")',), conditions=("zero_cls",))
    assert options.study().conditions == ("zero_cls", "late")
    assert options.study().added_conditions == {"late": "mean('registers', layers='4-5')"}
    assert Options(condition=('a=zero("cls")', 'b=zero("cls", layers=[1])')).study().conditions == ()
    with pytest.raises(ValueError, match="--condition a is given twice"):
        Options(condition=('a=zero("cls")', 'a=zero("registers")'))


def test_a_model_that_cannot_run_a_condition_is_named_and_skipped(study, models, capsys):
    chosen = dataclasses.replace(study, models=models, conditions=("mine",), added_conditions={"mine": 'zero("registers[1]")'})
    reproduce(chosen)
    assert "without cannot run mine: " in capsys.readouterr().out
    opened = open_study(study.out)
    assert {row["model"] for row in opened.rows if row["condition"] == "mine"} == {"with_registers"}
    assert [line for line in opened.manifest["skipped"] if line.startswith("without cannot run mine: ")]
    with pytest.raises(ValueError, match=r"with_registers cannot run mine: .*block"):
        reproduce(dataclasses.replace(chosen, models=models[:1], added_conditions={"mine": 'zero("cls", layers="7")'}))


def test_a_condition_that_is_defined_anew_is_never_run_in_its_old_sense(study, models):
    """Nor where a model cannot run the new one."""
    reproduce(dataclasses.replace(study, models=models, conditions={"zero_cls": 'zero("registers")', "mean_cls": "mean_cls"}))
    rows = open_study(study.out).rows
    assert {row["tokens"] for row in rows if row["condition"] == "zero_cls"} == {"registers"}
    assert {row["model"] for row in rows if row["condition"] == "zero_cls"} == {"with_registers"}
    assert {row["model"] for row in rows if row["condition"] == "mean_cls"} == {"with_registers", "without"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"added_conditions": {"zero_cls": jaxvit.zero("cls")}}, "names a condition zero_cls, and there is one of that name already"),
        ({"conditions": {"full": jaxvit.zero("cls")}}, "names a condition full"),
        ({"conditions": {"mine": lambda config, moments, seed: 3}}, "cannot run mine: it gives int and no jaxvit.Ablation"),
        ({"conditions": {"mine": "zero(cls)"}}, "cannot read condition"),
        ({"plugins": ("nowhere.py",)}, "there is no plug-in nowhere.py"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(study, change, message):
    with pytest.raises(ValueError, match=message):
        reproduce(dataclasses.replace(study, **change))
    assert not study.out.exists()


def test_a_task_is_one_file(study, tmp_path):
    """Its numbers, its column and its scores are there, and nothing else was touched."""
    plugin = tmp_path / "toy.py"
    plugin.write_text(TOY)
    page = reproduce(dataclasses.replace(study, tasks=(), conditions=("zero_cls",), plugins=(str(plugin),))).read_text()
    assert "how long<br>CLS is<br>a.u." in page
    opened = open_study(study.out)
    row = select(opened.rows, model="with_registers", condition="full", task="cls_length")[0]
    assert row["primary"]
    assert row["unit"] == "a.u."
    assert row["value"] == pytest.approx(opened.scores(row)[:, 0, 0].mean())
    assert list(opened.manifest["plugins"]) == [str(plugin)]
    plugin.write_text(TOY + "\nMORE = 1\n")
    reproduce(dataclasses.replace(study, tasks=("cls_length",), conditions=("zero_cls",), plugins=(str(plugin),)))
    again = select(open_study(study.out).rows, model="with_registers", condition="full", task="cls_length")
    assert len(again) == 1
    assert again[0]["cell"] != row["cell"], "another file is another definition"


def test_a_model_and_arrays_from_memory(study, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    colours = np.eye(3)[labels][:, None, None]
    images = (150 * colours + generator.integers(0, 60, (60, 64, 64, 3))).astype(np.uint8)
    data = {"train": (images[:40], labels[:40]), "test": (images[40:], labels[40:])}
    sizes = dataclasses.replace(SIZE, train=None, val=None, test=None, pairs=8, segmentation=None, segmentation_test=None, calibration=16)
    own = dataclasses.replace(study, preset="custom", models={"mine": jaxvit.create(CONFIG, 3)}, data=data, sizes=sizes, tasks=("knn",))
    page = reproduce(dataclasses.replace(own, conditions=("zero_cls",))).read_text()
    assert "35 to fit on, 5 to choose on, 20 to report" in page
    assert "handwritten" not in page
    rows = open_study(study.out).rows
    assert {row["model"] for row in rows} == {"mine", "mine_random", "raw_pixels"}
    assert select(rows, model="raw_pixels", metric="top1_k20", feature="cls")[0]["value"] > 0.9
    moved = {**data, "test": (255 - images[40:], labels[40:])}
    with pytest.raises(ValueError, match="differs in data"):
        reproduce(dataclasses.replace(own, data=moved))


@pytest.mark.parametrize("by_size", [False, True], ids=["asked for", "by size"])
def test_weights_are_split_wherever_models_come_from(models, by_size, monkeypatch):
    """A checkpoint, a demo, one from memory, random ones of a baseline; the weights, and so the keys, are the same."""
    monkeypatch.setattr(planning, "is_large", lambda config, mesh: by_size)
    mesh, small = batch_mesh(), jaxvit.create(CONFIG, 1)
    options = {"shard_weights": not by_size, "sizes": SIZE}
    studies = [
        Study(models=(models[0], "demo_reg"), **options),
        Study(models={"mine": small, "split": shard_weights(small, mesh)}, **options),
    ]
    for study in studies:
        for name, model in planning.load_models(study, mesh).items():
            assert model.weight_shards == with_weight_shards(model, mesh).weight_shards, name
            assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(model)), name
    loaded = planning.load_models(studies[0], mesh)
    assert weights_hash(loaded["with_registers"]) == weights_hash(small)
    assert planning.split_weights({**loaded, "small": small}) == [
        f"Weights of {name} are split over devices ({mesh.size})." for name in ("with_registers", "demo_reg")
    ]
    assert planning._create(studies[0], CONFIG, mesh).weight_shards == loaded["with_registers"].weight_shards, "a baseline"


def test_small_models_are_copied(models):
    assert {model.weight_shards for model in planning.load_models(Study(models=models)).values()} == {None}


def test_a_finished_folder_is_found_again_by_another_process(study):
    reproduce(dataclasses.replace(study, conditions=("mean_cls", "noise_registers")))
    manifest = json.loads((Path(study.out) / "run.json").read_text())
    import subprocess
    import sys

    code = (
        "import dataclasses, sys; from experiments.reproduce import Study, reproduce; from pathlib import Path;"
        "from experiments.program import prepare_devices; from tests.experiments.tiny_study import READOUTS, SIZE;"
        f"few = dict(sizes=SIZE, batch_size=16, resamples=50, seeds=1, readouts=READOUTS);"
        f"reproduce(Study(models=({study.models[0]!r},), out={str(study.out)!r}, tasks=('knn',), analyses=('ablation_table',),"
        "conditions=('mean_cls', 'noise_registers'), dry_run=True, **few))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    count = len(manifest["cells"])
    assert f"{count} cells, {count} already there" in " ".join(done.stdout.split()), done.stderr[-2000:]
