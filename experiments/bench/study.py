"""Rows of the whole study, estimated from the rate of its models: it takes hours on a CPU and is the same work throughout."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import jaxvit
from experiments.bench.opponents import SMALL, pixels
from experiments.bench.rows import Case, Goal, Row, Size
from experiments.bench.runs import flop_per_image
from jaxvit.sharding import batch_mesh, replicate
from jaxvit.vit import cast

IMAGES = 50_000
RUNS = 4 + 14 + 14
"""Conditions of DINOv2, DINOv2 with registers and DINOv3, of which there are an S and a B each."""


def rows() -> list[Row]:
    """The rows of this module."""
    what = f"the study's runs: {IMAGES:,} images, 6 models (S and B), {2 * RUNS} conditions"
    against = "published: 12-15 hours of an RTX 4090 (Parodi & Segado 2026)"
    estimate = "from the rate of a batch; read-outs not counted"
    return [
        Row(
            "study_bf16", what, against, "bfloat16", (Goal("seconds", 900),), functools.partial(runs, jnp.bfloat16), "gpu", False, estimate
        ),
        Row("study_f32", what, against, "float32", (), functools.partial(runs, jnp.float32), "gpu", False, estimate),
    ]


def runs(dtype: Any, size: Size) -> Case:
    """A batch through an S and a B with zeroed registers; the time of the study is as many times that as it has batches."""
    models = [jaxvit.create(size.pick(name, SMALL)) for name in ("dinov2_vits14_reg", "dinov2_vitb14_reg")]
    models = [replicate(cast(model, dtype), batch_mesh()) for model in models]
    images, _ = pixels(size, size.pick(16 if jax.default_backend() == "cpu" else 512, 2), models[0].config)
    images = images.astype(dtype)
    edits = [replicate(jaxvit.lower(jaxvit.zero("registers"), model, images.shape[1]), batch_mesh()) for model in models]

    def run() -> Any:
        return [jaxvit.forward(model, images, edit).tokens for model, edit in zip(models, edits, strict=True)]

    flop = len(images) * sum(flop_per_image(model.config, images.shape[1]) for model in models)
    return Case(run, scale=(IMAGES * RUNS / len(images), 1), facts={"images": len(images)}, flop=flop)
