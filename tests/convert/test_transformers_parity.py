"""Hugging Face's models and ours agree, from the files that transformers writes.

Models of patch 14 run at 224, 518 and 224 x 280; those of patch 16 at 224, 512 and 224 x 288, the nearest multiples.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import jaxvit
from convert import convert
from convert.__main__ import main
from jaxvit.checkpoint import load, read_manifest

transformers = pytest.importorskip("transformers", reason="the oracle of these tests is transformers")
no_init_weights = pytest.importorskip("transformers.initialization").no_init_weights

TOLERANCE = 3e-5
S = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
B = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
TINY = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
FAMILIES = {
    "vit": ("ViT", {"patch_size": 16, "image_size": 224}),
    "dinov2": ("Dinov2", {"patch_size": 14, "image_size": 518}),
    "dinov2_reg": ("Dinov2WithRegisters", {"patch_size": 14, "image_size": 518, "num_register_tokens": 4}),
    "dinov3": ("DINOv3ViT", {"patch_size": 16, "num_register_tokens": 4}),
}


def make(family: str, sizes: dict, head: str = "Model", seed: int = 0, **changes):
    """A model whose parameters are all redrawn, so that a wrong mapping shows and the final tokens are of order one."""
    stem, settings = FAMILIES[family]
    settings = {**settings, **sizes, **changes}
    if family in ("vit", "dinov3"):
        settings.setdefault("intermediate_size", 4 * settings["hidden_size"])
    torch.manual_seed(seed)
    with no_init_weights():  # all of them are redrawn
        model = getattr(transformers, stem + head)(getattr(transformers, f"{stem}Config")(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda" in name:
                parameter.uniform_(0.5, 1.0)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            elif "token" in name or "position" in name:
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, math.prod(parameter.shape[1:]) ** -0.5)
    return model


def saved(model, folder: Path, **arguments) -> Path:
    model.save_pretrained(folder, **arguments)
    return folder


def measure(theirs, ours: jaxvit.ViT, height: int, width: int) -> float:
    """Largest absolute difference of the tokens after the final norm."""
    pixels = np.random.default_rng(height).normal(size=(1, 3, height, width)).astype(np.float32)
    extra = {"interpolate_pos_encoding": True} if isinstance(theirs, transformers.ViTModel) else {}
    with torch.no_grad():
        reference = theirs(torch.from_numpy(pixels), **extra).last_hidden_state.numpy()
    with jax.default_matmul_precision("highest"):
        tokens = np.asarray(jaxvit.forward(ours, pixels.transpose(0, 2, 3, 1)).tokens)
    assert 0.5 < np.abs(reference).mean() < 5
    return float(np.abs(tokens - reference).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [S, pytest.param(B, marks=pytest.mark.slow)], ids="SB")
def test_tokens_agree(family, sizes, record_parity, tmp_path):
    theirs = make(family, sizes)
    ours = load(convert(saved(theirs, tmp_path / "hf"), tmp_path / "out"))
    patch = ours.config.patch_size
    for height, width in ((224, 224), (518, 518) if patch == 14 else (512, 512), (224, 20 * patch if patch == 14 else 18 * patch)):
        error = measure(theirs, ours, height, width)
        record_parity(f"hf {family} {'S' if sizes is S else 'B'}", f"{height}x{width} max abs", error, TOLERANCE)
        assert error <= TOLERANCE, f"{height}x{width}"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("dinov2", {"use_swiglu_ffn": True}),
        ("dinov2_reg", {"use_swiglu_ffn": True}),
        ("dinov3", {"use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 80}),
        ("dinov3", {"query_bias": False, "value_bias": False}),
        ("dinov3", {"key_bias": True}),
        ("dinov2", {"qkv_bias": False}),
        ("dinov2", {"layer_norm_eps": 1e-3}),
        ("dinov3", {"num_register_tokens": 0}),
        ("dinov2_reg", {"num_register_tokens": 0}),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else x,
)
def test_variants_agree_at_a_tiny_width(family, changes, record_parity, tmp_path):
    theirs = make(family, TINY | {"image_size": 70 if "dinov2" in family else 64}, **changes)
    ours = load(convert(saved(theirs, tmp_path / "hf"), tmp_path / "out"))
    patch = ours.config.patch_size
    error = measure(theirs, ours, 6 * patch, 4 * patch)
    record_parity(f"hf {family} tiny", " ".join(changes), error, TOLERANCE)
    assert error <= TOLERANCE


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov2_reg"])
def test_classification_models_and_shards_give_the_same_backbone(family, tmp_path):
    theirs = make(family, TINY | {"image_size": 112}, head="ForImageClassification")
    whole = convert(saved(theirs, tmp_path / "whole"), tmp_path / "out")
    bare = convert(saved(theirs.base_model, tmp_path / "bare"), tmp_path / "bare_out")
    shards = saved(theirs, tmp_path / "shards", max_shard_size="40KB")
    parts = len(list(shards.glob("*.safetensors")))
    assert parts > 1
    sharded = convert(shards, tmp_path / "sharded_out")
    hashes = {read_manifest(folder)["weights_sha256"] for folder in (whole, bare, sharded)}
    assert len(hashes) == 1
    assert len(read_manifest(sharded)["source"]["sha256"]) == parts + 2  # the index and config.json too


def test_a_lone_file_beside_its_config_is_read_like_the_folder(tmp_path):
    folder = saved(make("vit", TINY), tmp_path / "hf")
    by_file = read_manifest(convert(folder / "model.safetensors", tmp_path / "file"))
    assert (by_file["config"]["norm_eps"], by_file["config"]["heads"]) == (1e-12, 2)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="pass it: heads=N"):
        convert(folder, tmp_path / "none")
    without_config = read_manifest(convert(folder, tmp_path / "without_config", heads=2))
    assert without_config["config"] == by_file["config"]


@pytest.mark.parametrize(("family", "position", "eps"), [("vit", "offset", 1e-6), ("dinov2", "offset", 1e-6), ("dinov3", "rope", 1e-5)])
def test_the_meta_oracle_on_hugging_face_weights(family, position, eps, tmp_path):
    folder = saved(make(family, TINY | {"image_size": 112}), tmp_path / "hf")
    ours = load(convert(folder, tmp_path / "out", oracle="meta"))
    assert (ours.config.position, ours.config.norm_eps) == (position, eps)
    if position == "rope":
        periods = np.asarray(ours.rope_periods[...])
        np.testing.assert_array_equal(periods, periods.astype("bfloat16"))


@pytest.mark.parametrize(
    ("family", "change", "expected"),
    [
        ("dinov2", {"num_attention_heads": 5}, "5 heads do not divide"),
        ("dinov2", {"num_attention_heads": "2"}, "whole number"),
        ("dinov2", {"hidden_size": 48}, "hidden_size 48"),
        ("dinov2", {"model_type": "dinov2_with_registers"}, "model_type"),
        ("dinov2", {"hidden_act": "gelu_new"}, "gelu_new"),
        ("dinov3", {"num_hidden_layers": 3}, "num_hidden_layers 3"),
        ("dinov3", {"rope_theta": 50.0}, "rope_theta 50.0"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(family, change, expected, capsys, tmp_path):
    folder = saved(make(family, TINY | {"image_size": 112}), tmp_path / "hf")
    capsys.readouterr()
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "out").exists()


def test_heads_that_contradict_the_config_are_refused(tmp_path):
    folder = saved(make("dinov2", TINY | {"image_size": 112}), tmp_path / "hf")
    with pytest.raises(ValueError, match=r"2 by config\.json"):
        convert(folder, tmp_path / "out", heads=4)
