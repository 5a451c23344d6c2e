"""Hand-made features and contexts that the tests of all tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from experiments.features.extraction import Features
from experiments.tasks.base import Context, Readouts
from experiments.tasks.tokens import PARTS
from jaxvit.sharding import batch_mesh


def make_features(images: int = 5, registers: int = 2, patches: int = 16, width: int = 8, seed: int = 0) -> Features:
    def draw(*shape: int) -> np.ndarray:
        return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)

    tokens = draw(images, patches, width)
    norms = 100 + 40 * draw(images, patches)
    return Features(draw(images, width), draw(images, registers, width), tokens.mean(1), tokens, norms, draw(images, 4, width), {})


def make_context(**data: object) -> Context:
    return Context(SimpleNamespace(**data), Readouts(), (0, 1), batch_mesh(), (0, 1, 2))


class FeaturesByPart(dict):
    """Features of parts by name, as a `FeatureSource`, of a condition that overwrites the given patches (by default none)."""

    marks: Mapping[str, np.ndarray] = {}
    full: FeaturesByPart

    def overwritten(self, part: str) -> np.ndarray | None:
        return self.marks.get(part)

    def first_test(self, count: int) -> Features:
        arrays = {name: array[:count] for name, array in self["test"]._asdict().items() if name != "captured"}
        return Features(**arrays, captured={})


def make_classes(images: int = 12, **readouts: Any) -> tuple[FeaturesByPart, Context]:
    """Features of train, val and test whose images are of two classes in turn, and the context of tasks on classes."""
    labels = {part: np.arange(images) % 2 for part in PARTS}
    context = make_context(labels=labels, classes=("a", "b"), protocols={"labels": "resized"})
    parts = {part: make_features(images=images, seed=i) for i, part in enumerate(PARTS)}
    return FeaturesByPart(parts), context._replace(readouts=Readouts(**readouts))
