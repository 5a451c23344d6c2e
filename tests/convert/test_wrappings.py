"""The same weights in every wrapping give the same checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

import jaxvit
from convert import convert, to_safetensors
from jaxvit.checkpoint import load, read_manifest
from tests.convert import sources
from tests.convert.sources import HEADS, WIDTH, dinov2, dinov3, renamed, write


def hash_of(path, tmp_path, heads=HEADS, **arguments):
    return read_manifest(convert(path, tmp_path / "out", heads=heads, **arguments))["weights_sha256"]


@pytest.fixture
def plain(tmp_path):
    return hash_of(write(tmp_path / "plain.pth", dinov2(4)), tmp_path)


def _chunked(key):
    return re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", key)


def _full_dino():
    """A training checkpoint of DINO: student, teacher with its head, optimizer, arguments."""
    weights = dinov2(4)
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    return {
        "student": renamed(dinov2(4, seed=1) | head, "module.backbone.{}".format),
        "teacher": renamed(weights, "backbone.{}".format) | head,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "loss": 0.5,
        "step": torch.tensor(7),
        "args": argparse.Namespace(arch="vit_small", lr=[0.1]),
        "dino_loss": {"center": torch.ones(1, 4)},
    }


WRAPPINGS = {
    "ordered": lambda: OrderedDict(dinov2(4)),
    "module": lambda: renamed(dinov2(4), "module.{}".format),
    "module.backbone": lambda: renamed(dinov2(4), "module.backbone.{}".format),
    "compiled": lambda: renamed(dinov2(4), "_orig_mod.{}".format),
    "chunked": lambda: renamed(dinov2(4), _chunked),
    "chunked teacher": lambda: {
        "teacher": renamed(dinov2(4), lambda k: f"backbone.{_chunked(k)}") | {"dino_head.mlp.0.weight": torch.ones(2)}
    },
    "full": _full_dino,
    "model": lambda: {"model": dinov2(4), "args": argparse.Namespace(a=1)},
    "state_dict": lambda: {"state_dict": renamed(dinov2(4), "model.{}".format), "epoch": 3},
    "model.teacher": lambda: {
        "model": renamed(dinov2(4), "teacher.backbone.{}".format) | renamed(dinov2(4, 1), "student.backbone.{}".format)
    },
    "with namespace": lambda: {
        **dinov2(4),
        "args": argparse.Namespace(a=1),
        "epoch": 3,
        "optimizer": {"state": {0: torch.ones(2)}},
    },
    "views": lambda: {k: (v.T.contiguous().T if v.ndim == 2 else v) for k, v in dinov2(4).items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_wrapping_gives_the_same_weights(wrapping, zipped, plain, tmp_path):
    assert hash_of(write(tmp_path / "wrapped.pth", WRAPPINGS[wrapping](), zipped), tmp_path) == plain


def test_tensors_that_share_memory_are_read(plain, tmp_path):
    weights = dinov2(4)
    pool = torch.cat([weights["norm.weight"], weights["norm.bias"]])
    weights["norm.weight"], weights["norm.bias"] = pool[:WIDTH], pool[WIDTH:]
    weights["mask_token"] = weights["cls_token"]  # the same memory twice
    path = write(tmp_path / "shared.pth", weights)
    assert hash_of(path, tmp_path) == plain
    assert hash_of(to_safetensors(path, tmp_path / "shared.safetensors"), tmp_path) == plain


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_safetensors_written_from_a_pickle_gives_the_same_weights(wrapping, plain, tmp_path):
    file = to_safetensors(write(tmp_path / "wrapped.pth", WRAPPINGS[wrapping]()), tmp_path / "new" / "weights.safetensors")
    assert hash_of(file, tmp_path) == plain
    assert [p.name for p in file.parent.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_become_float32(dtype, kind, tmp_path):
    weights = {key: value.to(dtype) for key, value in dinov2().items()}
    path = tmp_path / f"weights.{kind}"
    write(path, weights) if kind == "pth" else safetensors.torch.save_file(weights, path)
    model = load(convert(path, tmp_path / "out", heads=HEADS))
    kernel = model.blocks.attention.qkv.kernel[...][1]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, weights["blocks.1.attn.qkv.weight"].float().numpy().T)


def test_masked_key_bias_is_zero_even_where_it_is_nan(tmp_path):
    weights = dinov3()
    model = load(convert(write(tmp_path / "v3.pth", weights), tmp_path / "out"))
    bias = np.asarray(model.blocks.attention.qkv.bias[...])
    assert (bias[:, WIDTH : 2 * WIDTH] == 0).all()
    np.testing.assert_array_equal(bias[0, :WIDTH], weights["blocks.0.attn.qkv.bias"][:WIDTH].numpy())
    np.testing.assert_array_equal(model.rope_periods[...], [1.0, 10.0])
    assert model.config.heads == HEADS


def test_prefix_norm_is_read_and_the_local_one_ignored(tmp_path):
    extra = {f"{norm}.{leaf}": torch.rand(WIDTH) for norm in ("cls_norm", "local_cls_norm") for leaf in ("weight", "bias")}
    model = load(convert(write(tmp_path / "v3.pth", dinov3() | extra), tmp_path / "out"))
    assert model.config.untied_norm
    np.testing.assert_array_equal(model.prefix_norm.scale[...], extra["cls_norm.weight"].numpy())


def test_models_without_qkv_bias_have_no_such_leaf(tmp_path):
    weights = {key: value for key, value in dinov3().items() if "qkv.bias" not in key}
    assert not load(convert(write(tmp_path / "v3.pth", weights), tmp_path / "out")).config.qkv_bias


def test_manifest_says_where_the_weights_come_from(tmp_path):
    path = write(tmp_path / "weights.pth", {"teacher": dinov2(4)})
    manifest = read_manifest(convert(path, tmp_path / "out", heads=HEADS, name="my model"))
    assert (manifest["layout"], manifest["oracle"], manifest["name"], manifest["dtype"]) == ("meta", "meta", "my model", "float32")
    assert manifest["source"]["path"] == "weights.pth"
    assert str(tmp_path) not in json.dumps(manifest)
    assert manifest["source"]["wrapper"] == "teacher"
    assert re.fullmatch("[0-9a-f]{64}", manifest["source"]["sha256"]["weights.pth"])
    assert manifest["config"] == json.loads(json.dumps(dataclasses.asdict(load(tmp_path / "out").config)))


def test_oracle_chooses_the_rules_and_not_the_weights(tmp_path):
    for weights, meta, hf in ((dinov2(), "offset", "plain"), (dinov2(4), "antialias", "antialias")):
        path = write(tmp_path / "w.pth", weights)
        ours = load(convert(path, tmp_path / "meta", heads=HEADS)).config
        theirs = load(convert(path, tmp_path / "hf", heads=HEADS, oracle="hf")).config
        assert (ours.position, theirs.position) == (meta, hf)


def test_a_released_name_sets_head_count_and_pixel_statistics(tmp_path, monkeypatch):
    released = jaxvit.ViTConfig(4, WIDTH, sources.DEPTH, 4, 2 * WIDTH, image_size=12, pixel_mean=(0.1, 0.2, 0.3))
    monkeypatch.setitem(jaxvit.MODELS, "tiny_sat493m", released)
    path = write(tmp_path / "w.pth", dinov2())
    assert load(convert(path, tmp_path / "named", name="tiny_sat493m")).config == released
    by_size = load(convert(path, tmp_path / "by_size")).config
    assert by_size.heads == 4
    assert by_size.pixel_mean == jaxvit.config.IMAGENET_MEAN
