"""Captures: what the named ones return, and functions of one's own."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import jensenshannon

import jaxvit
from jaxvit.capture import group_columns
from tests.jaxvit import tiny


def test_attention_flow_is_the_full_map_reduced_and_its_rows_sum_to_one():
    out = jaxvit.forward(tiny.model(), tiny.images(), capture=("attention", "attention_flow"))
    full, flow = (np.asarray(out.captured[k], np.float64) for k in ("attention", "attention_flow"))
    groups = [[0], [1], [2], list(range(3, tiny.LAYOUT.tokens))]
    want = np.stack([np.stack([full[..., s, :][..., t].sum(-1).mean(-1) for t in groups], -1) for s in groups], -2)
    assert flow.shape == (3, 4, 3, 4, 4)
    np.testing.assert_allclose(flow, want, atol=1e-6)
    np.testing.assert_allclose(flow.sum(axis=-1), 1, atol=1e-6)


def own_group_attention(state):
    return state.group_attention


def test_a_function_of_ones_own_can_read_group_attention():
    captured = jaxvit.forward(tiny.model(), tiny.images(2), capture={"attention": "attention", "mine": own_group_attention}).captured
    want = np.asarray(captured["attention"], np.float64) @ np.asarray(group_columns(tiny.LAYOUT), np.float64)
    np.testing.assert_allclose(captured["mine"], np.swapaxes(want, -2, -3), atol=1e-6)


def norm_of_queries(state):
    return jnp.linalg.norm(state.q, axis=-1)


def test_a_function_of_ones_own_mixes_with_names():
    out = jaxvit.forward(tiny.model(), tiny.images(), capture={"mine": norm_of_queries, "top": "cls"})
    assert out.captured["mine"].shape == (3, 4, tiny.LAYOUT.tokens, 3)
    assert out.captured["top"].shape == (3, 4, 24)


def test_attention_divergence_is_scipys_mean_over_the_queries_of_all_tokens_overwritten_ones_too():
    pair = jaxvit.contrast(
        tiny.model(),
        tiny.images(2),
        jaxvit.zero("cls"),
        capture={"js": "attention_divergence", "p": lambda c, a: (c.attention, a.attention)},
    )
    p, q = (np.asarray(x, np.float64) for x in pair.captured["p"])
    np.testing.assert_allclose(pair.captured["js"], (jensenshannon(p, q, base=2, axis=-1) ** 2).mean(axis=-1), atol=1e-6)


def divergence_of_two_runs(clean, ablated):
    return jaxvit.capture.attention_divergence(clean, ablated)


def test_divergence_is_the_same_where_attention_is_computed_a_second_time():
    capture = {"fused": "attention_divergence"}, {"separate": divergence_of_two_runs}
    fused, separate = (jaxvit.contrast(tiny.model(), tiny.images(2), jaxvit.zero("registers"), capture=c).captured for c in capture)
    np.testing.assert_allclose(separate["separate"], fused["fused"], atol=1e-6)


def test_patches_are_compared_with_those_of_the_clean_run():
    pair = jaxvit.contrast(
        tiny.model(),
        tiny.images(2),
        jaxvit.zero("registers"),
        capture={"cosine": "patch_cosine", "ratio": "patch_norm_ratio", "streams": lambda c, a: (c.stream_out, a.stream_out)},
    )
    clean, ablated = (np.asarray(x, np.float64)[:, :, tiny.LAYOUT.prefix :] for x in pair.captured["streams"])
    lengths = np.linalg.norm(clean, axis=-1), np.linalg.norm(ablated, axis=-1)
    np.testing.assert_allclose(pair.captured["cosine"], (clean * ablated).sum(axis=-1) / (lengths[0] * lengths[1]), atol=1e-6)
    np.testing.assert_allclose(pair.captured["ratio"], lengths[1] / lengths[0], rtol=1e-5)
