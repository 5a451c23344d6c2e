"""Files are replaced whole or not at all; the cache is where the environment says."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxvit import files


def test_a_replaced_file_is_the_new_one_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    files.write_text(path, "newer")
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")

    def write_half():
        with files.replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_siblings_are_hidden_names_in_the_same_folder_that_nobody_has(tmp_path):
    siblings = {files.sibling(tmp_path / "model", "tmp") for _ in range(20)}
    assert len(siblings) == 20
    assert all(s.parent == tmp_path and s.name.startswith(".model.") and s.suffix == ".tmp" for s in siblings)


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"tokens")
    assert files.file_hash(tmp_path / "file") == hashlib.sha256(b"tokens").hexdigest()


def test_what_does_not_fit_on_the_disk_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    files.require_space(tmp_path / "not" / "there" / "yet", 3_000_000)
    with pytest.raises(ValueError, match=r"no space left for .* it takes 5 MB and 5 MB are free"):
        files.require_space(tmp_path / "model", 5_000_000)


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", "~/somewhere")
    assert files.cache_folder() == Path.home() / "somewhere"
    for empty in ("", None):
        monkeypatch.setenv("JAXVIT_CACHE", empty) if empty is not None else monkeypatch.delenv("JAXVIT_CACHE")
        assert files.cache_folder() == Path.home() / ".cache" / "jaxvit"


@pytest.mark.parametrize("make", [str, Path], ids=["text", "path"])
@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("gs://bucket/study", "gcloud storage cp"),
        ("s3://bucket/study", "aws s3 cp"),
        ("hf://owner/name", "hf download"),
        ("https://example.org/w.pth", "curl -LO"),
        ("abfs://container/x", "copy it to a local folder first;"),
    ],
)
def test_an_address_is_never_taken_for_a_local_folder(address, advice, make):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refused:
        files.refuse_remote(make(address))
    assert str(refused.value).startswith(f'"{address}" is remote')
    assert advice in str(refused.value)


def test_the_cache_cannot_be_remote(monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", "gs://bucket/cache")
    with pytest.raises(ValueError, match=r"JAXVIT_CACHE.*gs://bucket/cache"):
        files.cache_folder()


def test_local_paths_are_not_taken_for_addresses():
    for path in ("runs/study", "C:/runs", "C:\\runs", "runs/a:b", "12:30/x", "~/gs", Path("/data/gs://x"), "gs:", "dinov2_vits14"):
        files.refuse_remote(path)
    with pytest.raises(ValueError, match=r'pass "/data/w\.pth"'):
        files.refuse_remote("file:///data/w.pth")


def test_text_is_utf8_whatever_the_locale(tmp_path):
    script = "import sys; from pathlib import Path; from jaxvit.files import write_text; write_text(Path(sys.argv[1]), 'k\\xe4se')"
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], env=os.environ | locale, check=True)
    assert (tmp_path / "x").read_bytes() == "käse".encode()
