"""Rollout against a statement in NumPy, and where it has a closed form."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxvit
from tests.jaxvit import tiny


def in_numpy(attention):
    """As the paper says it, image by image."""
    results = []
    for maps in np.asarray(attention, np.float64).swapaxes(0, 1):
        result = np.eye(maps.shape[-1])
        for heads in maps:
            mixed = 0.5 * heads.mean(axis=0) + 0.5 * np.eye(len(result))
            result = mixed / mixed.sum(axis=1, keepdims=True) @ result
        results.append(result)
    return np.stack(results)


def head_mean(state):
    return state.attention.mean(axis=1)


def test_it_is_the_product_over_blocks():
    maps = {"maps": "attention", "means": head_mean}
    captured = jaxvit.forward(tiny.model(), tiny.images(), jaxvit.zero("registers"), maps).captured
    for attention in captured.values():
        got = jaxvit.rollout(attention)
        np.testing.assert_allclose(got, in_numpy(captured["maps"]), atol=1e-6)
        np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jaxvit.rollout)(captured["means"]), got, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_uniform_attention_has_a_closed_form(layers):
    """Each block leaves half of a token where it is, and spreads the other half evenly."""
    tokens = 7
    stays = 0.5**layers
    want = stays * np.eye(tokens) + (1 - stays) / tokens
    np.testing.assert_allclose(jaxvit.rollout(np.full((layers, 2, 3, tokens, tokens), 1 / tokens, np.float32))[1], want, atol=1e-6)


def test_the_last_block_stands_on_the_left_and_lost_mass_is_renormalised():
    first, last = np.zeros((2, 1, 3, 3), np.float32)
    first[0, :, 0] = 1  # everyone attends to token 0, then to token 2
    last[0, :, 2] = 1
    last[0, 1] = 0  # what attends to nothing stays where it is
    mixed = np.array([[0.5, 0, 0.5], [0, 1, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]])
    np.testing.assert_allclose(jaxvit.rollout(np.stack([first, last]))[0], mixed, atol=1e-6)


@pytest.mark.parametrize(
    ("attention", "says"),
    [
        (np.ones((2, 3, 4)), "capture"),
        (np.ones((2, 3, 4, 5)), r"got \(2, 3, 4, 5\)"),
        (np.random.default_rng(0).normal(size=(2, 1, 3, 3)), "after the softmax"),
        (np.ones((2, 1, 3, 3)), "sum to 3"),
        ([[0.5]], "np.asarray"),
    ],
)
def test_bad_input_says_what_is_wrong_in_one_line(attention, says):
    with pytest.raises(ValueError, match=says) as error:
        jaxvit.rollout(attention)
    assert "\n" not in str(error.value)
