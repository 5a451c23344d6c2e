"""Ablations that library tests draw from, and runs of the tiny model under them."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import strategies as st

import jaxvit
from tests.jaxvit import tiny


@functools.cache
def statistics() -> jaxvit.Moments:
    return tiny.statistics(sites=("block_input", "attention_output", "mlp_output", "block_output"))


def run(ablation, batch=4, **more):
    more = {"example_ids": tiny.ids(batch)} | more
    return jaxvit.forward(tiny.model(), tiny.images(batch), ablation=ablation, **more)


SELECTORS = st.sampled_from(["cls", "registers", "registers[1]", "patches", "patches[3]", ["cls", "registers[0]"], [0, 5], 2])
LAYERS = st.one_of(st.just("all"), st.lists(st.integers(0, 2), unique=True))
SITES = st.sampled_from(["block_output", "block_input", "attention_output", "mlp_output"])


@st.composite
def constant_ablations(draw):
    tokens, layers, at = draw(SELECTORS), draw(LAYERS), draw(SITES)
    kind = draw(st.sampled_from(["zero", "mean", "constant"]))
    if kind == "zero":
        return jaxvit.zero(tokens, layers, at)
    if kind == "mean":
        return jaxvit.mean(tokens, statistics(), layers, at)
    return jaxvit.constant(tokens, np.linspace(-1, draw(st.floats(-2, 2)), tiny.CONFIG.width), layers, at)


@st.composite
def any_ablations(draw):
    if draw(st.booleans()):
        return draw(constant_ablations())
    tokens, layers, at, seed = draw(SELECTORS), draw(LAYERS), draw(SITES), draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["noise", "shuffle", "random"]))
    if kind == "noise":
        return jaxvit.noise(tokens, statistics(), seed, layers, at)
    if kind == "shuffle":
        return jaxvit.shuffle(tokens, seed, layers, at, draw(st.booleans()))
    return jaxvit.zero(jaxvit.random_patches(draw(st.integers(1, 12)), seed), layers, at)
