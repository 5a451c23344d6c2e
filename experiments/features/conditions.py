"""The conditions of the study: the one place that names them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jaxvit
from jaxvit import Ablation, Moments, ViTConfig

Condition = Callable[[ViTConfig, Moments, int], Ablation]
"""An intervention on tokens: from the shape of a model, the moments of its activations and a seed to an ablation."""
RANDOM_PATCHES = 4
"""Patches that the condition "random_patches" zeroes in every image of a model without registers; elsewhere as many as registers."""
CALIBRATED_SITES = ("block_output", "block_input")
"""Where moments of activations are measured: all conditions overwrite the output of a block, but `fix_reg_mean` its input."""
REPLACEMENTS = (
    "zero_registers",
    "mean_registers",
    "noise_registers",
    "shuffle_registers",
    "shuffle_registers_whole",
    "optimal_registers",
)
"""Conditions that overwrite all registers at every block output, each with something else."""
OPTIMAL_IMAGES, OPTIMAL_PASSES = 64, 10
"""Leading train images that an optimal constant is fitted on, and how often they are gone through."""
FULL = "full"
"""The condition without ablation."""
ON_REQUEST = ("fix_reg_mean", "cut_registers", "cut_registers_lost")
"""Conditions that are run only where they are named: for CLS and patches `fix_reg_mean` is `mean_registers`, the same intervention; the
cuts overwrite no token."""


@dataclass(frozen=True)
class Optimal:
    """The constant that costs least in the place of tokens (`jaxvit.optimal`). It is fitted to train images; until then, where only its
    shape counts, the mean stands for it.

    Attributes:
        tokens: that are replaced at the output of every block.
    """

    tokens: str

    @property
    def definition(self) -> str:
        """How it is fitted."""
        loss = "squared change of CLS and patches after the final norm"
        return f"optimal(images={OPTIMAL_IMAGES} leading of train, passes={OPTIMAL_PASSES}, loss={loss}, start=mean and zero)"

    def __call__(self, config: ViTConfig, moments: Moments, seed: int) -> Ablation:
        return jaxvit.mean(self.tokens, moments)


def conditions(config: ViTConfig) -> dict[str, Condition]:
    """Conditions that a model can run, by name, "full" (no ablation) first. Tokens are overwritten at the output of every block, in
    `fix_reg_mean` at the input of every block (Sun et al. 2024). In `cut_registers` CLS and patches do not read registers in any block;
    their attention to other tokens grows to a sum of 1 again, in `cut_registers_lost` it stays as it is.

    What enters block 0 as registers is the same for all images, and every other block's input is the output before it: for all tokens but
    the registers that leave the last block, `fix_reg_mean` and `mean_registers` are one intervention."""
    table: dict[str, Condition] = {
        FULL: no_ablation,
        "zero_cls": lambda config, moments, seed: jaxvit.zero("cls"),
        "mean_cls": lambda config, moments, seed: jaxvit.mean("cls", moments),
        "random_patches": lambda config, moments, seed: jaxvit.zero(jaxvit.random_patches(random_patch_count(config), seed)),
    }
    if config.registers:
        table |= {
            "zero_registers": lambda config, moments, seed: jaxvit.zero("registers"),
            **{name: functools.partial(_zero_registers, registers) for name, registers in lesions(config.registers).items()},
            "mean_registers": lambda config, moments, seed: jaxvit.mean("registers", moments),
            "noise_registers": lambda config, moments, seed: jaxvit.noise("registers", moments, seed),
            "shuffle_registers": lambda config, moments, seed: jaxvit.shuffle("registers", seed),
            "shuffle_registers_whole": lambda config, moments, seed: jaxvit.shuffle("registers", seed, same_donor=True),
            "optimal_registers": Optimal("registers"),
            "fix_reg_mean": lambda config, moments, seed: jaxvit.mean("registers", moments, at="block_input"),
            "cut_registers": lambda config, moments, seed: jaxvit.cut(["cls", "patches"], "registers"),
            "cut_registers_lost": lambda config, moments, seed: jaxvit.cut(["cls", "patches"], "registers", mass="lost"),
        }
    return table


def overwriting(config: ViTConfig) -> dict[str, Condition]:
    """The conditions that overwrite tokens without being fitted, and "full": those that a hook on a module of PyTorch can run."""
    return {name: condition for name, condition in conditions(config).items() if not name.startswith(("cut", "optimal"))}


def no_ablation(config: ViTConfig, moments: Moments, seed: int) -> Ablation:
    """The condition "full"."""
    return Ablation()


def random_patch_count(config: ViTConfig) -> int:
    """Number of patches that the condition "random_patches" zeroes in every image: as many as the model has registers."""
    return config.registers or RANDOM_PATCHES


def lesions(registers: int) -> dict[str, range]:
    """Conditions that zero one register or the first few, with the positions of these registers; all of them is `zero_registers`."""
    single = {f"zero_r{i + 1}": range(i, i + 1) for i in range(registers if registers > 1 else 0)}
    return single | {f"zero_r1_to_r{n}": range(n) for n in range(2, registers)}


def _zero_registers(registers: range, config: ViTConfig, moments: Moments, seed: int) -> Ablation:
    return jaxvit.zero([f"registers[{i}]" for i in registers])


ALL_CONDITIONS = tuple(conditions(ViTConfig(patch_size=8, width=4, depth=1, heads=1, mlp_dim=4, registers=4, image_size=8)))
"""Names of all conditions, as a model with four registers has them."""
