"""Pretraining: a resumed run equals an uninterrupted one bit for bit, and the finished file says how it was made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from experiments.pretrain import objective, training
from experiments.pretrain.recipe import Pretraining, Recipe
from experiments.pretrain.training import train
from jaxvit.checkpoint import named_leaves
from jaxvit.vit import abstract, create
from tests.draws import normal
from tests.experiments.pretrain.tiny_training import TINY


def test_resumed_equals_uninterrupted_bit_for_bit(run: Pretraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_file(train(run))
    step, calls = training.train_step, []

    def killed_at_the_fourth(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return step(*arguments)

    again = replace(run, out=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", killed_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert not (again.out / "demo_reg.safetensors").exists()
    resumed = load_file(train(again))
    assert whole.keys() == resumed.keys() == set(named_leaves(abstract(TINY)))
    for name, leaf in whole.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)
    assert [line["step"] for line in training.log_lines(again.out)] == [4]


def test_lines_logged_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (20, 40, 60)))
    training.truncate_log(tmp_path, 40)
    assert [line["step"] for line in training.log_lines(tmp_path)] == [20, 40]


@pytest.mark.slow
def test_two_devices_train_as_one() -> None:
    """In a process of its own, which has two devices; only the order of sums differs. Quickly compiled, for both in the same way."""
    script = """
from pathlib import Path
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from experiments.datasets import scenes
from experiments.demo import CONFIGS
from experiments.pretrain.recipe import Pretraining, Recipe
from experiments.pretrain.training import initial_state, train_step, training_mesh
from jaxvit.sharding import batch_mesh, replicate
from tests.experiments.pretrain.tiny_training import TINY
CONFIGS["demo_reg"] = TINY
run = Pretraining(Path(), steps=4, recipe=Recipe(batch=4, queue=8, warmup=0, hidden_keys=(0.5, 0.9), foreign_keys=True))
source, by_mesh = scenes.material("pretrain"), []
meshes = batch_mesh(jax.devices()[:1]), training_mesh(run)
assert [mesh.size for mesh in meshes] == [1, 2]
for mesh in meshes:
    state, steps = replicate(initial_state(run), mesh), []
    for _ in range(2):
        state, metrics = train_step(run, 48, mesh, replicate(source, mesh), state)
        steps.append(jax.device_get((metrics, state["queue"])))
    by_mesh.append(steps)
# Not the weights: where a gradient is zero but for rounding, the first step of Adam is its sign.
for step, tolerance in enumerate((1e-5, 1e-3)):
    for one, two in zip(*(jax.tree.leaves(steps[step]) for steps in by_mesh), strict=True):
        np.testing.assert_allclose(one, two, atol=tolerance, rtol=tolerance)
assert by_mesh[0][0][0]["gradient_norm"] > 0.1
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3], env=environment)
    assert done.returncode == 0, done.stderr


def test_scenes_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match=r"choose an even --recipe\.batch"):
        training.training_mesh(Pretraining(Path(), recipe=Recipe(batch=3, foreign_keys=True)))


def test_the_model_says_what_it_is_and_how_it_was_trained(run: Pretraining) -> None:
    with safe_open(train(run), "numpy") as file:
        config, header = (json.loads(file.metadata()[key]) for key in ("config", "training"))
        assert file.get_tensor("blocks.attention.qkv.kernel").dtype == np.float16
    assert config == json.loads(json.dumps(asdict(TINY)))
    assert (header["steps"], header["seed"], header["recipe"]["batch"]) == (4, 0, 4)
    assert 0 <= header["knn"] <= 1


def test_a_second_run_starts_from_the_weights_of_the_first(run: Pretraining, tmp_path: Path) -> None:
    second = replace(run, out=tmp_path / "second", start=run.out)
    with pytest.raises(ValueError, match="holds no finished run"):
        train(second)
    assert not second.out.exists()
    first = load_file(train(run))
    teacher = training.initial_state(second)["teacher"]["backbone"]
    for name, leaf in first.items():
        np.testing.assert_array_equal(np.asarray(teacher[name], np.float16), leaf, err_msg=name)
    path = train(second)
    assert any((load_file(path)[name] != leaf).any() for name, leaf in first.items())
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["training"])
    assert (header["steps"], header["start"]["steps"], "start" in header["start"]) == (4, 4, False)


def test_muon_takes_every_block_matrix_by_itself() -> None:
    weights = {"backbone": named_leaves(create(TINY)), "heads": objective.create_heads(TINY.width, jax.random.key(0))}
    run = Pretraining(Path(), steps=10, recipe=Recipe(warmup=0, clip=1e9))
    gradient = jax.tree.map(lambda w: normal(1, *w.shape), weights)
    name = "blocks.attention.out.kernel"

    @jax.jit
    def update(g):
        return training.optimiser(run).update(g, training.optimiser(run).init(weights), weights)[0]["backbone"][name]

    both = update(gradient)
    # a rank-one gradient of the second block's matrix must leave the first block's update alone
    gradient["backbone"][name] = gradient["backbone"][name].at[1].set(1.0)
    other = update(gradient)
    np.testing.assert_array_equal(both[0], other[0])
    singular = np.linalg.svd(np.asarray(both[0]) / 0.02, compute_uv=False)
    assert singular.max() < 1.3
    assert np.median(singular) > 0.6
