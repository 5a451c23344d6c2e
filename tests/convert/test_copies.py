"""A model is found behind any prefix and beside other modules; of two copies the one that is asked for is read, and nothing in silence."""

from __future__ import annotations

import re

import pytest
import torch

from convert import convert, to_safetensors
from convert.__main__ import main
from convert.copies import choose, find_models
from convert.naming import recognise
from jaxvit.checkpoint import read_manifest
from tests.convert.sources import HEADS, dinov2, dinov3, renamed, to_timm, write
from tests.convert.test_wrappings import hash_of

HEADS_BESIDE = ("linear_head", "classifier.0", "fc", "head", "decoder.blocks.0.attn.qkv", "text_model.norm", "prototypes")


@pytest.fixture(scope="module")
def hashes(tmp_path_factory):
    """Hashes of two models, each from a file of its own: the raw one and the averaged one."""
    folder = tmp_path_factory.mktemp("plain")
    return [hash_of(write(folder / "w.pth", dinov2(4, seed)), folder) for seed in (0, 1)]


def prefixed(prefix, seed=0):
    return renamed(dinov2(4, seed), f"{prefix}{{}}".format)


def shapes_of(weights):
    return {key: tuple(value.shape) for key, value in weights.items()}


def error_of(path, tmp_path, capsys, *arguments):
    capsys.readouterr()
    assert main([str(path), "--out", str(tmp_path / "out"), "--heads", "2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("prefix", ["transformer.", "_fsdp_wrapped_module._orig_mod.module.net.0."])
def test_a_prefix_that_all_keys_share_is_taken_off(prefix, hashes, tmp_path):
    weights = prefixed(prefix) | {"classifier.0.weight": torch.ones(2, 2), "logit_scale": torch.tensor(1.0)}
    assert hash_of(write(tmp_path / "w.pth", weights), tmp_path) == hashes[0]
    source = read_manifest(tmp_path / "out")["source"]
    assert source["wrapper"] == prefix.removeprefix("_fsdp_wrapped_module._orig_mod.module.").rstrip(".")
    assert source["left_out"] == {"classifier": 1, "logit_scale": 1, f"{prefix}mask_token": 1}


@pytest.mark.parametrize(
    "prefix",
    [
        "pretrained",
        "net.encoder",
        "teacher.backbone",
        "base_model.model",
        "visual.trunk",
        "layers.0",
        "blocks",
        "embeddings",
        "encoder.layer.0",
    ],
)
def test_it_is_found_by_what_follows_it(prefix):
    (model,) = find_models(shapes_of(prefixed(f"{prefix}.") | {"depth_head.weight": torch.ones(2, 2)}))
    assert (model.prefix, model.keys) == (prefix, {key: f"{prefix}.{key}" for key in dinov2(4)})


def test_prefixes_are_found_in_every_layout():
    for layout, weights in (("meta_v3", dinov3()), ("timm_reg", to_timm(dinov2(4))), ("timm_eva", to_timm(dinov3()))):
        (model,) = find_models(shapes_of(renamed(weights, "trunk.vit.{}".format)))
        assert (model.prefix, recognise(model.keys).name) == ("trunk.vit", layout)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module", "_forward_module"])
def test_wrapper_modules_inside_keys_are_passed_over(wrapper):
    weights = renamed(dinov2(4), lambda key: re.sub(r"^(blocks\.\d+\.)(\w+)", rf"{wrapper}.\1{wrapper}._orig_mod.\2.{wrapper}", key))
    assert any(f"{wrapper}.blocks.1.{wrapper}._orig_mod.attn.{wrapper}.qkv" in key for key in weights)
    (model,) = find_models(shapes_of(weights))
    assert model.keys.keys() == dinov2(4).keys()


def test_heads_beside_the_model_are_left_out_and_told(hashes, tmp_path, capsys):
    weights = dinov2(4) | {f"{name}.weight": torch.ones(2, 2) for name in HEADS_BESIDE}
    path = write(tmp_path / "w.pth", weights)
    assert main([str(path), "--out", str(tmp_path / "out"), "--heads", "2"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("left out"))
    for name in ("linear_head", "classifier", "fc", "head", "decoder", "text_model", "prototypes"):
        assert f"{name} (1 tensor)" in line
    manifest = read_manifest(tmp_path / "out")
    assert manifest["weights_sha256"] == hashes[0]
    assert set(manifest["source"]["left_out"]) == {name.partition(".")[0] for name in HEADS_BESIDE} | {"mask_token"}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "rename",
    [("register_tokens", "regs"), ("norm.weight", "norm_pre.weight"), ("blocks.1.ls2.gamma", "blocks.1.scale2"), ("pos_embed", "head.pos")],
)
def test_a_renamed_part_of_the_model_is_no_head(prefix, rename, tmp_path, capsys):
    weights = renamed(dinov2(4), lambda key: prefix + key.replace(*rename))
    assert "1 unknown" in (error := error_of(write(tmp_path / "w.pth", weights), tmp_path, capsys)) or "missing" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("raw", "ema"),
    [
        ("model", "ema_model"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("state_dict", "ema_state_dict"),
        ("state_dict", "state_dict_ema"),
        ("encoder", "target_encoder"),
        ("base_encoder", "momentum_encoder"),
        ("student.backbone", "teacher.backbone"),
        ("model.student.backbone", "model.teacher.backbone"),
        ("", "ema"),
    ],
)
def test_names_tell_the_averaged_copy(raw, ema):
    models = find_models(shapes_of(prefixed(raw and f"{raw}.") | prefixed(f"{ema}.")))
    assert [choose(models, use, lambda *_: False).prefix for use in ("raw", "ema")] == [raw, ema]
    if "teacher" in ema:
        assert choose(models, None, lambda *_: False).prefix == ema
    else:
        with pytest.raises(ValueError, match=r"two copies .* --use ema .* --use raw"):
            choose(models, None, lambda *_: False)


@pytest.mark.parametrize(("raw", "ema"), [("state_dict", "ema_state_dict"), ("student", "teacher")])
@pytest.mark.parametrize("nested", [True, False], ids=["dicts", "keys"])
def test_of_two_copies_the_one_that_is_asked_for_is_read(raw, ema, nested, hashes, tmp_path, capsys):
    content = {raw: dinov2(4), ema: dinov2(4, 1)} if nested else {"state_dict": prefixed(f"{raw}.") | prefixed(f"{ema}.", 1)}
    path = write(tmp_path / "w.pth", content | {"epoch": 3})
    assert hash_of(path, tmp_path, use="raw") == hashes[0]
    assert read_manifest(tmp_path / "out")["source"]["use"] == "raw"
    if ema == "teacher":
        assert hash_of(path, tmp_path) == hashes[1]
        assert read_manifest(tmp_path / "out")["source"]["use"] == "ema"
    else:
        error = error_of(path, tmp_path / "new", capsys)
        assert f"{raw}" in error
        assert f'{ema}"' in error
        assert "--use ema" in error
        both = to_safetensors(path, tmp_path / "both.safetensors")  # which does not choose either
        assert hash_of(both, tmp_path, use="ema") == hashes[1]


def test_copies_that_are_equal_need_no_choice_and_those_without_a_telling_name_are_refused(hashes, tmp_path, capsys):
    assert hash_of(write(tmp_path / "w.pth", {"model": dinov2(4), "model_ema": dinov2(4)}), tmp_path) == hashes[0]
    path = write(tmp_path / "w.pth", {"one": dinov2(4), "two": dinov2(4, 1)})
    for arguments in ([], ["--use", "ema"], ["--use", "raw"]):
        assert '2 models, "one" and "two"' in error_of(path, tmp_path, capsys, *arguments)


def test_a_copy_that_is_not_there_is_not_read(tmp_path, capsys):
    path = write(tmp_path / "w.pth", dinov2(4))
    assert "one model only" in error_of(path, tmp_path, capsys, "--use", "ema")
    assert main([str(path), "--out", str(tmp_path / "out"), "--heads", "2", "--use", "raw"]) == 0
    with pytest.raises(ValueError, match="unknown use"):
        convert(path, tmp_path / "out", heads=HEADS, use="best")


def test_a_decoder_of_blocks_is_no_second_model():
    decoder = {f"decoder.{key}": value for key, value in dinov2(4, 1).items() if "patch_embed" not in key}
    assert [model.prefix for model in find_models(shapes_of(decoder | prefixed("encoder.")))] == ["encoder"]
