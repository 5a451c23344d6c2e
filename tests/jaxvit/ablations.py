"""Ablations that library tests draw from, and runs of the tiny model under them."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import strategies as st

import jaxvit
from jaxvit.sites import HEAD_SITES, SITES, STREAM_SITES, width_at
from tests.jaxvit import tiny


@functools.cache
def statistics() -> jaxvit.Moments:
    return tiny.statistics(sites=SITES)


def run(ablation, batch=4, **more):
    more = {"example_ids": tiny.ids(batch)} | more
    return jaxvit.forward(tiny.model(), tiny.images(batch), ablation=ablation, **more)


SELECTORS = st.sampled_from(["cls", "registers", "registers[1]", "patches", "patches[3]", ["cls", "registers[0]"], [0, 5], 2])
LAYERS = st.one_of(st.just("all"), st.lists(st.integers(0, 2), unique=True))
ANY_SITE = st.sampled_from([*STREAM_SITES[::-1], *(site for site in SITES if site not in STREAM_SITES)])
STREAM_SITE = st.sampled_from(STREAM_SITES)


@st.composite
def some_channels(draw, at):
    """Heads or channels of a site as arguments of a constructor; often none."""
    if not draw(st.booleans()):
        return {}
    name, count = ("heads", tiny.CONFIG.heads) if at in HEAD_SITES else ("channels", width_at(at, tiny.CONFIG))
    return {name: draw(st.lists(st.integers(0, count - 1), unique=True, max_size=4))}


@st.composite
def constant_ablations(draw, sites=ANY_SITE):
    tokens, layers, at = draw(SELECTORS), draw(LAYERS), draw(sites)
    chosen = draw(some_channels(at))
    kind = draw(st.sampled_from(["zero", "mean", "constant"]))
    if kind == "zero":
        return jaxvit.zero(tokens, layers, at, **chosen)
    if kind == "mean":
        return jaxvit.mean(tokens, statistics(), layers, at, **chosen)
    return jaxvit.constant(tokens, np.linspace(-1, draw(st.floats(-2, 2)), width_at(at, tiny.CONFIG)), layers, at, **chosen)


@st.composite
def any_ablations(draw, sites=ANY_SITE):
    if draw(st.booleans()):
        return draw(constant_ablations(sites))
    tokens, layers, at, seed = draw(SELECTORS), draw(LAYERS), draw(sites), draw(st.integers(0, 2**32 - 1))
    chosen = draw(some_channels(at))
    kind = draw(st.sampled_from(["noise", "shuffle", "random"]))
    if kind == "noise":
        return jaxvit.noise(tokens, statistics(), seed, layers, at, **chosen)
    if kind == "shuffle":
        return jaxvit.shuffle(tokens, seed, layers, at, draw(st.booleans()), **chosen)
    return jaxvit.zero(jaxvit.random_patches(draw(st.integers(1, 12)), seed), layers, at, **chosen)
