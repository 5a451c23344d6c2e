"""The bundled demo models: their shapes, and what a reader must know about each wherever it appears."""

from __future__ import annotations

from jaxvit.config import ViTConfig


def _config(registers: int) -> ViTConfig:
    """The shape of a demo model; its images are the 64-pixel digit scenes."""
    return ViTConfig(patch_size=8, width=96, depth=6, heads=3, mlp_dim=384, registers=registers, position="antialias", image_size=64)


CONFIGS = {"demo_reg": _config(4), "demo": _config(0), "demo_reg_read": _config(4)}
NOTES = {
    "demo_reg": "Four registers, trained like its twin demo. Nothing in its training asks for the registers to be read.",
    "demo": "No registers; the same recipe and number of steps as demo_reg.",
    "demo_reg_read": "Positive control. demo_reg trained further while CLS and patches saw the patches of another scene in the place of "
    "their own, a random share of them hidden, and only the registers saw their own: that its registers are read, and that replacing "
    "them costs, is INDUCED by this and is no finding.",
}
INDUCED = ("demo_reg_read",)


def label(model: str) -> str:
    """The name of a model as pages and tables show it."""
    return f"{model} (induced)" if model in INDUCED else model


def twin_of(config: ViTConfig) -> str | None:
    """The first demo model with this shape, after which random initialisations of it are named; None for other shapes."""
    return next((name for name, known in CONFIGS.items() if known == config), None)
