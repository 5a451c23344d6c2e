"""The row of precision: the demo study in bfloat16 beside float32, and how far every metric is apart."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import ablation_table, reproduce
from experiments.bench.rows import Row, Size
from experiments.data import DataSize
from experiments.measures import Readouts

MODELS = ("demo_reg", "demo")
_SMALL = DataSize(bank=60, choose=20, test=30, pairs=20, segmentation=20, segmentation_test=20, calibration=32, flow=10, gallery=10)
_SMALL_READOUTS = Readouts(
    features=("cls",), solvers=("ridge",), lambdas=(0.01,), neighbours=(5,), shots=(1,), memory=200, grid_iterations=0
)


def rows() -> list[Row]:
    """The row of this module."""
    what = "the demo study of demo_reg and demo in bfloat16: how far its metrics move"
    return [Row("precision", what, "ours, float32", "bfloat16, float32 norms, softmax and RoPE", (), differences, "any")]


def differences(size: Size) -> dict[str, Any]:
    """Every number of the study in both precisions, one seed; of each metric the mean and the largest difference, and beside it half
    the 95 % interval of the float32 number (mean over the same numbers)."""
    full, half = (_numbers(size, dtype) for dtype in ("float32", "bfloat16"))
    metrics = dict.fromkeys(map(_metric, full))
    return {"facts": {"metrics": [_apart(full, half, *metric) for metric in metrics]}}


def _numbers(size: Size, dtype: Literal["float32", "bfloat16"]) -> dict[tuple[Any, ...], tuple[float, float]]:
    """Value and half the interval of every number of the trained models, by what it is."""
    experiments = size.pick((), (ablation_table,))  # () are all of the preset
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / dtype
        study = reproduce.Reproduce(out=out, models=MODELS, seeds=1, resamples=1_000, dtype=dtype)
        if size.small:
            study = replace(study, models=MODELS[:1], data=_SMALL, readouts=_SMALL_READOUTS, batch_size=16, resamples=20)
        reproduce.reproduce(study, experiments)
        found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    fields = ("model", "condition", "task", "metric", "feature", "layer", "protocol")
    return {tuple(row[f] for f in fields): (row["value"], (row["ci_high"] - row["ci_low"]) / 2) for row in found if row["model"] in MODELS}


def _metric(key: tuple[Any, ...]) -> tuple[str, str]:
    """Task and metric; those that are numbered, such as one register's, are one."""
    return key[2], re.sub(r"\[\d+\]", "", key[3])


def _apart(
    full: dict[tuple[Any, ...], tuple[float, float]], half: dict[tuple[Any, ...], tuple[float, float]], *metric: str
) -> dict[str, Any]:
    keys = [key for key in full if _metric(key) == metric]
    moved = np.abs([half[key][0] - full[key][0] for key in keys])
    return {
        "task": metric[0],
        "metric": metric[1],
        "numbers": len(keys),
        "mean_difference": float(moved.mean()),
        "largest_difference": float(moved.max()),
        "half_interval": float(np.mean([full[key][1] for key in keys])),
    }
