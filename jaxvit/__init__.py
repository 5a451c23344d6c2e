"""jaxvit: find out what the tokens of a vision transformer do, in pure JAX. Arrays in, arrays out."""

from jaxvit.ablation import Ablation, constant, mean, noise, random_patches, shuffle, zero
from jaxvit.calibration import Statistics, calibrate
from jaxvit.checkpoint import load, save
from jaxvit.config import MODELS, ViTConfig
from jaxvit.edits import Edits, lower, stack
from jaxvit.forward import Output, Pair, contrast, forward
from jaxvit.tokens import TokenLayout
from jaxvit.vit import ViT, create, normalise

__all__ = [
    "MODELS",
    "Ablation",
    "Edits",
    "Output",
    "Pair",
    "Statistics",
    "TokenLayout",
    "ViT",
    "ViTConfig",
    "calibrate",
    "constant",
    "contrast",
    "create",
    "forward",
    "load",
    "lower",
    "mean",
    "noise",
    "normalise",
    "random_patches",
    "save",
    "shuffle",
    "stack",
    "zero",
]
