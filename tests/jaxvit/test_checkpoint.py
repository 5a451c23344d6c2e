"""Checkpoints come back as they were, are written whole or not at all, and say what is wrong with them."""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import json
import os
import re
import shutil
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxvit
from jaxvit import checkpoint
from jaxvit.checkpoint import load, named_leaves, read_manifest, save, weights_hash
from tests.jaxvit import tiny

CONFIGS = {"table": tiny.CONFIG, "rope": tiny.ROPE, "plain": tiny.PLAIN}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A bundled demo: float16 leaves, the config in the header."""
    monkeypatch.setattr(checkpoint, "DEMO_FOLDER", tmp_path / "demo")
    leaves = {name: np.asarray(leaf, np.float16) for name, leaf in named_leaves(tiny.model()).items()}
    (tmp_path / "demo").mkdir()
    save_file(leaves, tmp_path / "demo" / "demo_tiny.safetensors", metadata={"config": json.dumps(dataclasses.asdict(tiny.CONFIG))})
    return leaves


def one_line(callable_, *arguments):
    with pytest.raises(ValueError, match=r".+") as caught:
        callable_(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_as_it_was(name, tmp_path):
    model = tiny.model(CONFIGS[name])
    restored = load(save(model, tmp_path / "deep" / "checkpoint"))
    assert restored.config == model.config
    assert jax.tree.structure(restored) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, restored, model)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    assert weights_hash(restored) == weights_hash(model) == read_manifest(tmp_path / "deep" / "checkpoint")["weights_sha256"]


def test_bfloat16_weights_stay_bfloat16(tmp_path):
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.model())
    restored = load(save(model, tmp_path / "half"))
    assert {leaf.dtype for leaf in jax.tree.leaves(restored)} == {jnp.dtype(jnp.bfloat16)}
    assert read_manifest(tmp_path / "half")["dtype"] == "bfloat16"
    assert weights_hash(restored) == weights_hash(model) != weights_hash(tiny.model())


def test_relative_and_moved_folders_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tiny.model(), "here/checkpoint")
    assert weights_hash(load("here/checkpoint")) == weights_hash(tiny.model())
    (tmp_path / "here").rename(tmp_path / "there")
    assert weights_hash(load("there/checkpoint")) == weights_hash(tiny.model())


def test_manifest_holds_ours_and_what_the_caller_adds(tmp_path):
    folder = save(tiny.model(), tmp_path / "m", {"source": {"path": "somewhere"}})
    manifest = read_manifest(folder)
    assert manifest["source"] == {"path": "somewhere"}
    assert {"format", "format_version", "config", "dtype", "weights_sha256", "versions"} <= manifest.keys()
    assert "config" in one_line(save, tiny.model(), tmp_path / "n", {"config": 1})


def test_no_file_names_the_machine_that_wrote_it(tmp_path):
    folder = save(tiny.model(), tmp_path / "telltale" / "m", {"source": {"path": "w.pth"}})
    user, host = getpass.getuser().encode() + b"@", socket.gethostname().encode() + b"/"
    words = {b"telltale", os.fsencode(tmp_path), os.fsencode(Path.home()) + b"/", user, host}
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert [(file, word) for file in files for word in words if word in file.read_bytes()] == []
    assert checkpoint.verify(folder) == weights_hash(tiny.model())


def test_a_checkpoint_from_before_the_path_was_erased_still_opens_and_verifies(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_erase_path", lambda _: None)
    folder = save(tiny.model(), tmp_path / "old")
    assert "old" in (folder / "weights" / "commit_success.txt").read_text()
    assert checkpoint.verify(folder) == weights_hash(load(folder)) == weights_hash(tiny.model())


def config_before_mlp_dim(config: jaxvit.ViTConfig) -> dict:
    """The config's entries under the names they had when `mlp_dim` was called `hidden`."""
    entries = dataclasses.asdict(config)
    return {"hidden": entries.pop("mlp_dim")} | entries


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_from_before_mlp_dim_still_opens_and_verifies(name, tmp_path):
    model = tiny.model(CONFIGS[name])
    folder = save(model, tmp_path / "old")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest["config"] = config_before_mlp_dim(model.config)
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"manifest_sha256": seal}, indent=2) + "\n")
    assert load(folder).config == model.config
    assert checkpoint.verify(folder) == weights_hash(load(folder)) == weights_hash(model)


def test_a_demo_from_before_mlp_dim_still_opens(demo, tmp_path):
    file = tmp_path / "demo" / "demo_tiny.safetensors"
    save_file(demo, file, metadata={"config": json.dumps(config_before_mlp_dim(tiny.CONFIG))})
    assert load("demo_tiny").config == tiny.CONFIG


@pytest.mark.parametrize("name", sorted(file.stem for file in checkpoint.DEMO_FOLDER.glob("*.safetensors")))
def test_the_bundled_demos_open_and_run(name):
    model = load(name)
    assert model.config.mlp_dim == 4 * model.config.width
    out = jaxvit.forward(model, jnp.zeros((1, model.config.image_size, model.config.image_size, 3)))
    assert jnp.isfinite(out.tokens).all()


def test_entries_that_json_changes_are_sealed_as_they_are_read(tmp_path):
    folder = save(tiny.model(), tmp_path / "m", {"curve": {9: 1.0, 10: (1, 2)}})
    assert checkpoint.verify(folder) == weights_hash(tiny.model())
    assert read_manifest(folder)["curve"] == {"9": 1.0, "10": [1, 2]}


