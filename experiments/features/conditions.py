"""The conditions of the study: the one place that names them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jaxvit
from jaxvit import Ablation, Moments, ViTConfig

RANDOM_PATCHES = 4
"""Patches that the condition "random_patches" zeroes in every image."""
CALIBRATED_SITES = ("block_output", "block_input")
"""Where moments of activations are needed: all conditions overwrite the output of a block, but `fix_reg_mean` its input."""
REPLACEMENTS = ("zero_registers", "mean_registers", "noise_registers", "shuffle_registers")
"""Conditions that overwrite all registers at every block output, each with something else."""


class Condition(NamedTuple):
    """An intervention on tokens.

    Attributes:
        build: makes the ablation from the moments of a model's activations and a seed.
        tokens: which tokens are overwritten, for rows and people; "" for none.
        random: the seed matters.
    """

    build: Callable[[Moments, int], Ablation]
    tokens: str
    random: bool = False


def conditions(config: ViTConfig) -> dict[str, Condition]:
    """Conditions that a model can run, by name, "full" (no ablation) first. Tokens are overwritten at the output of every block, in
    `fix_reg_mean` at the input of every block (Sun et al. 2024)."""
    table = {
        "full": Condition(lambda statistics, seed: Ablation(), ""),
        "zero_cls": Condition(lambda statistics, seed: jaxvit.zero("cls"), "cls"),
        "mean_cls": Condition(lambda statistics, seed: jaxvit.mean("cls", statistics), "cls"),
        "random_patches": Condition(
            lambda statistics, seed: jaxvit.zero(jaxvit.random_patches(RANDOM_PATCHES, seed)), "random patches", random=True
        ),
    }
    if config.registers:
        table |= {
            "zero_registers": Condition(lambda statistics, seed: jaxvit.zero("registers"), "registers"),
            **{name: _lesion(registers) for name, registers in lesions(config.registers).items()},
            "mean_registers": Condition(lambda statistics, seed: jaxvit.mean("registers", statistics), "registers"),
            "noise_registers": Condition(lambda statistics, seed: jaxvit.noise("registers", statistics, seed), "registers", random=True),
            "shuffle_registers": Condition(lambda statistics, seed: jaxvit.shuffle("registers", seed), "registers", random=True),
            "fix_reg_mean": Condition(lambda statistics, seed: jaxvit.mean("registers", statistics, at="block_input"), "registers"),
        }
    return table


def lesions(registers: int) -> dict[str, range]:
    """Conditions that zero one register or the first few, with the positions of these registers; all of them is `zero_registers`."""
    single = {f"zero_r{i + 1}": range(i, i + 1) for i in range(registers)}
    return single | {f"zero_r1_to_r{n}": range(n) for n in range(2, registers)}


def _lesion(registers: range) -> Condition:
    tokens = f"r{registers.start + 1}" if len(registers) == 1 else f"r{registers.start + 1} to r{registers.stop}"
    return Condition(functools.partial(_zero_registers, registers), tokens)


def _zero_registers(registers: range, statistics: Moments, seed: int) -> Ablation:
    return jaxvit.zero([f"registers[{i}]" for i in registers])
