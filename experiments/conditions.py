"""The conditions of the study: the one place that names them."""

from __future__ import annotations

from collections.abc import Callable

import jaxvit
from jaxvit import Ablation, Statistics, ViTConfig

RANDOM_PATCHES = 4
Build = Callable[[Statistics, int], Ablation]
"""What makes an ablation from the statistics of the model and a seed."""


def conditions(config: ViTConfig) -> dict[str, Build]:
    """Conditions that a model can run, by name, "full" first. Tokens are overwritten at the output of every block."""
    table: dict[str, Build] = {
        "full": lambda statistics, seed: Ablation(),
        "zero_cls": lambda statistics, seed: jaxvit.zero("cls"),
        "mean_cls": lambda statistics, seed: jaxvit.mean("cls", statistics),
        "random_patches": lambda statistics, seed: jaxvit.zero(jaxvit.random_patches(RANDOM_PATCHES, seed)),
    }
    if config.registers:
        table |= {
            "zero_registers": lambda statistics, seed: jaxvit.zero("registers"),
            **{f"zero_r{i + 1}": _zero_one(i) for i in range(config.registers)},
            "mean_registers": lambda statistics, seed: jaxvit.mean("registers", statistics),
            "noise_registers": lambda statistics, seed: jaxvit.noise("registers", statistics, seed),
            "shuffle_registers": lambda statistics, seed: jaxvit.shuffle("registers", seed),
        }
    return table


def _zero_one(index: int) -> Build:
    return lambda statistics, seed: jaxvit.zero(f"registers[{index}]")
