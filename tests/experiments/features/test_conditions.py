"""The conditions of the study: their names, and the tokens that rows say are overwritten."""

from __future__ import annotations

import dataclasses

import jaxvit
from experiments.features.conditions import conditions, lesions

CONFIG = jaxvit.ViTConfig(8, 24, 2, 3, 48, registers=4, position="antialias", image_size=64)


def test_every_condition_says_which_tokens_it_overwrites():
    tokens = {name: condition.tokens for name, condition in conditions(CONFIG).items()}
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
        "fix_reg_mean": "registers",
    }


def test_lesions_zero_the_registers_in_their_names():
    assert lesions(3) == {"zero_r1": range(0, 1), "zero_r2": range(1, 2), "zero_r3": range(2, 3), "zero_r1_to_r2": range(0, 2)}
    built = conditions(CONFIG)["zero_r1_to_r3"].build(None, 0)
    assert built == jaxvit.zero(["registers[0]", "registers[1]", "registers[2]"])


def test_a_model_without_registers_has_no_condition_on_them():
    without = conditions(dataclasses.replace(CONFIG, registers=0))
    assert list(without) == ["full", "zero_cls", "mean_cls", "random_patches"]