def test_the_hash_sees_values_names_and_shapes():
    model = tiny.model()
    assert re.fullmatch("[0-9a-f]{64}", weights_hash(model))
    changed = jax.tree.map(lambda leaf: leaf, model)
    changed.cls_token[...] = changed.cls_token[...].at[0].add(1e-6)
    assert len({weights_hash(m) for m in (model, changed, tiny.model(tiny.PLAIN), tiny.model(seed=1))}) == 4
    assert weights_hash(jax.tree.map(np.asarray, model)) == weights_hash(model)


def test_an_existing_checkpoint_is_replaced_and_nothing_else_is(tmp_path):
    folder = tmp_path / "checkpoint"
    save(tiny.model(), folder)
    save(tiny.model(seed=1), folder)
    assert weights_hash(load(folder)) == weights_hash(tiny.model(seed=1))
    (tmp_path / "empty").mkdir()
    save(tiny.model(), tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text('{"name": "a web page"}')
    assert "something else" in one_line(save, tiny.model(), tmp_path / "mine")
    assert "is a file" in one_line(save, tiny.model(), tmp_path / "mine" / "manifest.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "empty", "mine"]


def test_a_save_that_dies_leaves_the_old_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    folder = save(tiny.model(), tmp_path / "checkpoint")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_put", die)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            save(tiny.model(seed=1), target)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert weights_hash(load(folder)) == weights_hash(tiny.model())


def test_demos_and_cached_checkpoints_open_by_name(demo, cache):
    model = load("demo_tiny")
    assert model.config == tiny.CONFIG
    for name, leaf in named_leaves(model).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, demo[name].astype(np.float32))
    save(tiny.model(), cache / "mine")
    assert weights_hash(load("mine")) == weights_hash(tiny.model())


def test_unknown_names_say_what_is_possible(demo, cache, tmp_path):
    save(tiny.model(), cache / "mine")
    message = one_line(load, "yours")
    assert "yours" in message
    assert "demo_tiny" in message
    assert "mine" in message
    assert "python -m convert" in message
    assert one_line(load, "dinov2_vits14").endswith("get them: python -m convert dinov2_vits14")
    assert "not here" in one_line(load, "../cache/mine/..")
    (tmp_path / "file.pth").write_text("x")
    for path in (tmp_path, tmp_path / "file.pth"):
        assert "python -m convert" in one_line(load, path)


def _edit_manifest(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _truncate(folder):
    for file in (folder / "weights").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:40])


def _scramble(folder):
    file = folder / "weights" / "_METADATA"
    file.write_bytes(b"x" * file.stat().st_size)


DAMAGE = {
    "no weights": (lambda f: shutil.rmtree(f / "weights"), "is missing"),
    "half the weights": (_truncate, "has 40 bytes"),
    "no tree": (lambda f: (f / "weights" / "_METADATA").unlink(), "_METADATA is missing"),
    "scrambled tree": (_scramble, "description of its tree"),
    "cut manifest": (lambda f: (f / "manifest.json").write_text('{"format": "jax'), "no JSON"),
    "foreign manifest": (lambda f: (f / "manifest.json").write_text("[]"), "no jaxvit checkpoint"),
    "newer": (lambda f: _edit_manifest(f, format_version=99), "format 99"),
    "strange config": (lambda f: _edit_manifest(f, config={"colour": "red"}), "colour"),
    "no config": (lambda f: _edit_manifest(f, config=None), "no config"),
    "deeper": (lambda f: _edit_manifest(f, config=dataclasses.asdict(dataclasses.replace(tiny.CONFIG, depth=4))), "instead of (4, 24)"),
    "missing and unknown": (
        lambda f: _edit_manifest(f, config=dataclasses.asdict(tiny.ROPE)),
        "5 missing (blocks.feed_forward.gate.bias",
    ),
    "other weights": (lambda f: _edit_manifest(f, weights_sha256="0" * 64), "not those of its manifest"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_clear_line(damage, tmp_path):
    folder = save(tiny.model(), tmp_path / "checkpoint")
    spoil, expected = DAMAGE[damage]
    spoil(folder)
    assert expected in one_line(load, folder)


def test_a_model_that_no_device_can_hold_says_how_to_split_it(tmp_path, monkeypatch):
    folder = save(tiny.model(), tmp_path / "checkpoint")

    def full(leaf):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nAnd more")

    monkeypatch.setattr(checkpoint.jax, "block_until_ready", full)
    assert one_line(load, folder).endswith("8 bytes; split it over several devices: jaxvit.load(path, jaxvit.sharding.batch_mesh())")


def test_integer_weights_are_refused(tmp_path):
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(tiny.model()).items()}
    leaves["norm.scale"] = leaves["norm.scale"].astype(np.int32)
    assert "norm.scale has dtype int32" in one_line(checkpoint.assemble, tiny.CONFIG, leaves)


def test_a_damaged_demo_is_one_clear_line(demo, tmp_path):
    file = tmp_path / "demo" / "demo_tiny.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    assert "install the package again" in one_line(load, "demo_tiny")
    save_file(demo, file)
    assert "no config" in one_line(load, "demo_tiny")
