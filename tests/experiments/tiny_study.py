"""A study that takes seconds: two tiny models, with registers and without, on a few digit scenes."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jaxvit
from experiments.datasets.base import DataSize
from experiments.datasets.digits import digit_scenes
from experiments.features.conditions import conditions
from experiments.planning import Study, load_models, settings
from experiments.study.target import Target
from experiments.tasks.base import Feature, Readouts
from jaxvit.sharding import batch_mesh

SIZE = DataSize(
    train=60, val=16, test=30, pairs=16, segmentation=20, segmentation_test=20, calibration=32, analysis_images=10, gallery=10,
    sink_train=20, sink_test=20,
)  # fmt: skip
CONFIG = jaxvit.ViTConfig(8, 24, 2, 3, 48, registers=2, position="antialias", image_size=64)
FEATURES: tuple[Feature, ...] = ("cls", "patch_mean", "register_mean", "registers")
READOUTS = Readouts(features=FEATURES, solvers=("ridge",), lambdas=(0.01, 1.0), neighbours=(5, 20), shots=(1,), memory=200)


def save_models(folder: Path) -> tuple[str, ...]:
    """A tiny model with two registers and its twin without, for 64-pixel scenes; returns their folders."""
    for name, config in (("with_registers", CONFIG), ("without", dataclasses.replace(CONFIG, registers=0))):
        jaxvit.save(jaxvit.create(config, 1), folder / name)
    return tuple(str(folder / name) for name in ("with_registers", "without"))


def study(out: Path, models: tuple[str, ...]) -> Study:
    return Study(out=out, models=models, sizes=SIZE, batch_size=16, resamples=200, seeds=2, readouts=READOUTS)


def targets(models: tuple[str, ...]) -> list[Target]:
    chosen, mesh, data = study(Path("nowhere"), models), batch_mesh(), digit_scenes(SIZE, 0)
    options = settings(chosen)
    return [Target(name, model, mesh, data, options, conditions(model.config)) for name, model in load_models(chosen).items()]


def command(out: Path, models: tuple[str, ...], *more: str) -> list[str]:
    """The command line of a part of that study for tests that end processes; `part` is the same in this process."""
    chosen = part(out, models)
    arguments = ["--out", str(out), "--models", *models, "--only", *map(str, chosen.analyses), "--tasks", *chosen.tasks]
    for name, value in dataclasses.asdict(chosen.sizes).items():
        if value != getattr(DataSize(), name):
            arguments += [f"--data.{name.replace('_', '-')}", str(value)]
    for name in ("seeds", "resamples", "batch_size"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(chosen, name))]
    for name in ("features", "solvers", "lambdas", "neighbours", "shots"):
        arguments += [f"--readouts.{name}", *map(str, getattr(READOUTS, name))]
    return [sys.executable, "-m", "experiments.reproduce", *arguments, "--readouts.memory", "200", *more]


def part(out: Path, models: tuple[str, ...]) -> Study:
    return dataclasses.replace(study(out, models), analyses=("register_lesions",), tasks=("knn",))
