"""The bundled demo models: their shapes, and what a reader must know about each wherever it appears."""

from __future__ import annotations

from experiments import scenes
from jaxvit.config import ViTConfig

CONFIGS = {
    name: ViTConfig(8, 96, 6, 3, 384, registers=registers, position="antialias", image_size=scenes.SIZE)
    for name, registers in (("demo_reg", 4), ("demo", 0), ("demo_reg_read", 4))
}
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
