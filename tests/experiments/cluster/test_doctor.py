"""Whether a study could start: one line for each thing that it needs, and exit code 0 only where all are there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.experiments.tiny_study import command, save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, ...]:
    return save_models(tmp_path_factory.mktemp("models"))[:1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One for all tests: programs are compiled once."""
    return tmp_path_factory.mktemp("cache")


def examined(out: Path, models: tuple[str, ...], cache: Path, *more: str) -> tuple[int, dict[str, list[str]]]:
    """Exit code, and the lines by what they are about, each "ok" or "NO" first."""
    environment = {**os.environ, "JAXVIT_CACHE": str(cache)}
    run = command(out, models, "--doctor", *more)
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    return done.returncode, {
        words[1]: words for words in (line.split(maxsplit=2) for line in done.stdout.splitlines() if line[:2] in ("ok", "NO"))
    }


def test_a_study_that_could_start_is_told_and_leaves_nothing_behind(models, cache, tmp_path):
    code, lines = examined(tmp_path / "out", models, cache)
    assert code == 0
    names = ("devices", "versions", "cache", "results", "memory", "study")
    assert [lines[name][0] for name in names] == ["ok"] * 6
    assert "jaxlib" in lines["versions"][2]
    assert "GiB free" in lines["results"][2]
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_and_the_code_is_1(models, cache, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    code, lines = examined(tmp_path / "out", models, cache)
    assert (code, lines["study"][0]) == (1, "NO")
    assert "exists and holds no study; choose another --out" in lines["study"][2]
    pytest.importorskip("distributed", reason="needs the extra: pip install -e '.[cluster]'")
    code, lines = examined(tmp_path / "new", models, cache, "--cluster", "tcp://127.0.0.1:1")
    assert (code, lines["study"][0], lines["cluster"][0]) == (1, "ok", "NO")
    assert "there is no scheduler at tcp://127.0.0.1:1; start one there: dask scheduler --port 1" in lines["cluster"][2]
