"""The row of precision: the demo study in bfloat16 and in float32, and how far apart their metrics are."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import reproduce
from experiments.bench.rows import BenchRow, Size
from experiments.datasets.base import DataSize
from experiments.tasks.base import FROZEN, Readouts

MODELS = ("demo_reg", "demo")
_SMALL = DataSize(
    train=60, val=20, test=30, pairs=20, segmentation=20, segmentation_test=20, calibration=32, analysis_images=10, gallery=10
)
_SMALL_READOUTS = Readouts(
    features=("cls",), solvers=("ridge",), lambdas=(0.01,), neighbours=(5,), shots=(1,), memory=200, grid_iterations=0
)


@dataclass(frozen=True)
class NumberKey:
    """The fields of a study's row that identify its number."""

    model: str
    condition: str
    task: str
    metric: str
    feature: str | None
    readout: str | None
    layer: int | None
    index: int | None
    source: str | None
    target: str | None
    register_a: str | None
    register_b: str | None
    protocol: str


class Number(NamedTuple):
    """A number of a study, and half the width of its 95 % interval."""

    value: float
    half_interval: float


def rows() -> list[BenchRow]:
    """The row of this module."""
    what = "the demo study of demo_reg and demo in bfloat16: how far its metrics move"
    return [BenchRow("precision", what, "ours, float32", "bfloat16, float32 norms, softmax and RoPE", (), differences, "any")]


def differences(size: Size) -> dict[str, Any]:
    """How far every metric of the study moves from float32 to bfloat16, with one seed: mean and largest difference over the metric's
    numbers, and the mean of half the 95 % interval of the float32 numbers."""
    return {"facts": {"metrics": compare(_numbers(size, "float32"), _numbers(size, "bfloat16"))}}


def compare(full: dict[NumberKey, Number], half: dict[NumberKey, Number]) -> list[dict[str, Any]]:
    """The differences of two precisions by metric; those of frozen read-outs are apart."""
    by_metric: dict[tuple[str, str], list[NumberKey]] = {}
    for key in full:
        metric = f"{key.metric}, frozen" if key.readout == FROZEN else key.metric
        by_metric.setdefault((key.task, metric), []).append(key)
    return [{"task": task, "metric": metric, **_difference(full, half, keys)} for (task, metric), keys in by_metric.items()]


def _difference(full: dict[NumberKey, Number], half: dict[NumberKey, Number], keys: list[NumberKey]) -> dict[str, Any]:
    moved = np.abs([half[key].value - full[key].value for key in keys])
    return {
        "numbers": len(keys),
        "mean_difference": float(moved.mean()),
        "largest_difference": float(moved.max()),
        "half_interval": float(np.mean([full[key].half_interval for key in keys])),
    }


def _numbers(size: Size, dtype: Literal["float32", "bfloat16"]) -> dict[NumberKey, Number]:
    """Every number of the trained models in the demo study."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / dtype
        study = reproduce.Study(out=out, models=MODELS, seeds=1, resamples=1_000, dtype=dtype)
        if size.small:
            few: dict[str, Any] = {
                "analyses": ("ablation_table",),
                "sizes": _SMALL,
                "readouts": _SMALL_READOUTS,
                "batch_size": 16,
                "resamples": 20,
            }
            study = replace(study, models=MODELS[:1], batch_size=16, resamples=20, **few)
        reproduce.reproduce(study)
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return {
        NumberKey(**{name: row[name] for name in NumberKey.__annotations__}): Number(row["value"], (row["ci_high"] - row["ci_low"]) / 2)
        for row in lines
        if row["model"] in MODELS
    }
