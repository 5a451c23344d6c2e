"""Metrics as per-example contributions: top-1, instance Recall@1, correspondence, confusion matrices for mIoU.

Padded examples (`valid` False) contribute 0 to every sum. `jaxvit.statistics` turns contributions into values and intervals:
`mean_scores(top1(...), valid)`, `ratio_scores(matches.hits, matches.points)`, `Scores(confusion(...), mean_iou)`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Num, Shaped

from jaxvit.geometry import unit
from jaxvit.probes.knn import nearest

EXACT = jax.lax.Precision.HIGHEST


class Matches(NamedTuple):
    """Correspondence of pairs of views, counts [pairs]: source patches that count, hits among them, closed cycles among them."""

    hits: Float[Array, "*pairs"]
    cycles: Float[Array, "*pairs"]
    points: Float[Array, "*pairs"]


def top1(
    scores: Shaped[Array, "examples classes"], labels: Int[Array, "examples"], valid: Bool[Array, "examples"] | None = None
) -> Float[Array, "examples"]:
    """1 where the class with the highest score (the lowest class among equals) is the label, else 0."""
    return _counted(jnp.argmax(scores, axis=-1) == labels, valid)


def recall_at_1(
    first: Shaped[Array, "examples width"], second: Shaped[Array, "examples width"], valid: Bool[Array, "examples"] | None = None
) -> Float[Array, "examples"]:
    """Instance retrieval: 1 where, of all valid second views, that of the same example is nearest by cosine, else 0.

    Of equally near views the one with the lowest index is retrieved: constant features score 1 / examples.
    """
    _, index = nearest(first, second, 1, valid)
    return _counted(index[:, 0] == jnp.arange(len(first)), valid)


@functools.partial(jax.jit, static_argnames=("grid", "patch_size"))
def correspondence(
    first: Shaped[Array, "pairs patches width"],
    second: Shaped[Array, "pairs patches width"],
    warps: Float[Array, "pairs 2 3"],
    grid: tuple[int, int],
    patch_size: int,
    tolerance: float | Float[Array, ""] = 1.0,
    mask: Bool[Array, "pairs patches"] | None = None,
    valid: Bool[Array, "pairs"] | None = None,
) -> Matches:
    """Matching of patches between two views whose true correspondence is a known affine map.

    A warp maps pixel coordinates (x, y, 1) of the first view to (x, y) of the second; x runs along columns, y along rows,
    and pixel centres lie at integer + 0.5. Both views have `grid` = (rows, columns) patches, row by row.

    - A source patch counts (a point) if its centre maps inside the second view: 0 <= x < width, 0 <= y < height.
    - It is a hit if the centre of its nearest neighbour (cosine, over all patches of the second view) lies within
      `tolerance` patch sides (Euclidean, border included) of the true location.
    - Its cycle closes if the nearest neighbour in the first view of its nearest neighbour in the second has its centre
      within `tolerance` patch sides of its own. This needs no warp, but is counted over the same points: a patch without a
      counterpart has nothing to return from.

    Args:
        tolerance: in patch sides.
        mask: source patches that may count (foreground, say); all by default.
        valid: pairs that are no padding; the others get 0 points.

    Raises:
        ValueError: the features do not have rows x columns patches.
    """
    if first.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"features have {first.shape[1]} patches, a grid of {grid[0]} x {grid[1]} has {grid[0] * grid[1]}")
    allowed = jnp.ones(first.shape[:2], bool) if mask is None else mask
    if valid is not None:
        allowed = allowed & valid[:, None]
    return jax.vmap(_match, in_axes=(0, 0, 0, 0, None, None, None))(first, second, warps, allowed, grid, patch_size, tolerance)


def _match(
    first: Shaped[Array, "patches width"],
    second: Shaped[Array, "patches width"],
    warp: Float[Array, "2 3"],
    allowed: Bool[Array, "patches"],
    grid: tuple[int, int],
    patch_size: int,
    tolerance: float | Float[Array, ""],
) -> Matches:
    """`correspondence` of one pair."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    centres = jnp.asarray((np.stack([columns, rows], axis=-1) + 0.5) * patch_size, jnp.float32)
    true = jnp.matmul(centres, warp[:, :2].T, precision=EXACT) + warp[:, 2]
    inside = jnp.all((true >= 0) & (true < jnp.asarray([grid[1], grid[0]]) * patch_size), axis=-1)
    points = inside & allowed

    similarity = jnp.matmul(unit(first), unit(second).T, precision=EXACT)
    forth, back = jnp.argmax(similarity, axis=1), jnp.argmax(similarity, axis=0)

    def near(found: Float[Array, "patches 2"], wanted: Float[Array, "patches 2"]) -> Bool[Array, "patches"]:
        return jnp.sum((found - wanted) ** 2, axis=-1) <= (tolerance * patch_size) ** 2

    hits, cycles = near(centres[forth], true), near(centres[back[forth]], centres)
    return Matches(*(jnp.sum(flags & points, dtype=jnp.float32) for flags in (hits, cycles, points)))


@functools.partial(jax.jit, static_argnames="classes")
def confusion(
    predicted: Integer[Array, "images height width"],
    target: Integer[Array, "images height width"],
    classes: int,
    ignore: int = 255,
    valid: Bool[Array, "images"] | None = None,
) -> Int[Array, "images classes classes"]:
    """Pixel counts of each image by target class (rows) and predicted class (columns), int32.

    Pixels whose target is `ignore` are not counted; all other targets and all predictions must lie in 0 .. classes - 1.
    """
    counted = target != ignore
    if valid is not None:
        counted = counted & valid[:, None, None]
    # Past the last cell, where the sum drops it.
    cell = jnp.where(counted, target.astype(jnp.int32) * classes + predicted.astype(jnp.int32), classes**2)
    count = jax.vmap(lambda cells: jnp.zeros(classes**2, jnp.int32).at[cells].add(1, mode="drop"))
    return count(cell.reshape(len(cell), -1)).reshape(-1, classes, classes)


def mean_iou(confusion: Num[np.ndarray, "*batch classes classes"]) -> Float[np.ndarray, "*batch"]:
    """Mean over classes of intersection / union, from summed confusion matrices; float64 on the host.

    The mean is over the classes present: those in the targets or in the predictions. NaN where there is none.
    """
    confusion = np.asarray(confusion, np.float64)
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(axis=-1) + confusion.sum(axis=-2) - intersection
    present = union > 0
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=present)
    classes = present.sum(axis=-1, dtype=np.float64)
    return np.divide(iou.sum(axis=-1), classes, out=np.full_like(classes, np.nan), where=classes > 0)


def _counted(hit: Bool[Array, "examples"], valid: Bool[Array, "examples"] | None) -> Float[Array, "examples"]:
    return (hit if valid is None else hit & valid).astype(jnp.float32)
