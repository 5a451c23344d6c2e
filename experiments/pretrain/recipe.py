"""A training run: its hyper-parameters, its options, and the identity that tells whether a folder holds this very run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.numerics import compiler_flags
from jaxvit.files import refuse_remote


def _check_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"--{name.replace('_', '-')} is {number}; give at least {least}")


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters, chosen on training digits only.

    Attributes:
        batch: scenes per step, two views each.
        queue: teacher projections kept as further negatives.
        matrix_rate: peak learning rate of the block matrices (Muon).
        rest_rate: peak learning rate of everything else (AdamW).
        decay: weight decay of AdamW.
        warmup: steps of linear warm-up; a cosine to 2 % follows.
        clip: largest global norm of the gradient.
        patch_weight: weight of the patch loss relative to the CLS loss.
        curriculum: share of the steps over which ground contrast and geometry grow from 0 to full.
        small_views: share of the steps with views of 48 instead of 64 pixels.
        hidden_keys: smallest and largest share of a view's patch keys that CLS and patches cannot attend to; above 0, the model learns to
            read its registers.
        foreign_keys: CLS and patches attend to the patches of a view of another scene in place of their own: only registers carry
            information about their own view, and the other patches mislead.
        teacher: first and last momentum of the EMA teacher.
    """

    batch: int = 48
    queue: int = 1024
    matrix_rate: float = 0.02
    rest_rate: float = 1e-3
    decay: float = 0.04
    warmup: int = 50
    clip: float = 1.0
    patch_weight: float = 0.5
    curriculum: float = 0.4
    small_views: float = 0.7
    hidden_keys: tuple[float, float] = (0.0, 0.0)
    foreign_keys: bool = False
    teacher: tuple[float, float] = (0.98, 0.999)

    def __post_init__(self) -> None:
        _check_least(1, batch=self.batch, queue=self.queue)
        _check_least(0, warmup=self.warmup)


@dataclass(frozen=True)
class Pretraining:
    """One training run.

    Attributes:
        out: folder of the checkpoints, the log and the finished model; the same command continues there.
        name: model to train.
        steps: optimiser steps; the schedules stretch with them.
        seed: seed of the weights and of everything drawn during training.
        start: folder of a finished run to continue from with new schedules: its weights, heads and queue are taken over.
        recipe: hyper-parameters.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between k-NN evaluations on training digits.
        bank: scenes in the bank of the k-NN evaluation.
        queries: scenes that the k-NN evaluation classifies.
        bundle: copy the finished model into the library.
    """

    out: Path
    name: Literal["demo_reg", "demo", "demo_reg_read"] = "demo_reg"
    steps: int = 3600
    seed: int = 0
    start: Path | None = None
    recipe: Recipe = Recipe()
    checkpoint_every: int = 100
    evaluate_every: int = 200
    bank: int = 1000
    queries: int = 500
    bundle: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "checkpoint_every", "evaluate_every", "bank", "queries")
        _check_least(1, **{name: getattr(self, name) for name in counts})
        _check_least(0, seed=self.seed)
        for path in filter(None, (self.out, self.start)):
            refuse_remote(path)


def identity(run: Pretraining) -> dict[str, Any]:
    """Everything that determines the weights, as JSON values.

    Raises:
        ValueError: the run starts from a folder that holds no finished run.
    """
    recipe = json.loads(json.dumps(asdict(run.recipe)))
    start = {} if run.start is None else {"start": _finished_identity(run.start)}
    flags = {"compiler_flags": compiler_flags()} if compiler_flags() else {}
    return {"name": run.name, "steps": run.steps, "seed": run.seed, "recipe": recipe, **start, **flags}


def init_run_folder(run: Pretraining) -> None:
    """Create the run's folder with its identity in it, or check that the folder holds this run already.

    Raises:
        ValueError: the folder holds another run, or the run starts from a folder without a finished run.
    """
    path, expected = run.out / "run.json", identity(run)
    if path.exists() and (present := json.loads(path.read_text())) != expected:
        different = sorted(name for name in expected.keys() | present.keys() if present.get(name) != expected.get(name))
        raise ValueError(f"{run.out} holds a run with another {', '.join(different)}; choose another --out or remove that folder")
    run.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(expected, indent=1))


def _finished_identity(folder: Path) -> dict[str, Any]:
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no finished run to start from; let that one finish first, or drop --start")
    return json.loads((folder / "run.json").read_text())
