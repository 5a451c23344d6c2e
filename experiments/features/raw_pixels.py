"""The baseline without a model: pixels in the place of features."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from experiments.features.extraction import Features


def raw_pixels(images: UInt8[np.ndarray, "images height width 3"]) -> Features:
    """Features made of pixels alone: those averaged over 16 x 16 cells (fewer, where 16 does not divide a side) in the place of CLS, and
    as patches the pixels of squares of side 8, or 14, or single pixels where neither divides the image."""
    n, height, width, _ = images.shape
    side = next(s for s in (8, 14, 1) if height % s == 0 and width % s == 0)

    def cells(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
        return pixels.reshape(n, rows, height // rows, columns, width // columns, 3)

    pixels = images.astype(np.float32) / 255
    most = [max(count for count in range(1, 17) if length % count == 0) for length in (height, width)]
    small = cells(pixels, *most).mean(axis=(2, 4)).reshape(n, -1)
    patches = cells(pixels, height // side, width // side).swapaxes(2, 3).reshape(n, -1, side * side * 3)
    return Features(
        cls=small,
        registers=np.zeros((n, 0, small.shape[1]), np.float32),
        patch_mean=patches.mean(axis=1),
        patches=patches,
        patch_norms=np.linalg.norm(patches, axis=-1),
        block_cls=small[:, None],
        captured={},
    )
