"""Rows of what precedes the computation: dispatch of a call, compilation."""

from __future__ import annotations

import functools
import statistics
import time

import jax
import jax.numpy as jnp

import jaxvit
from experiments.bench.opponents import SMALL
from experiments.bench.rows import BenchRow, Case, Goal, Seconds, Size
from jaxvit.vit import abstract


def rows() -> list[BenchRow]:
    """The rows of this module."""
    second = (Goal("seconds", 10),)
    compiles = functools.partial(compile_forward, "dinov2_vits14_reg"), functools.partial(compile_forward, "dinov2_vitg14_reg")
    return [
        BenchRow("dispatch", "host time of a forward call, 12 blocks", "", "float32", (Goal("seconds", 2e-4),), dispatch, "any"),
        BenchRow("compile_s", "compile forward, ViT-S/14+reg, 224", "", "float32", second, compiles[0], "any"),
        BenchRow("compile_g", "compile forward, ViT-g/14+reg, 224", "", "float32", second, compiles[1], "any"),
    ]


def dispatch(size: Size) -> Case:
    """Median time until a call returns (checks, flattening, launch) while earlier calls run, as in a study: on an idle CPU the call
    would do the computation itself. The model has 12 blocks of width 4 and 6 tokens, so that a core stays free for the host."""
    config = jaxvit.ViTConfig(2, 4, 12, 1, 4, registers=4, position="antialias", image_size=2)
    model, images = jaxvit.create(config), jnp.zeros((1, 2, 2, 3))
    calls = size.pick(300, 20)

    def run() -> Seconds:
        seconds, results = [], []
        for _ in range(calls):
            started = time.perf_counter()
            results.append(jaxvit.forward(model, images).tokens)
            seconds.append(time.perf_counter() - started)
        jax.block_until_ready(results)
        return Seconds(statistics.median(seconds))

    return Case(run, facts={"calls": calls})


def compile_forward(name: str, size: Size) -> Case:
    """Lowering and compilation of a forward pass, without weights and without any cache."""
    config = size.pick(jaxvit.MODELS[name], SMALL)
    side = size.pick(224, config.image_size)
    images = jax.ShapeDtypeStruct((8, side, side, 3), jnp.float32)
    model = abstract(config)

    def run() -> Seconds:
        jax.config.update("jax_enable_compilation_cache", False)
        try:
            started = time.perf_counter()
            # a new function every time, so that no earlier trace is reused
            jax.jit(lambda model, images: jaxvit.forward(model, images).tokens).lower(model, images).compile()
            return Seconds(time.perf_counter() - started)
        finally:
            jax.config.update("jax_enable_compilation_cache", True)

    return Case(run, facts={"parameters": sum(leaf.size for leaf in jax.tree.leaves(model))})
