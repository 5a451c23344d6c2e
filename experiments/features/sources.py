"""Conditions as a user gives them: an ablation, a function, the name of one of the study's own, or an expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.features.conditions import ALL_CONDITIONS, Condition
from experiments.features.expressions import inapplicable, parse_condition
from experiments.features.recipes import Sourced, made_up_moments
from experiments.plugins import source_hash
from jaxvit import Ablation, Moments, ViTConfig

ConditionSource = Ablation | Condition | str
"""A condition as a user gives it: an ablation, a function (config, moments, seed) -> ablation, or the text of either: the name of one of
the study's own, or an expression such as 'zero("cls") & mean("registers", layers="6-11")'."""


@dataclass(frozen=True)
class Given:
    """The condition that is an ablation, whatever the model and the seed."""

    ablation: Ablation

    def __call__(self, config: ViTConfig, moments: Moments, seed: int) -> Ablation:
        return self.ablation


def as_condition(name: str, source: ConditionSource, own: Mapping[str, Condition], mark: str = "") -> Condition | None:
    """The condition that a user gave under a name; None where it is one of the study's own that the model does not have.

    Args:
        own: the conditions of the model.
        mark: hash of the file that a function comes from; by default of its own source text.

    Raises:
        ValueError: a text that is neither a name nor an expression.
    """
    if isinstance(source, Ablation):
        return Given(source)
    if not isinstance(source, str):
        return Sourced(source, mark or source_hash(source))
    if source in ALL_CONDITIONS:
        return own.get(source)
    return parse_condition(f"{name}={source}").build


def refusal(condition: Condition, config: ViTConfig, image_size: tuple[int, int]) -> str:
    """Why a model cannot run a condition; "" if it can."""
    try:
        ablation = condition(config, made_up_moments(config, image_size), 0)
    except ValueError as error:
        return str(error)
    if not isinstance(ablation, Ablation):
        return f"it gives {type(ablation).__name__} and no jaxvit.Ablation"
    return inapplicable(ablation, config, image_size)
