"""What holds no weights that are read is told by its kind, with the next step; what can be read safely is."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch

import jaxvit
from convert import convert
from convert.__main__ import main
from jaxvit.checkpoint import save
from tests.convert.sources import WIDTH, dinov2, renamed, write
from tests.convert.test_wrappings import hash_of
from tests.jaxvit import tiny


def _bytes(path, content=b""):
    path.write_bytes(content)
    return path


def _npz(path):
    np.savez(path, a=np.ones(2))
    return path


def _script(path):
    with pytest.warns(DeprecationWarning, match="TorchScript|torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    return path


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pth", "x")
    return path


def _distributed(folder):
    import torch.distributed.checkpoint as dcp

    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"a": torch.ones(2)}, checkpoint_id=folder, no_dist=True)
    return folder


# case: how it is made in a folder, and what the line must contain
FILES = {
    "npz": (lambda d: _npz(d / "w.npz"), "a NumPy archive (.npz) of a.npy"),
    "npz called pth": (lambda d: _npz(d / "w.npz").rename(d / "w.pth"), "a NumPy archive"),
    "npy": (lambda d: _bytes(d / "w.npy", b"\x93NUMPY\x01"), "a NumPy array"),
    "script": (lambda d: _script(d / "w.pt"), "torch.jit.load("),
    "zip": (lambda d: _zip(d / "w.zip"), "a zip archive of w.pth; unpack it"),
    "gzip": (lambda d: _bytes(d / "w.pth.gz", b"\x1f\x8b\x08"), "unpack it"),
    "distcp": (lambda d: _bytes(d / "__0_0.distcp", b"PK\x03\x04"), "dcp_to_torch"),
    "tensorflow": (lambda d: _bytes(d / "tf_model.h5", b"\x89HDF\r\n\x1a\n"), "from_tf=True"),
    "flax": (lambda d: _bytes(d / "flax_model.msgpack", b"\x83abc"), "from_flax=True"),
    "gguf": (lambda d: _bytes(d / "m.gguf", b"GGUF\x03"), "a GGUF file"),
    "onnx": (lambda d: _bytes(d / "m.onnx", b"\x08\x07"), "an ONNX graph"),
    "web page": (lambda d: _bytes(d / "w.pth", b"<!DOCTYPE html>"), "a web page; download the file itself"),
    "json": (lambda d: _bytes(d / "config.json", b'{"model_type": "vit"}'), "pass the folder"),
    "pointer": (lambda d: _bytes(d / "w.pth", b"version https://git-lfs.github.com"), "git lfs pull"),
    "part": (lambda d: _bytes(d / "model-00001-of-00002.safetensors", b"x"), "one part of several; pass its folder"),
}
FOLDERS = {
    "npz": (lambda d: _npz(d / "w.npz"), "its w.npz is a NumPy archive"),
    "distributed": (lambda d: _distributed(d / "x"), "dcp_to_torch"),
    "tensorflow and flax": (lambda d: [_bytes(d / "tf_model.h5", b"\x89HDF"), _bytes(d / "flax_model.msgpack", b"\x83")], "from_flax=True"),
    "other name": (lambda d: write(d / "weights.pth", dinov2()), "weights.pth; pass the file itself"),
    "parts": (lambda d: _bytes(d / "model-00001-of-00002.safetensors", b"x"), "get the index too"),
    "below": (lambda d: [(d / "x").mkdir(), _bytes(d / "x" / "model.safetensors")], "pass that folder"),
    "adapter": (lambda d: _bytes(d / "adapter_model.safetensors"), "merge_and_unload"),
    "hub cache": (lambda d: (d / "snapshots").mkdir(), "pass the folder of a revision"),
    "jaxvit": (lambda d: save(tiny.model(), d / "x"), "is a jaxvit checkpoint already: jaxvit.load("),
    "orbax": (lambda d: (save(tiny.model(), d / "y") / "weights").rename(d / "x"), "an Orbax checkpoint of another program"),
}


def refused(source, tmp_path, capsys, *arguments):
    capsys.readouterr()
    assert main([str(source), "--out", str(tmp_path / "out"), "--heads", "2", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert not (tmp_path / "out").exists()
    return printed.err


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_another_format_is_told_with_the_next_step(case, tmp_path, capsys):
    make, expected = FILES[case]
    path = make(tmp_path)
    assert expected in refused(path, tmp_path, capsys)
    assert main([str(path), "--to-safetensors", str(tmp_path / "w.safetensors")]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_without_weights_that_are_read_is_told_with_the_next_step(case, tmp_path, capsys):
    make, expected = FOLDERS[case]
    (tmp_path / "d").mkdir()
    make(tmp_path / "d")
    folder = tmp_path / "d" / "x" if case in ("distributed", "jaxvit", "orbax") else tmp_path / "d"
    assert expected in refused(folder, tmp_path, capsys)


def _without_cls(d):
    weights = {key: value for key, value in dinov2().items() if key not in ("cls_token", "mask_token")}
    return write(d / "w.pth", weights | {"pos_embed": torch.ones(1, 9, WIDTH)})


def _clip(d):
    return write(d / "w.pth", {"visual.class_embedding": torch.ones(2), "visual.conv1.weight": torch.ones(2, 3, 4, 4)})


def _mae(d):
    return write(d / "w.pth", dinov2() | {"decoder_embed.weight": torch.ones(2), "decoder_pos_embed": torch.ones(1, 2, 2)})


def _lora(d):
    return write(d / "w.pth", renamed(dinov2(), lambda key: key.replace("qkv", "qkv.base_layer")))


MODELS = {
    "DeiT": (lambda d: write(d / "w.pth", dinov2() | {"dist_token": torch.ones(1, 1, WIDTH)}), "a distilled DeiT"),
    "I-JEPA": (_without_cls, "a model without a CLS token: an I-JEPA"),
    "I-JEPA in training": (
        lambda d: write(d / "w.pth", {"encoder": {}, "predictor": {"predictor_blocks.0.norm1.weight": torch.ones(2)}}),
        "an I-JEPA",
    ),
    "CLIP": (_clip, "a CLIP"),
    "SigLIP": (lambda d: write(d / "w.pth", {"vision_model.head.probe": torch.ones(2)}), "a SigLIP"),
    "MAE": (_mae, 'without those of "decoder"'),
    "LoRA": (_lora, "merge_and_unload"),
    "ResNet": (lambda d: write(d / "w.pth", {"layer1.0.conv1.weight": torch.ones(2)}), "a ResNet"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_of_another_family_is_told(case, tmp_path, capsys):
    make, expected = MODELS[case]
    error = refused(make(tmp_path), tmp_path, capsys)
    assert f"this looks like {expected}" in error or expected in error


@pytest.mark.parametrize(("model_type", "expected"), [("vit_msn", "an MSN"), ("vit_mae", "(MAE)"), ("ijepa", "an I-JEPA")])
def test_the_config_beside_it_tells_the_family(model_type, expected, tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="its files are the input")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64, "image_size": 32}
    transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": model_type}))
    assert expected in refused(tmp_path / "hf", tmp_path, capsys)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("facebook/dinov2-small", "python -m convert dinov2_vits14"),
        ("facebook/dino-vits16", "python -m convert dino_vits16"),
        ("hf-hub:timm/vit_small_patch14_dinov2.lvd142m", "hf download timm/vit_small_patch14_dinov2.lvd142m --local-dir"),
        ("dinov2_vits14-reg", "is dinov2_vits14_reg meant?"),
        ("demo_reg", 'jaxvit.load("demo_reg")'),
    ],
)
def test_a_name_that_is_no_file_says_how_to_get_the_weights(source, expected, tmp_path, capsys):
    assert expected in refused(source, tmp_path, capsys)
    with pytest.raises(ValueError, match=r".+") as error:
        convert(source, tmp_path / "out")
    assert expected in str(error.value)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return hash_of(write(folder / "w.pth", dinov2(4)), folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_weights_are_no_obstacle(zipped, plain, tmp_path):
    numbers = {"best": np.float64(0.5), "half": np.float16(1), "seen": np.int64(3), "done": np.bool_(True), "losses": np.ones((2, 3))}
    assert hash_of(write(tmp_path / "w.pth", {"model": dinov2(4), **numbers}, zipped), tmp_path) == plain


def test_folders_of_pickles_are_read_like_those_of_safetensors(plain, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    write(whole / "pytorch_model.bin", dinov2(4))
    assert hash_of(whole, tmp_path) == plain
    keys = list(dinov2(4))
    index = {key: f"pytorch_model-0000{1 + (i % 2)}-of-00002.bin" for i, key in enumerate(keys)}
    for name in set(index.values()):
        write(parts / name, {key: value for key, value in dinov2(4).items() if index[key] == name})
    (parts / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert hash_of(parts, tmp_path) == plain
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setitem(sys.modules, "torch", None)
    error = refused(whole, tmp_path, capsys)
    assert "pip install -e '.[torch]'" in error
    assert "pytorch_model.bin --to-safetensors pytorch_model.safetensors" in error


def test_every_released_repository_is_known_by_its_name():
    from convert.formats import unknown_source
    from convert.hub import RELEASES

    assert RELEASES.keys() == jaxvit.MODELS.keys()
    for name, release in RELEASES.items():
        assert f"python -m convert {name}" in unknown_source(release.repository)
