"""The conditions of the study: the one place that names them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jaxvit
from jaxvit import Ablation, Statistics, ViTConfig

RANDOM_PATCHES = 4
SITES = ("block_output", "block_input")
"""Where statistics are needed: every overwrite is at the output of a block, but for `fix_reg_mean`."""
REPLACEMENTS = ("zero_registers", "mean_registers", "noise_registers", "shuffle_registers")


class Condition(NamedTuple):
    """How an ablation is made from the statistics of a model and a seed, and whether the seed matters."""

    build: Callable[[Statistics, int], Ablation]
    random: bool = False


def conditions(config: ViTConfig) -> dict[str, Condition]:
    """Conditions that a model can run, by name, "full" first. Tokens are overwritten at the output of every block, in
    `fix_reg_mean` at the input of every block (Sun et al. 2024)."""
    table = {
        "full": Condition(lambda statistics, seed: Ablation()),
        "zero_cls": Condition(lambda statistics, seed: jaxvit.zero("cls")),
        "mean_cls": Condition(lambda statistics, seed: jaxvit.mean("cls", statistics)),
        "random_patches": Condition(lambda statistics, seed: jaxvit.zero(jaxvit.random_patches(RANDOM_PATCHES, seed)), random=True),
    }
    if config.registers:
        table |= {
            "zero_registers": Condition(lambda statistics, seed: jaxvit.zero("registers")),
            **{name: Condition(functools.partial(_zero_some, registers)) for name, registers in lesions(config.registers).items()},
            "mean_registers": Condition(lambda statistics, seed: jaxvit.mean("registers", statistics)),
            "noise_registers": Condition(lambda statistics, seed: jaxvit.noise("registers", statistics, seed), random=True),
            "shuffle_registers": Condition(lambda statistics, seed: jaxvit.shuffle("registers", seed), random=True),
            "fix_reg_mean": Condition(lambda statistics, seed: jaxvit.mean("registers", statistics, at="block_input")),
        }
    return table


def lesions(registers: int) -> dict[str, range]:
    """Conditions that zero one register, or the first few: the cumulative lesion ends with `zero_registers`."""
    single = {f"zero_r{i + 1}": range(i, i + 1) for i in range(registers)}
    return single | {f"zero_r1_r{n}": range(n) for n in range(2, registers)}


def _zero_some(registers: range, statistics: Statistics, seed: int) -> Ablation:
    return jaxvit.zero([f"registers[{i}]" for i in registers])
