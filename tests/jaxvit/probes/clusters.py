"""Features in overlapping clusters, and how scikit-learn standardises them, for tests of probes."""

from __future__ import annotations

import numpy as np

CLASSES = 4


def clusters(rows: int = 200, width: int = 12, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features with channels of very different mean and scale, one constant and one massive."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, rows)
    features = (centres[labels] + noise * generator.normal(size=(rows, width))) * np.geomspace(0.1, 10, width)
    features[:, 3] = 3.1415926
    features[:, 5] -= 93
    return features.astype(np.float32), labels


def standardised(features: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    x = features.astype(np.float64)
    mean = np.average(x, axis=0, weights=weights)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    return (x - mean) / np.where(scale > 1e-9, scale, 1)
