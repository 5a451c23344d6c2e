"""jaxvit: ablations and read-outs of the tokens of vision transformers, in pure JAX. Arrays in, arrays out."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from jaxvit.ablation import Ablation, constant, cut, mean, noise, random_patches, shuffle, zero
from jaxvit.attribution import attribution
from jaxvit.calibration import calibrate
from jaxvit.checkpoint import load, save
from jaxvit.config import MODELS, ViTConfig
from jaxvit.extract import Extracted, extract
from jaxvit.forward import Output, Pair, contrast, forward, sweep_layers
from jaxvit.given import per_layer
from jaxvit.interventions import add, custom, patch, scale, swap
from jaxvit.lowering import lower, stack
from jaxvit.moments import Moments
from jaxvit.ops import Edits
from jaxvit.optimal import Optimal, optimal
from jaxvit.registers import with_registers
from jaxvit.resume import resume
from jaxvit.rollout import rollout
from jaxvit.specs import Positions
from jaxvit.tokens import TokenLayout
from jaxvit.vit import ViT, create, normalise

__version__ = "0.2.0"

Statistics = Moments
"""Alias of `Moments`: what `calibrate` returns and the argument `statistics` takes."""

__all__ = [
    "MODELS",
    "Ablation",
    "Edits",
    "Extracted",
    "Moments",
    "Optimal",
    "Output",
    "Pair",
    "Positions",
    "Statistics",
    "TokenLayout",
    "ViT",
    "ViTConfig",
    "add",
    "attribution",
    "calibrate",
    "constant",
    "contrast",
    "create",
    "custom",
    "cut",
    "extract",
    "forward",
    "load",
    "lower",
    "mean",
    "noise",
    "normalise",
    "optimal",
    "patch",
    "per_layer",
    "random_patches",
    "resume",
    "rollout",
    "save",
    "scale",
    "shuffle",
    "stack",
    "swap",
    "sweep_layers",
    "with_registers",
    "zero",
]

if not TYPE_CHECKING:  # which would then believe in every name

    def __getattr__(name: str) -> Any:
        """A module of the library that nothing has imported yet, such as `jaxvit.metrics`."""
        if name in _module_names():
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_module_names()})


def _module_names() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)}
