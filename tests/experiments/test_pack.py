"""The program that packs images, as a person runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.datasets.packs import verify_pack
from experiments.pack import Options, pack
from experiments.study import progress
from tests.experiments.datasets.other_layouts import write_class_folders


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_class_folders(tmp_path / "photos", {"": 8})


def test_it_says_what_it_does_how_fast_and_how_to_open_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    pack(Options(folder, out=tmp_path / "made", size=16))
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == f"24 images as crop 16, 0.0 MB -> {tmp_path / 'made'}; 0 already there"
    assert re.fullmatch(r"24 of 24 images \(100 %\), [\d.]+ a second, about 0.0 min left; now cat", lines[-1])
    assert re.fullmatch(rf"24 images packed in \d+ s, \d+ images/s; open it with --folders.images {tmp_path}/made --image-size 16", last)
    pack(Options(folder, out=tmp_path / "made", size=16))
    assert "24 already there" in capsys.readouterr().out
    assert verify_pack(tmp_path / "made")["count"] == 24


def test_bad_input_ends_it_with_one_line(folder, tmp_path):
    command = [sys.executable, "-m", "experiments.pack", str(tmp_path / "made"), "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f'error: "{tmp_path / "made"}" is no pack; name a folder that experiments.pack wrote'
    with pytest.raises(ValueError, match="no folder for the pack is given; name one: --out PATH"):
        pack(Options(folder))
    with pytest.raises(ValueError, match="is remote, and only local files"):
        pack(Options(folder, out=Path("gs://bucket/made")))
