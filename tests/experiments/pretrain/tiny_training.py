"""A training that takes seconds: four steps of a tiny model on four scenes each."""

from __future__ import annotations

from pathlib import Path

from experiments.pretrain.recipe import Pretraining, Recipe
from jaxvit.config import ViTConfig

TINY = ViTConfig(8, 16, 2, 2, 32, registers=1, position="antialias", image_size=64)


def tiny_training(out: Path) -> Pretraining:
    """Four steps with a checkpoint after every second; one size of views and one length, so one compile."""
    recipe = Recipe(batch=4, queue=8, warmup=1, small_views=0.0)
    return Pretraining(out, steps=4, recipe=recipe, checkpoint_every=2, evaluate_every=4, bank=20, queries=10)
