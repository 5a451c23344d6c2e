"""Files as timm writes them are recognised, read completely, and compute what the original modules do."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

import jaxvit
from convert import convert
from jaxvit.checkpoint import load, read_manifest
from tests.conftest import golden_names
from tests.convert.sources import HEADS, WIDTH, dinov2, dinov3, max_error, to_timm

TOLERANCE = 5e-6
LAYOUTS = {"dino": "timm", "dinov2": "timm", "dinov2_reg": "timm_reg", "dinov3": "timm_eva"}


def written(folder: Path, weights: dict[str, torch.Tensor], config: dict | None = None) -> Path:
    """A folder as timm puts it on the hub."""
    folder.mkdir()
    safetensors.torch.save_file(to_timm(weights), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", golden_names() or ["dinov2_p14"])
def test_timm_files_compute_what_the_original_does(name, golden, record_parity, tmp_path):
    """MLP and both SwiGLUs, with registers and without. Under Meta's rules for positions, which the fixtures were made with."""
    meta, file = golden(name)
    folder = written(tmp_path / "timm", torch.load(file, weights_only=True), {"architecture": "vit"})
    out = convert(folder, tmp_path / "out", heads=meta["num_heads"], oracle="meta")
    assert read_manifest(out)["layout"] == LAYOUTS[meta["family"]]
    model, reference = load(out), load_file(file.with_suffix(".outputs.safetensors"))
    for height, width in meta["sizes"]:
        with jax.default_matmul_precision("highest"):
            tokens = jaxvit.forward(model, reference[f"{height}x{width}/images"].transpose(0, 2, 3, 1)).tokens
        error = max_error(tokens, reference[f"{height}x{width}/normed"])
        record_parity(f"timm {name}", f"{height}x{width} normed", error, TOLERANCE)
        assert error <= TOLERANCE


def test_keys_that_timm_shares_with_meta_are_told_apart_by_config_json(tmp_path):
    positions = {}
    for case, config in (("bare", None), ("timm", {"architecture": "vit_small_patch16_224"}), ("other", {"colour": "red"})):
        folder = written(tmp_path / case, dinov2(), config)
        manifest = read_manifest(convert(folder, tmp_path / f"{case}.out", heads=HEADS))
        positions[case] = (manifest["layout"], manifest["oracle"], manifest["config"]["position"])
    assert "config.json" in read_manifest(tmp_path / "timm.out")["source"]["sha256"]
    assert positions == {"bare": ("meta", "meta", "offset"), "timm": ("timm", "timm", "antialias"), "other": ("meta", "meta", "offset")}
    bare = read_manifest(convert(tmp_path / "bare", tmp_path / "asked", heads=HEADS, oracle="timm"))
    assert bare["config"]["position"] == "antialias"


def test_a_packed_swiglu_is_timms_without_any_config(tmp_path):
    """Only sizes tell it from an MLP: the keys are the same."""
    weights = dinov2()
    for i in range(2):
        weights[f"blocks.{i}.mlp.w12.weight"] = torch.randn(4 * WIDTH, WIDTH)
        weights[f"blocks.{i}.mlp.w12.bias"] = torch.randn(4 * WIDTH)
        for part in ("weight", "bias"):
            weights[f"blocks.{i}.mlp.w3.{part}"] = weights.pop(f"blocks.{i}.mlp.fc2.{part}")
            del weights[f"blocks.{i}.mlp.fc1.{part}"]
    out = convert(written(tmp_path / "packed", weights), tmp_path / "out", heads=HEADS)
    model = load(out)
    assert (read_manifest(out)["layout"], model.config.feed_forward, model.config.mlp_dim) == ("timm", "swiglu", 2 * WIDTH)
    gate = weights["blocks.1.mlp.w12.weight"][: 2 * WIDTH].numpy().T
    np.testing.assert_array_equal(model.blocks.feed_forward.gate.kernel[...][1], gate)


def test_the_position_of_cls_is_not_counted_twice(tmp_path):
    model = load(convert(written(tmp_path / "reg", dinov2(4)), tmp_path / "out", heads=HEADS))
    weights = dinov2(4)
    assert not np.asarray(model.cls_position[...]).any()
    np.testing.assert_allclose(model.cls_token[...], (weights["cls_token"] + weights["pos_embed"][:, :1])[0, 0], rtol=1e-6)


def test_biases_that_timm_leaves_out_are_zeros_in_released_models_and_absent_in_others(tmp_path, monkeypatch):
    weights = {key: value for key, value in dinov3().items() if "qkv.bias" not in key}
    folder = written(tmp_path / "eva", weights)
    assert not load(convert(folder, tmp_path / "other", heads=HEADS)).config.qkv_bias
    config = load(convert(written(tmp_path / "qkvb", dinov3()), tmp_path / "biased", heads=HEADS)).config
    assert config.qkv_bias
    monkeypatch.setitem(jaxvit.MODELS, "tiny", config)
    released = load(convert(folder, tmp_path / "released", name="tiny"))
    assert released.config == config
    assert not np.asarray(released.blocks.attention.qkv.bias[...]).any()


def test_the_key_bias_that_timm_does_not_store_is_zero(tmp_path):
    model = load(convert(written(tmp_path / "eva", dinov3()), tmp_path / "out", heads=HEADS))
    bias = np.asarray(model.blocks.attention.qkv.bias[...])
    assert not bias[:, WIDTH : 2 * WIDTH].any()
    np.testing.assert_array_equal(bias[1, 2 * WIDTH :], dinov3()["blocks.1.attn.qkv.bias"][2 * WIDTH :].numpy())
