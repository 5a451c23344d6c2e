"""Pretraining: resumed = uninterrupted bit for bit, folders are not mixed up, and the parts do what they claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from experiments import backbone, objective, pretrain, program
from experiments.pretrain import CONFIGS, Pretraining, Recipe, train
from jaxvit.checkpoint import named_leaves
from jaxvit.config import ViTConfig
from jaxvit.forward import forward
from jaxvit.vit import abstract, create

TINY = ViTConfig(8, 16, 2, 2, 32, registers=1, position="antialias", image_size=64)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretraining:
    """Four steps of a tiny model, with a checkpoint after every second; one size of views and one length, so one compile."""
    monkeypatch.setitem(CONFIGS, "demo_reg", TINY)
    recipe = Recipe(batch=4, queue=8, warmup=1, small_views=0.0)
    return Pretraining(tmp_path / "whole", steps=4, recipe=recipe, checkpoint_every=2, evaluate_every=4, bank=20, queries=10)


def test_resumed_equals_uninterrupted_bit_for_bit(run: Pretraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_file(train(run))
    step, seen = pretrain.train_step, []

    def killed_at_the_fourth(*arguments):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return step(*arguments)

    again = replace(run, out=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train_step", killed_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert not (again.out / "demo_reg.safetensors").exists()
    resumed = load_file(train(again))
    assert whole.keys() == resumed.keys() == set(named_leaves(abstract(TINY)))
    for name, leaf in whole.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)
    assert [line["step"] for line in pretrain.log_lines(again.out)] == [4]


def test_what_was_logged_after_the_checkpoint_is_forgotten(run: Pretraining) -> None:
    run.out.mkdir()
    (run.out / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (20, 40, 60)))
    pretrain._cut_log(run, 40)
    assert [line["step"] for line in pretrain.log_lines(run.out)] == [20, 40]


def test_two_devices_train_as_one(tmp_path: Path) -> None:
    """In a process of its own, which has two devices; only the order of sums differs. Quickly compiled, for both in the same way."""
    script = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from experiments.pretrain import *
from experiments.pretrain import _mesh
CONFIGS["demo_reg"] = ViTConfig(8, 16, 2, 2, 32, registers=1, position="antialias", image_size=64)
run = Pretraining(Path(), steps=4, recipe=Recipe(batch=4, queue=8, warmup=0, hidden_keys=(0.5, 0.9), foreign_keys=True))
source, found = scenes.material("train"), []
meshes = batch_mesh(jax.devices()[:1]), _mesh(run)
assert [mesh.size for mesh in meshes] == [1, 2]
for mesh in meshes:
    state, told = replicate(initial_state(run), mesh), []
    for _ in range(2):
        state, report = train_step(run, 48, mesh, replicate(source, mesh), state)
        told.append(jax.device_get((report, state["queue"])))
    found.append(told)
# Not the weights: where a gradient is zero but for rounding, the first step of Adam is its sign.
for step, tolerance in enumerate((1e-5, 1e-3)):
    for one, two in zip(*(jax.tree.leaves(told[step]) for told in found), strict=True):
        np.testing.assert_allclose(one, two, atol=tolerance, rtol=tolerance)
assert found[0][0][0]["gradient_norm"] > 0.1
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
    assert done.returncode == 0, done.stderr


def test_registers_see_hidden_keys_and_nothing_else_does() -> None:
    """With every patch key hidden in the one block there is, CLS and patches depend on no other patch, the register on all."""
    config = replace(TINY, depth=1)
    model = create(config)
    images = jax.random.normal(jax.random.key(0), (2, 1, 64, 64, 3))
    hiding = backbone.Hiding(jnp.zeros((2, 1, 64), bool), jnp.ones((2, 1, 64), bool))
    other = images.at[..., :8, :8, :].add(1.0)  # the first patch
    seen = [backbone.features(model, x, hiding, jnp.zeros(16)) for x in (images, other)]
    np.testing.assert_array_equal(seen[0].cls, seen[1].cls)
    np.testing.assert_array_equal(seen[0].patches[..., 1:, :], seen[1].patches[..., 1:, :])
    assert (seen[0].patches[..., 0, :] != seen[1].patches[..., 0, :]).any()
    unseen = backbone._unseen(hiding.keys, 1)
    assert not unseen[:, 1].any()
    assert not unseen[:, :, :2].any()
    assert unseen[:, 0, 2:].all()
    assert unseen[:, 2:, 2:].all()
    plain = [backbone.features(model, x).cls for x in (images, other)]
    assert (plain[0] != plain[1]).any()


def test_with_nothing_hidden_a_view_by_itself_is_seen_whole() -> None:
    model = create(TINY)
    images = jax.random.normal(jax.random.key(0), (2, 1, 64, 64, 3))
    nothing = backbone.Hiding(jnp.zeros((2, 1, 64), bool), jnp.zeros((2, 1, 64), bool))
    assert not backbone._unseen(nothing.keys, 1).any()
    for hidden, plain in zip(backbone.features(model, images, nothing), backbone.features(model, images), strict=True):
        np.testing.assert_allclose(hidden, plain, atol=1e-5)


def test_foreign_keys_are_those_of_the_other_view() -> None:
    """In one block, CLS and patches of a view depend on its own patch only through itself, and on the other view's patches; what
    is hidden of those they do not see; registers see their own view."""
    model = create(replace(TINY, depth=1))
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    keys = jnp.zeros((2, 64), bool).at[:, 1].set(True)
    hiding = backbone.Hiding(jnp.zeros((2, 64), bool), keys)

    def change(patch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of the two views' CLS, and which patches, change with a patch of the first view."""
        row = images.at[0, :8, 8 * patch : 8 * patch + 8].add(1.0)
        before, after = (backbone.features(model, x, hiding, jnp.zeros(16)) for x in (images, row))
        return np.any(before.cls != after.cls, axis=-1), np.any(before.patches != after.patches, axis=-1)

    cls, patches = change(0)
    np.testing.assert_array_equal(cls, [False, True])
    np.testing.assert_array_equal(patches[0], np.arange(64) == 0)
    assert patches[1].all()
    cls, patches = change(1)  # its key is hidden
    assert not cls.any()
    assert not patches[1].any()
    unseen = np.asarray(backbone._unseen(keys, 1))
    np.testing.assert_array_equal(unseen[1], np.arange(132) >= 66)  # the register of the first view
    assert unseen.shape == (132, 132)


