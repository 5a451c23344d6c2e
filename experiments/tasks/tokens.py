"""Features of images that read-outs take: tokens by name, alone or joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.datasets.base import StudyData
from experiments.features.extraction import Features
from experiments.tasks.base import FEATURES, Feature

PARTS = ("train", "val", "test")
"""Parts of the data with class labels: read-outs are fitted on the first, regularised by the second, reported on the third."""


def labelled_parts(data: StudyData) -> Sequence[str]:
    """The parts that tasks on classes read."""
    return PARTS


def has_labels(data: StudyData) -> bool:
    """Whether images have classes."""
    return bool(data.labels)


def token_features(part: Features, names: Sequence[Feature] = FEATURES) -> dict[str, np.ndarray]:
    """Features [images, width] that probes read, by name, as far as the model has them: "registers" stands for "r1", "r2", ..., each
    one alone; names joined by "+" are concatenated."""
    return select_tokens(part._asdict(), names)


def select_tokens(tokens: Mapping[str, np.ndarray], names: Sequence[Feature]) -> dict[str, np.ndarray]:
    """`token_features` of "cls" and "patch_mean" [images, width] and "registers" [images, registers, width]."""
    registers = tokens["registers"]

    def token(name: str) -> np.ndarray:
        if name == "register_mean":
            return registers.mean(axis=1)
        return registers.reshape(len(registers), -1) if name == "registers" else tokens[name]

    features: dict[str, np.ndarray] = {}
    for name in names:
        if name == "registers":
            features |= {f"r{i + 1}": registers[:, i] for i in range(registers.shape[1])}
        elif "register" not in name or registers.shape[1]:
            joined = [token(single) for single in name.split("+")]
            features[name] = joined[0] if len(joined) == 1 else np.concatenate(joined, axis=1)
    return features


def fitting(name: str, counts: Sequence[int], available: int, where: str) -> tuple[tuple[int, ...], str]:
    """The numbers of images that there are, and a flag that names the others: no number is left out in silence.

    Where none is, what there is stands for all of them.

    Args:
        name: what is counted, "shots" say.
        where: the images that are counted, in words.
    """
    possible = tuple(count for count in counts if count <= available)
    missing = ", ".join(str(count) for count in counts if count > available)
    if not missing:
        return possible, ""
    left_out = f"{name} {missing} left out: {where} has {available} images"
    return (possible, left_out) if possible else ((available,), f"{left_out}, all of which are used")
