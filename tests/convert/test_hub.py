"""Weights by name are downloaded, resumed, refused and reused; against a hub on loopback, never the real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import jaxvit
from convert import convert, fetch, hub
from jaxvit.checkpoint import load, read_manifest
from tests.convert.hub_server import COMMIT, Hub, serve
from tests.convert.sources import dinov2

REPOSITORY = "someone/tiny"
LARGE = 24 * 2**20  # bytes; huggingface_hub writes a download in pieces of ten megabytes

# A released model of the sizes of `sources.dinov2(4)`, then the command line. huggingface_hub makes all its attempts, but waits a
# hundredth of the time (half a minute in all) between them.
PROGRAM = f"""
import sys, time, jaxvit
wait = time.sleep
time.sleep = lambda seconds: wait(seconds / 100)
from convert import hub
from convert.__main__ import main
jaxvit.MODELS["tiny"] = jaxvit.ViTConfig(4, 16, 2, 2, 32, registers=4, position="antialias", image_size=12)
hub.RELEASES["tiny"] = hub.Release("{REPOSITORY}", "{COMMIT}", "meta")
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("hub") / "model.safetensors"
    safetensors.torch.save_file({**dinov2(4), "head.weight": torch.zeros(LARGE // 4)}, file)
    return file.read_bytes()


@pytest.fixture
def run(tmp_path, weights):
    """The command line in a process of its own, which looks at the hub of the test, with a home and a cache of its own."""

    def run(served: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        settings |= {"JAXVIT_CACHE": str(tmp_path / "cache"), **environment}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, *(arguments or ("tiny",))]
        return subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120, check=False)

    return run


def a_hub(weights: bytes, **behaviour) -> Hub:
    return Hub(REPOSITORY, {"model.safetensors": weights, "pytorch_model.bin": b"never asked for"}, **behaviour)


def test_a_name_is_downloaded_converted_and_found_by_load(run, weights, tmp_path, monkeypatch):
    with serve(a_hub(weights)) as served:
        completed = run(served)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == f"wrote {tmp_path / 'cache' / 'tiny'}\n"
    assert "100%" in completed.stderr  # the progress bar
    assert not any("pytorch_model" in request for request in served.requests)
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))
    assert load("tiny").config.registers == 4
    manifest = read_manifest(tmp_path / "cache" / "tiny")
    assert manifest["source"]["hub"] == {"repository": REPOSITORY, "revision": COMMIT}
    assert (manifest["name"], manifest["oracle"]) == ("tiny", "meta")
    assert re.fullmatch("[0-9a-f]{64}", manifest["source"]["sha256"]["model.safetensors"])
    written = (tmp_path / "cache" / "tiny" / "manifest.json").stat().st_mtime_ns
    assert run(served, HF_HUB_OFFLINE="1").returncode == 0
    assert (tmp_path / "cache" / "tiny" / "manifest.json").stat().st_mtime_ns == written, "the same model is not converted again"
    # the download serves offline, and --out and --oracle are respected
    again = run(served, "tiny", "--out", str(tmp_path / "other"), "--oracle", "hf", "--dtype", "bfloat16", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    other = read_manifest(tmp_path / "other")
    assert (other["oracle"], other["dtype"]) == ("hf", "bfloat16")


def test_a_connection_that_broke_is_taken_up_where_it_broke(run, weights, tmp_path):
    with serve(a_hub(weights, cut_after=15 * 2**20, cuts=1)) as served:
        completed = run(served)
    assert completed.returncode == 0, completed.stderr
    spans = [re.search(r"bytes=(\d+)-", request) for request in served.requests if request.startswith("GET") and "safetensors" in request]
    assert any(span and int(span[1]) >= 10 * 2**20 for span in spans), served.requests


def test_a_truncated_body_is_one_line_and_leaves_no_checkpoint(run, weights, tmp_path):
    with serve(a_hub(weights, cut_after=2**20, cuts=1000)) as served:
        completed = run(served)
    assert completed.returncode == 2
    last = completed.stderr.splitlines()[-1]
    assert f"{REPOSITORY} could not be downloaded" in last
    assert "run the same command again" in last
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ({"refuse": (403, "GatedRepo")}, ["is gated", "accept its licence", "HF_TOKEN", "python -m convert FILE --name tiny"]),
        ({"refuse": (403, "GatedRepo"), "listed": True}, ["is gated", "HF_TOKEN"]),
        ({"refuse": (401, "GatedRepo")}, ["is gated", "HF_TOKEN"]),
        ({"refuse": (401, "")}, ["is refused", "HF_TOKEN", "python -m convert FILE"]),
        ({"refuse": (403, ""), "listed": True}, ["is refused", "may not read it", "HF_TOKEN"]),
        ({"refuse": (401, "RepoNotFound")}, ["not on the hub, or not visible without a token", "python -m convert FILE"]),
        ({"refuse": (404, "RepoNotFound")}, ["not on the hub", "python -m convert FILE"]),
        ({"refuse": (404, "RevisionNotFound")}, [f"no revision {COMMIT}", "python -m convert FILE"]),
        ({"refuse": (500, "")}, ["cannot be reached or does not answer", "python -m convert FILE"]),
    ],
    ids=lambda x: "-".join(map(str, (*x["refuse"], *x.keys() - {"refuse"}))) if isinstance(x, dict) else "",
)
def test_refusals_say_what_to_do(behaviour, expected, run, weights, tmp_path):
    with serve(a_hub(weights, **behaviour)) as served:
        completed = run(served)
    assert completed.returncode == 2
    last = completed.stderr.splitlines()[-1]
    assert last.startswith("convert: ")
    for words in expected:
        assert words in last
    assert not (tmp_path / "cache").exists()


def test_a_token_opens_what_is_gated(run, weights):
    with serve(a_hub(weights, token="secret")) as served:
        assert run(served).returncode == 2
        completed = run(served, HF_TOKEN="secret")
    assert completed.returncode == 0, completed.stderr
    assert "secret" not in completed.stderr + completed.stdout


def test_offline_and_without_a_hub_it_says_so(run, weights, tmp_path):
    with serve(a_hub(weights)) as served:
        offline = run(served, HF_HUB_OFFLINE="1")
        assert not served.requests
    gone = run(served)  # nothing listens there any more
    assert (offline.returncode, gone.returncode) == (2, 2)
    assert "HF_HUB_OFFLINE forbids" in offline.stderr
    assert "cannot be reached" in gone.stderr.splitlines()[-1]
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_something_else_is_refused_before_anything_is_downloaded(run, weights, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with serve(a_hub(weights)) as served:
        completed = run(served, "tiny", "--out", str(tmp_path / "mine"))
    assert completed.returncode == 2
    assert "something else" in completed.stderr
    assert not served.requests


def test_every_released_model_has_a_repository_and_all_but_one_a_pinned_commit():
    assert hub.RELEASES.keys() == jaxvit.MODELS.keys()
    assert len({release.repository for release in hub.RELEASES.values()}) == len(hub.RELEASES)
    unpinned = [name for name, release in hub.RELEASES.items() if not re.fullmatch("[0-9a-f]{40}", release.revision or "")]
    assert unpinned == ["dinov3_vit7b16_sat493m"]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match='"resnet50" is no released model; known are dino_vits16'):
        fetch("resnet50")


def test_a_name_in_the_place_of_a_file_says_how_to_download():
    with pytest.raises(ValueError, match=r"convert\.fetch\(\"dinov2_vits14\"\)"):
        convert("dinov2_vits14", Path("nowhere"))
