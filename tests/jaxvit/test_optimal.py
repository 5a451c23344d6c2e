"""The optimal constant: where it is known in closed form, it is found; elsewhere it costs less than mean and zero."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from tests.jaxvit import tiny

LAST = tiny.CONFIG.depth - 1
IMAGES = np.zeros((4, *tiny.SIZE, 3), np.float32)
VALUES = {"block_output": np.ones((tiny.CONFIG.depth, 4, tiny.CONFIG.width), np.float32)}


@functools.cache
def batches() -> list[tuple[jax.Array, None]]:
    return [(tiny.images(4, seed=seed), None) for seed in (1, 2)]


def distance(output, clean):
    """Squared distance of the residual stream from the clean run, in which the last block's tokens stand."""
    return ((output.prenorm - clean.prenorm) ** 2).sum(axis=(1, 2))


def distance_of_cls(output, clean):
    return ((output.cls - clean.cls) ** 2).sum(axis=-1)


def cross_entropy(output, labels):
    return -jnp.take_along_axis(output.cls, labels[:, None], axis=1)[:, 0]


def one_number(output, clean):
    return distance_of_cls(output, clean).mean()


def not_a_number(output, clean):
    return distance_of_cls(output, clean) * jnp.nan


@pytest.mark.parametrize("tokens", ["cls", "patches", ["registers", "patches[3]"]])
def test_the_constant_of_least_squared_error_is_the_mean(tokens):
    """Found from zero; one image is padding and must not count."""
    valid = np.array([True, True, False, True])
    (first, _), (second, _) = batches()
    first, second = np.asarray(first), np.asarray(second)[:3]
    found = jaxvit.optimal(tiny.model(), [(first, valid), (second, None)], tokens, distance, layers=[LAST], passes=150)
    images = np.concatenate([first[valid], second])
    streams = np.asarray(jaxvit.forward(tiny.model(), images).prenorm, np.float64)
    want = streams[:, list(tiny.LAYOUT.positions(tokens))].mean(axis=0)
    want = want.mean(axis=0, keepdims=True) if tokens == "patches" else want
    np.testing.assert_allclose(found.vectors[LAST], want, atol=1e-3)
    assert (found.vectors[:LAST] == 0).all()
    assert found.losses.shape == (150, 2)
    assert found.loss < found.zero_loss == found.start_loss


def test_it_never_costs_more_than_mean_or_zero_and_goes_straight_into_constant():
    statistics = jaxvit.calibrate(tiny.model(), batches(), ("attention_output",))
    where = {"layers": "0-1", "at": "attention_output"}
    found = jaxvit.optimal(tiny.model(), batches(), ["cls", "registers"], distance_of_cls, statistics=statistics, **where)

    def cost(ablation):
        runs = [[jaxvit.forward(tiny.model(), images, a) for a in (ablation, None)] for images, _ in batches()]
        return np.mean([distance_of_cls(*pair) for pair in runs])

    assert found.vectors.shape == (3, 3, tiny.CONFIG.width)
    ablation = jaxvit.constant(["cls", "registers"], found.vectors, **where)
    assert found.ablation == ablation
    np.testing.assert_allclose(found.loss, cost(ablation), rtol=1e-4)
    np.testing.assert_allclose(found.start_loss, cost(jaxvit.mean(["cls", "registers"], statistics, **where)), rtol=1e-4)
    np.testing.assert_allclose(found.zero_loss, cost(jaxvit.zero(["cls", "registers"], **where)), rtol=1e-4)
    assert found.loss < 0.95 * min(found.start_loss, found.zero_loss)
    again = jaxvit.optimal(tiny.model(), iter(batches()), ["cls", "registers"], distance_of_cls, statistics=statistics, **where)
    np.testing.assert_array_equal(found.vectors, again.vectors)


def test_random_patches_have_one_constant():
    found = jaxvit.optimal(tiny.model(), batches(), jaxvit.random_patches(5, seed=1), distance, layers=[LAST], passes=3)
    assert found.vectors.shape == (3, 1, tiny.CONFIG.width)
    assert found.loss < found.start_loss


def test_a_rate_that_is_far_too_high_returns_what_it_started_with():
    found = jaxvit.optimal(tiny.model(), batches(), "cls", distance, layers=[LAST], passes=1, learning_rate=1e4)
    assert found.loss == found.start_loss
    assert (found.vectors == 0).all()


def test_batches_may_have_targets_and_heads_be_chosen():
    """Only the chosen head moves."""
    labelled = [(images, None, np.arange(4)) for images, _ in batches()]
    found = jaxvit.optimal(tiny.model(), labelled, "cls", cross_entropy, at="head_output", heads=[1], passes=5)
    by_head = found.vectors.reshape(3, 1, 3, 8)
    assert (by_head[:, :, [0, 2]] == 0).all()
    assert (by_head[:, :, 1] != 0).all()
    assert found.loss < found.start_loss


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batches": []}, "no valid image"),
        ({"batches": [(IMAGES, np.zeros(4, bool))]}, "no valid image"),
        ({"batches": [IMAGES]}, r"such as \(images, None\)"),
        ({"passes": 0}, "passes is 0"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"loss": one_number}, "one number for each"),
        ({"loss": not_a_number}, "the loss is nan"),
        ({"statistics": jaxvit.Moments(VALUES, VALUES, 8, tiny.SIZE), "at": "mlp_output"}, r'sites=\("mlp_output",\)'),
        ({"at": "output"}, "unknown site"),
    ],
)
def test_bad_input_says_what_is_wrong_in_one_line(change, says):
    with pytest.raises(ValueError, match=says) as error:
        jaxvit.optimal(**({"model": tiny.model(), "batches": [(IMAGES, None)], "tokens": "cls", "loss": distance, "passes": 1} | change))
    assert "\n" not in str(error.value)