def test_views_are_paired_with_views_of_another_scene() -> None:
    scene = np.arange(24) // 2
    pairs = np.asarray(backbone.pairs(jnp.asarray(scene)))
    assert pairs.shape == (12, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    numbers = jnp.arange(48).reshape(24, 2)
    np.testing.assert_array_equal(backbone.unpair(backbone.pairs(numbers)), numbers)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match=r"choose an even --recipe\.batch"):
        pretrain._mesh(Pretraining(Path(), recipe=Recipe(batch=3, foreign_keys=True)))


def test_what_is_hidden_is_drawn_as_documented() -> None:
    hiding = objective.hide(jax.random.key(0), 200, 8, 8, (0.0, 0.95))
    assert hiding.patches[:80].any(axis=1).all()
    assert not hiding.patches[80:].any()
    share = np.asarray(hiding.keys.mean(axis=1))
    assert 0.4 < share.mean() < 0.55
    assert share.max() > 0.85
    assert share.min() < 0.05
    assert not objective.hide(jax.random.key(0), 200, 8, 8, (0.0, 0.0)).keys.any()


def test_features_are_those_of_the_model() -> None:
    model = create(TINY)
    images = jax.random.normal(jax.random.key(0), (3, 64, 64, 3))
    found, run = backbone.features(model, images), forward(model, images)
    np.testing.assert_allclose(found.cls, run.cls, atol=1e-5)
    np.testing.assert_allclose(found.patches, run.patches, atol=1e-5)


