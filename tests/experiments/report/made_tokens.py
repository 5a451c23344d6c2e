"""Made cells of the token microscope."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.analyses.token_microscope import KIND
from experiments.study.cells import Store


def made_token_cells(folder: Path, *models: str) -> list[list[str]]:
    """Random codes of three images of each model under six conditions, in which every part takes its room; returns the entries of their
    cells in a manifest."""
    names, rng, cells = ["full", *(f"c{i}" for i in range(5))], np.random.default_rng(0), []
    for model in models:
        maps = rng.integers(0, 64, (6, 2, 3, 2, 10, 10), np.uint8)
        arrays = {
            "images": np.zeros((3, 16, 24, 3), np.uint8),
            "grid": np.array([4, 2, 3, 2]),
            "conditions": np.array(names),
            "ablated": np.array(names),
            "norms": rng.integers(1, 4000, (6, 2, 3, 10), np.uint16),
            "norm_range": np.array([1.0, 2.0]),
            "features": rng.integers(-64, 65, (6, 2, 3, 10, 64), np.int8),
            "cosine_errors": np.array([0.01, 0.02, 0.03]),
            "colours": np.zeros((6, 2, 3, 10, 3), np.uint8),
            "attention_conditions": np.array(names),
            "head_conditions": np.array(names[:4]),
            "attention": maps[:, :, :, 0],
            "attention_sums": np.full((6, 2, 3, 10), 65535, np.uint16),
            "heads": maps[:4],
            "heads_sums": np.full((4, 2, 3, 2, 10), 65535, np.uint16),
        }
        cell = Store(folder / "cells").save({"kind": KIND, "name": model, "conditions": names}, [], arrays, {})
        cells.append([cell.hash, KIND, model])
    return cells
