"""Bad input is one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from convert import convert
from convert.__main__ import main
from jaxvit.checkpoint import load, save
from tests.convert.sources import HEADS, WIDTH, dinov2, dinov3, write


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def _without(key):
    return {k: v for k, v in dinov2(4).items() if k != key}


def _cut(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def _with(**extra):
    return dinov2(4) | extra


def _nan():
    weights = dinov2(4)
    weights["blocks.1.mlp.fc2.weight"][3, 4] = torch.nan
    return weights


def _integers():
    return dinov2(4) | {"norm.bias": torch.ones(WIDTH, dtype=torch.int64)}


def _quantised():
    return dinov2(4) | {"norm.bias": torch.ones(WIDTH).to(torch.float8_e4m3fn)}


def _safetensors(path, weights):
    safetensors.torch.save_file(weights, path)
    return path


def _text(path, text):
    path.write_text(text)
    return path


def _v3_block_without_mask():
    weights = dinov3()
    del weights["blocks.1.attn.qkv.bias_mask"]
    return weights


def _lone_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


# case: how the source is written, and what the error line must contain
BAD = {
    "absent": (lambda d: d / "nothing.pth", "no file, no folder and no released model; released are dino_vits16"),
    "empty": (lambda d: _text(d / "w.pth", ""), "empty"),
    "text": (lambda d: _text(d / "w.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "neither"),
    "cut zip": (lambda d: _cut(write(d / "w.pth", dinov2(4))), "cut off"),
    "cut old pickle": (lambda d: _cut(write(d / "w.pth", dinov2(4), zipped=False)), "get the file again"),
    "cut early pickle": (lambda d: _cut(write(d / "w.pth", dinov2(4), zipped=False), 0.02), "get the file again"),
    "cut safetensors": (lambda d: _cut(_safetensors(d / "w.safetensors", dinov2(4))), "cut off"),
    "cut header": (lambda d: _cut(_safetensors(d / "w.safetensors", dinov2(4)), 0.05), "cut off"),
    "foreign zip": (lambda d: _cut(write(d / "w.pth", [1, 2]), 1), "not a dict"),
    "foreign pickle": (lambda d: _lone_pickle(d / "w.pth", {"a": 1}), "no readable"),
    "no tensors": (lambda d: write(d / "w.pth", {"net": {"a": 1}, "epoch": 3}), "net (dict)"),
    "other network": (lambda d: write(d / "w.pth", {f"layer{i}.0.conv1.weight": torch.ones(3) for i in range(9)}), "no known layout"),
    "missing": (lambda d: write(d / "w.pth", _without("blocks.1.norm2.bias")), "1 missing (blocks.1.norm2.bias)"),
    "missing scale": (lambda d: write(d / "w.pth", _without("blocks.0.ls1.gamma")), "1 missing (blocks.0.ls1.gamma)"),
    "missing patch": (lambda d: write(d / "w.pth", _without("patch_embed.proj.weight")), "patch_embed.proj.weight"),
    "missing table": (lambda d: write(d / "w.pth", _without("pos_embed")), "pos_embed"),
    "missing mask": (lambda d: write(d / "w.pth", _v3_block_without_mask()), "blocks.1.attn.qkv.bias_mask"),
    "missing block": (lambda d: write(d / "w.pth", {k: v for k, v in dinov2().items() if "blocks.0." not in k}), "no block 0"),
    "unknown": (lambda d: write(d / "w.pth", _with(adapter=torch.ones(2))), "1 unknown (adapter)"),
    "tensor outside the wrapper": (lambda d: write(d / "w.pth", {"model": dinov2(4), "centre": torch.ones(2)}), "1 unknown (centre)"),
    "twice": (lambda d: write(d / "w.pth", _with(**{"module.cls_token": torch.ones(1, 1, WIDTH)})), "both mean"),
    "shape": (
        lambda d: write(d / "w.pth", _with(**{"blocks.1.attn.proj.weight": torch.ones(WIDTH, 5)})),
        "blocks.1.attn.proj.weight (16, 5)",
    ),
    "axes": (lambda d: write(d / "w.pth", _with(cls_token=torch.ones(2, 1, WIDTH))), "cls_token (2, 1, 16)"),
    "patch shape": (lambda d: write(d / "w.pth", _with(**{"patch_embed.proj.weight": torch.ones(WIDTH, 3, 4, 5)})), "square patches"),
    "table shape": (lambda d: write(d / "w.pth", _with(pos_embed=torch.ones(1, 8, WIDTH))), "no square grid"),
    "nan": (lambda d: write(d / "w.pth", _nan()), "blocks.1.mlp.fc2.weight"),
    "integers": (lambda d: write(d / "w.pth", _integers()), "int64"),
    "quantised": (lambda d: _safetensors(d / "w.safetensors", _quantised()), 'norm.bias" holds F8_E4M3; F16, BF16'),
    "quantised pickle": (lambda d: write(d / "w.pth", _quantised()), 'norm.bias" holds float8_e4m3fn; float16, bfloat16'),
    "path object": (lambda d: write(d / "w.pth", _with(where=pathlib.PurePosixPath("/"))), "pathlib"),
    "empty folder": (lambda d: d, "neither model.safetensors"),
}


def check_refused(source, arguments, expected, capsys, tmp_path):
    out = tmp_path / "made" / "out"
    before = sorted(tmp_path.rglob("*"))
    assert main([str(source), "--out", str(out), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.endswith("\n")
    assert expected in printed.err
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=r".+"):
        convert(source, out, heads=HEADS)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", BAD)
def test_bad_source_is_one_line(case, capsys, tmp_path):
    make, expected = BAD[case]
    check_refused(make(tmp_path), ["--heads", str(HEADS)], expected, capsys, tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(zipped, capsys, tmp_path):
    touched = tmp_path / "touched"
    path = write(tmp_path / "w.pth", _with(extra=Malicious(touched)), zipped)
    check_refused(path, ["--heads", str(HEADS)], "posix.system", capsys, tmp_path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("weights", "arguments", "expected"),
    [
        (dinov2, [], "pass it: heads=N, or --heads N"),
        (dinov2, ["--heads", "3"], "3 heads do not divide width 16"),
        (dinov2, ["--heads", "0"], "0 heads"),
        (dinov3, ["--heads", "4"], "4 by heads, 2 by rope_embed.periods"),
        (dinov2, ["--heads", "2", "--name", "dinov2_vits14"], "this is not dinov2_vits14: depth 2 instead of 12"),
    ],
)
def test_contradictory_heads_and_names_are_refused(weights, arguments, expected, capsys, tmp_path):
    path = write(tmp_path / "w.pth", weights())
    out = tmp_path / "out"
    assert main([str(path), "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_files_and_foreign_folders_are_not_overwritten(capsys, tmp_path):
    path = write(tmp_path / "w.pth", dinov2())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    for out, expected in ((tmp_path / "mine", "something else"), (path, "is a file"), (path / "below", "w.pth")):
        assert main([str(path), "--out", str(out), "--heads", "2"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert expected in error
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "w.pth"]


def test_a_failed_conversion_keeps_the_checkpoint_that_was_there(capsys, tmp_path):
    out = convert(write(tmp_path / "good.pth", dinov2()), tmp_path / "out", heads=HEADS)
    assert main([str(write(tmp_path / "bad.pth", _nan())), "--out", str(out), "--heads", "2"]) == 2
    assert "NaN" in capsys.readouterr().err
    assert load(out).config.registers == 0


def test_to_safetensors_refuses_bad_arguments(capsys, tmp_path):
    path = write(tmp_path / "w.pth", dinov2())
    target = str(tmp_path / "w.safetensors")
    for arguments in (
        [str(path)],
        [str(path), "--out", "x", "--to-safetensors", target],
        [str(path), "--heads", "2", "--to-safetensors", target],
        [str(tmp_path / "absent.pth"), "--to-safetensors", target],
        [str(_text(tmp_path / "text.pth", "hello")), "--to-safetensors", target],
        [str(path), "--to-safetensors", str(tmp_path)],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.pth", "w.pth"]


def test_damaged_hugging_face_folders_are_refused(capsys, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    for text, expected in (
        ("{", "no JSON"),
        ("[]", "instead of an object"),
        ("{}", "no weight_map"),
        (json.dumps({"weight_map": {"a": "../w.safetensors"}}), "not in the folder"),
        (json.dumps({"weight_map": {"a": "gone.safetensors"}}), "not in the folder"),
    ):
        index.write_text(text)
        assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert expected in error
    _safetensors(folder / "part.safetensors", dinov2())
    index.write_text(json.dumps({"weight_map": {"cls_token": "part.safetensors"}}))
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "disagree" in capsys.readouterr().err


def test_without_torch_the_error_says_what_to_do(monkeypatch, capsys, tmp_path):
    path = write(tmp_path / "w.pth", dinov2())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main([str(path), "--out", str(tmp_path / "out"), "--heads", "2"]) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[torch]'" in error
    assert "--to-safetensors" in error


def test_reading_safetensors_imports_neither_torch_nor_transformers(tmp_path):
    path = _safetensors(tmp_path / "w.safetensors", dinov2())
    program = (
        "import sys; from convert.__main__ import main; "
        f"assert main([{str(path)!r}, '--out', {str(tmp_path / 'out')!r}, '--heads', '2']) == 0; "
        "assert not {'torch', 'transformers', 'experiments'} & set(sys.modules); "
        f"assert main([{str(path)!r}, '--out', {str(tmp_path / 'out')!r}, '--heads', '5']) == 2"
    )
    completed = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr.count("\n") == 1, completed.stderr


@pytest.mark.parametrize("address", ["gs://bucket/w", "s3://bucket/w", "hf://owner/name", "https://example.org/w.pth"])
def test_addresses_are_refused_and_nothing_is_written(address, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = str(write(tmp_path / "w.pth", dinov2()))
    for arguments in (
        [address, "--out", "out", "--heads", "2"],
        [path, "--out", address, "--heads", "2"],
        ["dinov2_vits14", "--out", address],
        [path, "--to-safetensors", address],
        [address, "--to-safetensors", "w.safetensors"],
        ["--show", address],
        ["--verify", address],
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert f'"{address}" is remote' in error
        assert error.count("\n") == 1
    with pytest.raises(ValueError, match="is remote"):
        load(address)
    with pytest.raises(ValueError, match="is remote"):
        save(load("demo_reg"), address)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]
