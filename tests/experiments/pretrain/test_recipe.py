"""A run's folder is its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.pretrain.recipe import Pretraining, Recipe, init_run_folder
from experiments.pretrain.training import train


@pytest.mark.parametrize("change", [{"steps": 5}, {"seed": 1}, {"recipe": Recipe(batch=8)}])
def test_the_folder_of_another_run_is_refused(run: Pretraining, change: dict) -> None:
    run.out.mkdir()
    init_run_folder(run)
    init_run_folder(run)
    with pytest.raises(ValueError, match=f"another {next(iter(change))}; choose another --out"):
        train(replace(run, **change))
