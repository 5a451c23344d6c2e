"""The conditions of the study: their names, and the tokens that rows say are overwritten."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

import jaxvit
from experiments.features.conditions import ALL_CONDITIONS, CALIBRATED_SITES, FULL, ON_REQUEST, REPLACEMENTS, conditions, lesions
from experiments.features.recipes import made_up_moments, recipe_of, tokens_in_words

CONFIG = jaxvit.ViTConfig(8, 24, 2, 3, 48, registers=4, position="antialias", image_size=64)
MOMENTS = made_up_moments(CONFIG, (64, 64))


def test_every_condition_says_which_tokens_it_overwrites():
    tokens = {name: tokens_in_words(condition(CONFIG, MOMENTS, 0)) for name, condition in conditions(CONFIG).items()}
    assert tokens == {
        "full": "",
        "zero_cls": "cls",
        "mean_cls": "cls",
        "random_patches": "random patches",
        "zero_registers": "registers",
        "zero_r1": "r1",
        "zero_r2": "r2",
        "zero_r3": "r3",
        "zero_r4": "r4",
        "zero_r1_to_r2": "r1 to r2",
        "zero_r1_to_r3": "r1 to r3",
        "mean_registers": "registers",
        "noise_registers": "registers",
        "shuffle_registers": "registers",
        "shuffle_registers_whole": "registers",
        "optimal_registers": "registers",
        "fix_reg_mean": "registers",
        "cut_registers": "cls, patches -> registers",
        "cut_registers_lost": "cls, patches -> registers",
    }


def test_tokens_are_overwritten_at_every_block_where_the_study_measures_moments():
    for name, condition in conditions(CONFIG).items():
        recipe = recipe_of(condition, CONFIG, (64, 64), 0, "")
        sites = {getattr(part, "at", "attention") for part in condition(CONFIG, MOMENTS, 0).replacements}
        assert recipe.window == (None if name == FULL else "all")
        others = {FULL: set(), "fix_reg_mean": {"block_input"}, "cut_registers": {"attention"}, "cut_registers_lost": {"attention"}}
        assert sites == others.get(name, {"block_output"})
        assert set(recipe.sites) <= set(CALIBRATED_SITES)
        assert bool(recipe.sites) == (name in ("mean_cls", "mean_registers", "noise_registers", "optimal_registers", "fix_reg_mean"))


def test_lesions_zero_the_registers_in_their_names():
    assert lesions(3) == {"zero_r1": range(0, 1), "zero_r2": range(1, 2), "zero_r3": range(2, 3), "zero_r1_to_r2": range(0, 2)}
    built = conditions(CONFIG)["zero_r1_to_r3"](CONFIG, MOMENTS, 0)
    assert built == jaxvit.zero(["registers[0]", "registers[1]", "registers[2]"])
    assert lesions(1) == {}, "the only register is all registers"


def test_the_mean_at_every_input_is_for_cls_and_patches_the_mean_at_every_output():
    """Exactly, where the mean of the registers that enter block 0, which are the same in all images, is taken without rounding."""
    model, images = jaxvit.create(CONFIG, 1), jnp.asarray(np.random.default_rng(0).normal(size=(4, 64, 64, 3)), jnp.float32)
    moments = jaxvit.calibrate(model, [(images, None)], CALIBRATED_SITES)
    entering = np.array(moments.mean["block_input"])
    np.testing.assert_allclose(entering[0, 1:5], model.register_tokens[...], atol=1e-7)
    entering[0, 1:5] = model.register_tokens[...]
    moments = dataclasses.replace(moments, mean={**moments.mean, "block_input": entering})
    at_output, at_input = (
        jaxvit.forward(model, images, ablation=conditions(CONFIG)[name](CONFIG, moments, 0)) for name in ("mean_registers", "fix_reg_mean")
    )
    np.testing.assert_array_equal(at_output.cls, at_input.cls)
    np.testing.assert_array_equal(at_output.patches, at_input.patches)
    assert np.abs(at_output.registers - at_input.registers).max() > 0.1


def test_a_model_without_registers_has_no_condition_on_them():
    without = conditions(dataclasses.replace(CONFIG, registers=0))
    assert list(without) == ["full", "zero_cls", "mean_cls", "random_patches"]


def test_the_names_of_all_conditions_are_those_of_a_model_with_four_registers():
    assert tuple(conditions(CONFIG)) == ALL_CONDITIONS
    assert ALL_CONDITIONS[0] == FULL
    assert set(REPLACEMENTS) <= set(ALL_CONDITIONS)
    assert set(ON_REQUEST) < set(ALL_CONDITIONS)
