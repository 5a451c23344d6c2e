"""Position embeddings: bicubic resizing of a learned table, exact to the originals, and axial rotary embeddings (RoPE)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvit.config import Position

ROPE_BASE = 100.0


def _keys_cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, eq. 4) with free parameter `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def resize_matrix(source: int, target: int, rule: Position) -> np.ndarray:
    """Weights, float64 [target, source], of one-dimensional bicubic resizing, those of `torch.nn.functional.interpolate`.

    "offset" and "plain": kernel parameter -0.75, borders clamped; "offset" samples with scale (target + 0.1) / source.
    "antialias": kernel parameter -0.5, widened when shrinking, borders renormalised (as in Pillow).
    """
    weights = np.zeros((target, source))
    if rule == "antialias":
        scale = source / target
        stretch = max(scale, 1.0)
        for i in range(target):
            centre = scale * (i + 0.5)
            low = max(int(centre - 2 * stretch + 0.5), 0)
            high = min(int(centre + 2 * stretch + 0.5), source)
            row = _keys_cubic((np.arange(low, high) + 0.5 - centre) / stretch, -0.5)
            weights[i, low:high] = row / row.sum()
        return weights
    scale = (target + 0.1) / source if rule == "offset" else target / source
    for i in range(target):
        coordinate = (i + 0.5) / scale - 0.5
        first = math.floor(coordinate) - 1
        for tap in range(first, first + 4):
            weights[i, min(max(tap, 0), source - 1)] += _keys_cubic(np.asarray(coordinate - tap), -0.75)
    return weights


def resize_table(table: Float[Array, "side side width"], grid: tuple[int, int], rule: Position) -> Float[Array, "patches width"]:
    """The position table resized to a grid of patches, row by row.

    As in the originals the table is used unchanged only where the grid is square and has as many patches as the table.
    """
    side, _, width = table.shape
    rows, columns = grid
    if not (rows == columns and rows * columns == side * side):
        exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        dtype = table.dtype
        down = jnp.asarray(resize_matrix(side, rows, rule), jnp.float32)
        across = jnp.asarray(resize_matrix(side, columns, rule), jnp.float32)
        table = exact("is,jt,std->ijd", down, across, table.astype(jnp.float32)).astype(dtype)
    return table.reshape(rows * columns, width)


def rope_periods(head_width: int) -> Float[np.ndarray, "quarter"]:
    """RoPE periods base^(2 i / (head_width / 2)) in float32: DINOv3's formula, for checkpoints that store none."""
    exponent = 2 * np.arange(head_width // 4, dtype=np.float32) / np.float32(head_width // 2)
    return np.float32(ROPE_BASE) ** exponent


def rope_angles(
    periods: Float[Array, "quarter"], grid: tuple[int, int]
) -> tuple[Float[Array, "patches head_width"], Float[Array, "patches head_width"]]:
    """Cosine and sine of the rotary angles 2 pi coordinate / period, float32.

    Coordinates are patch centres mapped to [-1, 1] on each axis; angles of the row come first, then those of the column, and
    both are repeated for the second half of a head (DINOv3, `RopePositionEmbedding`).
    """
    rows, columns = (2 * (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n) - 1 for n in grid)
    coordinates = jnp.asarray(np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2))
    angles = 2 * math.pi * coordinates[:, :, None] / periods.astype(jnp.float32)
    angles = jnp.tile(angles.reshape(angles.shape[0], -1), 2)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "*batch tokens heads head_width"],
    cosine: Float[Array, "patches head_width"],
    sine: Float[Array, "patches head_width"],
) -> Float[Array, "*batch tokens heads head_width"]:
    """Queries or keys with their last `patches` tokens rotated; the tokens before them (CLS, registers) are unchanged. Float32 inside."""
    prefix = x.shape[-3] - cosine.shape[0]
    patches = x[..., prefix:, :, :].astype(jnp.float32)
    first, second = jnp.split(patches, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    patches = patches * cosine[:, None] + turned * sine[:, None]
    return jnp.concatenate([x[..., :prefix, :, :], patches.astype(x.dtype)], axis=-3)
