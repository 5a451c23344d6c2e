"""The tiny training that tests of this package run."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.demo import CONFIGS
from experiments.pretrain.recipe import Pretraining
from tests.experiments.pretrain.tiny_training import TINY, tiny_training


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretraining:
    """A tiny training under the name of a demo model, which is tiny meanwhile."""
    monkeypatch.setitem(CONFIGS, "demo_reg", TINY)
    return tiny_training(tmp_path / "whole")