def test_the_model_says_what_it_is_and_how_it_was_trained(run: Pretraining) -> None:
    with safe_open(train(run), "numpy") as file:
        config, training = (json.loads(file.metadata()[key]) for key in ("config", "training"))
        assert file.get_tensor("blocks.attention.qkv.kernel").dtype == np.float16
    assert config == json.loads(json.dumps(asdict(TINY)))
    assert (training["steps"], training["seed"], training["recipe"]["batch"]) == (4, 0, 4)
    assert 0 <= training["knn"] <= 1


def test_a_second_run_starts_from_the_weights_of_the_first(run: Pretraining, tmp_path: Path) -> None:
    second = replace(run, out=tmp_path / "second", start=run.out)
    with pytest.raises(ValueError, match="holds no finished run"):
        train(second)
    assert not second.out.exists()
    first = load_file(train(run))
    teacher = pretrain.initial_state(second)["teacher"]["backbone"]
    for name, leaf in first.items():
        np.testing.assert_array_equal(np.asarray(teacher[name], np.float16), leaf, err_msg=name)
    path = train(second)
    assert any((load_file(path)[name] != leaf).any() for name, leaf in first.items())
    with safe_open(path, "numpy") as file:
        training = json.loads(file.metadata()["training"])
    assert (training["steps"], training["start"]["steps"], "start" in training["start"]) == (4, 4, False)


@pytest.mark.parametrize("change", [{"steps": 5}, {"seed": 1}, {"recipe": Recipe(batch=8)}])
def test_the_folder_of_another_run_is_refused(run: Pretraining, change: dict) -> None:
    run.out.mkdir()
    pretrain._claim(run)
    pretrain._claim(run)
    with pytest.raises(ValueError, match=f"another {next(iter(change))}; choose another --out"):
        train(replace(run, **change))


def test_the_command_line_ends_with_2_and_one_line(run: Pretraining, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain._claim(run)
    monkeypatch.setattr(program, "prepare_devices", lambda: None)  # this process has its devices
    monkeypatch.setattr("sys.argv", ["pretrain", "--out", str(run.out), "--steps", "7"])
    with pytest.raises(SystemExit) as stop:
        pretrain.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_muon_takes_every_block_matrix_by_itself() -> None:
    weights = {"backbone": named_leaves(create(TINY)), "heads": objective.create_heads(TINY.width, jax.random.key(0))}
    run = Pretraining(Path(), steps=10, recipe=Recipe(warmup=0, clip=1e9))
    gradient = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), weights)
    name = "blocks.attention.out.kernel"

    @jax.jit
    def update(g):
        return pretrain.optimiser(run).update(g, pretrain.optimiser(run).init(weights), weights)[0]["backbone"][name]

    both = update(gradient)
    # a rank-one gradient of the second block's matrix must leave the first block's update alone
    gradient["backbone"][name] = gradient["backbone"][name].at[1].set(1.0)
    other = update(gradient)
    np.testing.assert_array_equal(both[0], other[0])
    singular = np.linalg.svd(np.asarray(both[0]) / 0.02, compute_uv=False)
    assert singular.max() < 1.3
    assert np.median(singular) > 0.6


def test_sinkhorn_balances_the_prototypes() -> None:
    scores = jax.random.uniform(jax.random.key(0), (256, 16), minval=-0.2, maxval=0.2)
    assigned = objective.sinkhorn(scores)
    np.testing.assert_allclose(assigned.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(assigned.sum(axis=0), 16, rtol=0.3)


def test_blobs_cover_a_tenth_to_two_fifths() -> None:
    share = objective.blobs(jax.random.key(0), 64, 8, 8).mean(axis=1)
    assert 0.08 < share.min() < 0.2
    assert 0.3 < share.max() <= 0.42


def test_contrast_is_smallest_for_the_right_partner() -> None:
    vectors = objective.unit(jax.random.normal(jax.random.key(0), (8, 32)))
    queue = objective.unit(jax.random.normal(jax.random.key(1), (16, 32)))
    assert objective.contrast(vectors, vectors, queue) < objective.contrast(vectors, jnp.roll(vectors, 1, axis=0), queue)
