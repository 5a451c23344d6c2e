"""Which patches a condition overwrites, against those that hold what was written when the model is run."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxvit
from experiments.features.conditions import RANDOM_PATCHES, conditions, random_patch_count
from experiments.features.overwritten import overwritten_patches
from experiments.features.recipes import made_up_moments
from tests.experiments.tiny_study import CONFIG
from tests.jaxvit import tiny

SIZE = (16, 16)
IDS = 30_000_000 + np.arange(6)
PATCHES = 16
MARK = np.full(tiny.CONFIG.width, 7.0, np.float32)


@pytest.mark.parametrize(
    "tokens",
    [
        jaxvit.random_patches(3, 5),
        jaxvit.random_patches(PATCHES, 0),
        "patches[3]",
        ["patches[0]", "cls", "patches[15]"],
        [0, 1, 3, 7],
        "patches",
    ],
)
def test_they_are_those_that_hold_what_was_written_there(tokens):
    """Also where a model's run draws them: its block output is asked."""
    ablation = jaxvit.constant(tokens, MARK)
    model = jaxvit.create(tiny.CONFIG, 0)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(len(IDS), *SIZE, 3)), jnp.float32)
    out = jaxvit.forward(model, images, ablation=ablation, capture="block_output", example_ids=jnp.asarray(IDS))
    last = np.asarray(out.captured["block_output"][-1][:, 1 + tiny.CONFIG.registers :])
    assert last.shape[1] == PATCHES
    np.testing.assert_array_equal(overwritten_patches(ablation, tiny.CONFIG, SIZE, IDS), (last == 7).all(axis=-1))


def test_a_patch_that_keeps_channels_is_not_overwritten():
    some, all_of_them = jaxvit.zero("patches[3]", channels=[5]), jaxvit.shuffle("patches[4]", channels=range(tiny.CONFIG.width))
    assert overwritten_patches(some, tiny.CONFIG, SIZE, IDS) is None
    assert overwritten_patches(jaxvit.zero("patches", at="mlp_hidden"), tiny.CONFIG, SIZE, IDS) is None
    found = overwritten_patches(some & all_of_them & jaxvit.zero("patches[5]"), tiny.CONFIG, SIZE, IDS)
    np.testing.assert_array_equal(found, np.isin(np.arange(PATCHES), [4, 5])[None].repeat(len(IDS), 0))


def test_a_patch_that_is_added_to_or_scaled_is_not_overwritten_and_one_that_changes_places_is():
    steered = jaxvit.add("patches", MARK) & jaxvit.scale("patches[4]", 2)
    assert overwritten_patches(steered, tiny.CONFIG, SIZE, IDS) is None
    found = overwritten_patches(steered & jaxvit.swap("patches[2]", "patches[9]"), tiny.CONFIG, SIZE, IDS)
    np.testing.assert_array_equal(found, np.isin(np.arange(PATCHES), [2, 9])[None].repeat(len(IDS), 0))


@pytest.mark.parametrize("kind", ["mean", "noise", "shuffle", "zero", "joined"])
def test_whatever_they_are_overwritten_with(kind):
    moments = made_up_moments(tiny.CONFIG, SIZE)
    chosen = jaxvit.random_patches(2, 1)
    ablation = {
        "mean": jaxvit.mean(chosen, moments),
        "noise": jaxvit.noise(chosen, moments, 3),
        "shuffle": jaxvit.shuffle(chosen, 3),
        "zero": jaxvit.zero(chosen, layers=[tiny.CONFIG.depth - 1]),
        "joined": jaxvit.zero(chosen) & jaxvit.mean("patches[3]", moments) & jaxvit.zero("registers"),
    }[kind]
    plain = overwritten_patches(jaxvit.zero(chosen), tiny.CONFIG, SIZE, IDS)
    found = overwritten_patches(ablation, tiny.CONFIG, SIZE, IDS)
    np.testing.assert_array_equal(found, plain | (np.arange(PATCHES) == 3) if kind == "joined" else plain)


@pytest.mark.parametrize(
    "ablation",
    [
        jaxvit.Ablation(),
        jaxvit.zero("cls") & jaxvit.zero("registers"),
        jaxvit.zero("patches", layers=[0]),
        jaxvit.zero(jaxvit.random_patches(3), at="block_input"),
        jaxvit.zero("patches[1]", at="mlp_output"),
    ],
)
def test_a_condition_that_overwrites_no_patch_that_is_read_has_none(ablation):
    assert overwritten_patches(ablation, tiny.CONFIG, SIZE, IDS) is None


def test_as_many_random_patches_as_registers_four_where_there_are_none():
    moments = made_up_moments(CONFIG, (64, 64))
    for registers, expected in ((2, 2), (5, 5), (0, RANDOM_PATCHES)):
        config = dataclasses.replace(CONFIG, registers=registers)
        (replacement,) = conditions(config)["random_patches"](config, moments, 3).replacements
        assert replacement.tokens == jaxvit.random_patches(expected, 3)
        assert random_patch_count(config) == expected
