"""Rows of the whole study, estimated from the throughput of its models: it takes hours on a CPU, and all of it is the same work."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import jaxvit
from experiments.analyses.presets import PRESETS
from experiments.bench.models import flop_per_image
from experiments.bench.opponents import SMALL, pixels
from experiments.bench.rows import BenchRow, Case, Goal, Size
from experiments.features.conditions import overwriting
from jaxvit.sharding import batch_mesh, replicate
from jaxvit.vit import cast

IMAGES = 50_000
MODELS = PRESETS["parodi2026"].models
"""DINOv2, DINOv2 with registers and DINOv3, each as an S and a B."""
RUNS = sum(len(overwriting(jaxvit.MODELS[name])) for name in MODELS)
"""Runs that every image goes through: all conditions of all models, half of them of size S and half of size B."""


def rows() -> list[BenchRow]:
    """The rows of this module."""
    what = f"the study's runs: {IMAGES:,} images, {len(MODELS)} models (S and B), {RUNS} conditions"
    against = "published: 12-15 hours of an RTX 4090 (Parodi & Segado 2026)"
    estimate = "from the rate of a batch; read-outs not counted"
    goal = (Goal("seconds", 900),)
    return [
        BenchRow("study_bf16", what, against, "bfloat16", goal, functools.partial(all_runs, jnp.bfloat16), "gpu", estimate=estimate),
        BenchRow("study_f32", what, against, "float32", (), functools.partial(all_runs, jnp.float32), "gpu", estimate=estimate),
    ]


def all_runs(dtype: Any, size: Size) -> Case:
    """A batch through an S and a B with zeroed registers, scaled to the batches and conditions of the study."""
    models = [jaxvit.create(size.pick(name, SMALL)) for name in ("dinov2_vits14_reg", "dinov2_vitb14_reg")]
    models = [replicate(cast(model, dtype), batch_mesh()) for model in models]
    images, _ = pixels(size, size.pick(16 if jax.default_backend() == "cpu" else 512, 2), models[0].config)
    images = images.astype(dtype)
    edits = [replicate(jaxvit.lower(jaxvit.zero("registers"), model, images.shape[1]), batch_mesh()) for model in models]

    def run() -> Any:
        return [jaxvit.forward(model, images, edit).tokens for model, edit in zip(models, edits, strict=True)]

    flop = len(images) * sum(flop_per_image(model.config, images.shape[1]) for model in models)
    batches = IMAGES / len(images)
    return Case(run, scale=(batches * RUNS / len(models), 1), facts={"images": len(images)}, flop=flop)
