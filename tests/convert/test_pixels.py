"""Pixels are normalised by the statistics that belong to the weights: a file's beside them, the caller's, or a released model's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch

import jaxvit
from convert import convert
from convert.__main__ import main
from convert.pixels import pixel_statistics
from jaxvit.checkpoint import load, read_manifest
from tests.convert.sources import DEPTH, HEADS, WIDTH, dinov2, to_timm, write

MEAN, STD = [0.53, 0.5, 0.47], [0.26, 0.25, 0.24]
ARGUMENTS = ["--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6"]


def folder_of(path, **files):
    """A folder of weights as timm writes them, with JSON files beside."""
    path.mkdir(exist_ok=True)
    safetensors.torch.save_file(to_timm(dinov2()), path / "model.safetensors")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def timm_config(**entries):
    return {"architecture": "vit_tiny", "num_features": WIDTH, **entries}


def test_pixels_are_those_of_transformers_own_processor(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle of this test is transformers")
    processor = transformers.BitImageProcessor(do_resize=False, do_center_crop=False, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(folder_of(tmp_path / "hf"))
    out = convert(tmp_path / "hf", tmp_path / "out", heads=HEADS)
    assert read_manifest(out)["pixel_statistics"] == "preprocessor_config.json"
    assert "preprocessor_config.json" in read_manifest(out)["source"]["sha256"]
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    theirs = processor(list(images), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(jaxvit.normalise(images, load(out).config), theirs, atol=1e-5)


NESTED = {"image_processor": {"image_mean": MEAN, "image_std": STD}}
UNNORMALISED = {"do_normalize": False, "image_mean": MEAN, "image_std": STD}


@pytest.mark.parametrize(
    ("files", "expected", "origin"),
    [
        ({"config": timm_config(pretrained_cfg={"mean": MEAN, "std": STD})}, (MEAN, STD), "config.json"),
        ({"config": timm_config(mean=MEAN, std=STD)}, (MEAN, STD), "config.json"),
        ({"preprocessor_config": NESTED}, (MEAN, STD), "preprocessor_config.json"),
        ({"processor_config": NESTED}, (MEAN, STD), "processor_config.json"),
        ({"preprocessor_config": UNNORMALISED}, ([0, 0, 0], [1, 1, 1]), "preprocessor_config.json"),
        ({"config": timm_config(), "preprocessor_config": {"size": 224}}, None, "default (ImageNet)"),
    ],
    ids=["timm", "older timm", "nested", "processor", "none", "default"],
)
def test_every_place_that_holds_them_is_read(files, expected, origin, tmp_path):
    folder = folder_of(tmp_path / "w", **files)
    config = folder / "config.json"
    statistics = pixel_statistics(folder, config if config.exists() else None, None, None, None)
    mean, std = expected or (jaxvit.config.IMAGENET_MEAN, jaxvit.config.IMAGENET_STD)
    assert (statistics.mean, statistics.std, statistics.origin) == (tuple(mean), tuple(std), origin)


def test_the_command_says_which_statistics_were_used(tmp_path, capsys):
    folder = folder_of(tmp_path / "w", config=timm_config(pretrained_cfg={"mean": MEAN, "std": STD}))
    out = tmp_path / "out"
    command = ["--out", str(out), "--heads", "2"]
    assert main([str(folder), *command]) == 0
    assert "ImageNet" not in capsys.readouterr().out
    assert (load(out).config.pixel_mean, read_manifest(out)["pixel_statistics"]) == (tuple(MEAN), "config.json")
    assert main([str(folder), *command, *ARGUMENTS]) == 0
    assert (load(out).config.pixel_std, read_manifest(out)["pixel_statistics"]) == ((0.4, 0.5, 0.6), "option")
    (folder / "config.json").unlink()
    capsys.readouterr()
    assert main([str(folder), *command]) == 0
    assert "pixel statistics: ImageNet's" in capsys.readouterr().out
    assert read_manifest(out)["pixel_statistics"] == "default (ImageNet)"


def test_the_neighbours_of_a_lone_file_may_be_of_other_weights(tmp_path):
    files = {"config": {"architecture": "vit_giant", "num_features": 1536, "mean": MEAN, "std": STD}, "preprocessor_config": NESTED}
    folder = folder_of(tmp_path / "w", **files)
    manifest = read_manifest(convert(write(folder / "other.pth", dinov2()), tmp_path / "out", heads=HEADS))
    assert (manifest["pixel_statistics"], manifest["layout"]) == ("default (ImageNet)", "meta")
    (folder / "config.json").write_text(json.dumps(timm_config(mean=MEAN, std=STD)))
    assert read_manifest(convert(folder / "other.pth", tmp_path / "out", heads=HEADS))["layout"] == "meta"
    manifest = read_manifest(convert(write(folder / "other.pth", to_timm(dinov2())), tmp_path / "out", heads=HEADS))
    assert (manifest["pixel_statistics"], manifest["layout"]) == ("config.json", "timm")
    (folder / "config.json").write_text(json.dumps(files["config"]))
    with pytest.raises(ValueError, match="num_features 1536"):
        convert(folder, tmp_path / "out", heads=HEADS)


def test_a_released_name_keeps_its_own_and_a_file_that_contradicts_it_is_told(tmp_path, monkeypatch):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    released = jaxvit.ViTConfig(4, WIDTH, DEPTH, 4, 2 * WIDTH, image_size=12, pixel_mean=mean, pixel_std=std)
    monkeypatch.setitem(jaxvit.MODELS, "tiny", released)
    assert pixel_statistics(None, None, "tiny", None, None)[:3] == (mean, std, "released name")
    folder = folder_of(tmp_path / "w", preprocessor_config={"image_mean": MEAN, "image_std": STD})
    with pytest.raises(ValueError, match=r"preprocessor_config\.json says mean .* but tiny has .* or drop the name"):
        convert(folder, tmp_path / "out", name="tiny")
    assert pixel_statistics(folder, None, "tiny", MEAN, STD).origin == "option"


BAD = {
    "two": ({"image_mean": [0.5, 0.5], "image_std": STD}, "three numbers"),
    "one": ({"image_mean": 0.5, "image_std": STD}, "three numbers"),
    "words": ({"image_mean": ["a", "b", "c"], "image_std": STD}, "three numbers"),
    "half": ({"image_mean": MEAN}, "got None"),
    "zero": ({"image_mean": MEAN, "image_std": [0.2, 0, 0.2]}, "must be positive"),
    "bytes": ({"image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]}, "divide by 255"),
    "negative": ({"image_mean": [-0.1, 0.5, 0.5], "image_std": STD}, "must be 0 or more"),
    "unscaled": ({"image_mean": MEAN, "image_std": STD, "do_rescale": False}, "other values than 0 to 1"),
    "other scale": ({"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 127.5}, "other values than 0 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_statistics_are_one_line_and_the_options_help(case, tmp_path, capsys):
    content, expected = BAD[case]
    folder = folder_of(tmp_path / "w", preprocessor_config=content)
    assert main([str(folder), "--out", str(tmp_path / "out"), "--heads", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
    assert "--mean R G B" in error
    assert not (tmp_path / "out").exists()
    assert pixel_statistics(folder, None, None, MEAN, STD).origin == "option"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--mean", "0.5", "0.5", "0.5"], "std is missing"),
        (["--mean", "0.5", "0.5", "--std", "1", "1", "1"], "--mean"),
        (["--mean", "123", "116", "103", "--std", "58", "57", "57"], "divide by 255"),
        (["--mean", "0", "0", "0", "--std", "0", "1", "1"], "must be positive"),
        (["--mean", "nan", "0", "0", "--std", "1", "1", "1"], "three numbers"),
    ],
)
def test_malformed_options_are_one_line(arguments, expected, tmp_path, capsys):
    path = write(tmp_path / "w.pth", dinov2())
    assert main([str(path), "--out", str(tmp_path / "out"), "--heads", "2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


def test_options_of_files_do_not_go_with_a_released_name(capsys):
    for option in (ARGUMENTS, ["--use", "ema"], ["--position", "plain"], ["--name", "x"]):
        assert main(["dinov2_vits14", *option]) == 2
        assert f"{option[0]}" in (error := capsys.readouterr().err)
        assert "with a file or folder" in error
