"""Metrics as per-example contributions: top-1, instance Recall@1, correspondence, PCK, confusion matrices for mIoU.

Padded examples (`valid` False) contribute 0 to every sum. `jaxvit.statistics` turns contributions into values and intervals:
`mean_scores(top1(...), valid)`, `ratio_scores(matches.hits, matches.points)`, `Scores(confusion(...), mean_iou)`; `pck` says how its
averages come about.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Num, Shaped

from jaxvit.geometry import unit
from jaxvit.probes.knn import nearest

EXACT = jax.lax.Precision.HIGHEST
_ROUNDING = 1e-9  # relative; a distance this close to a threshold is on it


class Matches(NamedTuple):
    """Correspondence of pairs of views, counts [pairs]: source patches that count, hits among them, closed cycles among them."""

    hits: Float[Array, "*pairs"]
    cycles: Float[Array, "*pairs"]
    points: Float[Array, "*pairs"]


class Keypoints(NamedTuple):
    """Keypoints of pairs of images: hits among them at every alpha [pairs, alphas], and how many there are [pairs]; float64."""

    hits: Float[np.ndarray, "pairs alphas"]
    points: Float[np.ndarray, "pairs"]


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
    _check_grid(first.shape[1], grid)
    allowed = jnp.ones(first.shape[:2], bool) if mask is None else mask
    if valid is not None:
        allowed = allowed & valid[:, None]
    return jax.vmap(_match, in_axes=(0, 0, 0, 0, None, None, None))(first, second, warps, allowed, grid, patch_size, tolerance)


@functools.partial(jax.jit, static_argnames=("grid", "patch_size"))
def match_keypoints(
    source: Shaped[Array, "pairs patches width"],
    target: Shaped[Array, "pairs patches width"],
    points: Num[Array, "pairs keypoints 2"],
    grid: tuple[int, int],
    patch_size: int,
) -> Float[Array, "pairs keypoints 2"]:
    """Where each keypoint of a source image is found in the target image: the centre of the patch most like it (cosine).

    The feature at a keypoint is interpolated bilinearly between the centres of the four source patches around it; nearer to the
    border than the outermost centres, those are taken. Of equally near target patches the first, row by row, is found.

    Args:
        source, target: patch features, `grid` = (rows, columns) of them, row by row.
        points: (x, y) in pixels of the source image as the model saw it, pixel centres at integer + 0.5; what is found for padding
            means nothing.
        patch_size: pixels of a patch's side.

    Returns:
        (x, y) in pixels of the target image as the model saw it.

    Raises:
        ValueError: the features do not have rows x columns patches.
    """
    _check_grid(source.shape[1], grid)
    _check_grid(target.shape[1], grid)
    centres = _centres(grid, patch_size)

    def one(pair: tuple[Array, Array, Array]) -> Array:
        first, second, places = pair
        limits = np.asarray([grid[1] - 1, grid[0] - 1], np.float32)
        cell = jnp.clip(places.astype(jnp.float32) / patch_size - 0.5, 0, limits)  # (column, row) between patch centres
        # hat functions: at most two rows and two columns have weight
        columns, rows = (jnp.maximum(0, 1 - jnp.abs(cell[:, i, None] - jnp.arange(grid[1 - i]))) for i in (0, 1))
        weights = (rows[:, :, None] * columns[:, None, :]).reshape(len(places), -1)
        features = jnp.matmul(weights, first.astype(jnp.float32), precision=EXACT)
        similarity = jnp.matmul(unit(features), unit(second).T, precision=EXACT)
        return centres[jnp.argmax(similarity, axis=1)]

    return jax.lax.map(one, (source, target, points))


def pck(
    predicted: Num[np.ndarray, "pairs keypoints 2"] | Num[Array, "pairs keypoints 2"],
    true: Num[np.ndarray, "pairs keypoints 2"] | Num[Array, "pairs keypoints 2"],
    valid: Bool[np.ndarray, "pairs keypoints"] | Bool[Array, "pairs keypoints"],
    length: Num[np.ndarray, "pairs"] | Num[Array, "pairs"],
    alphas: Sequence[float],
    scale: Num[np.ndarray, "pairs 2"] | Num[Array, "pairs 2"] | None = None,
) -> Keypoints:
    """Percentage of correct keypoints (Yang & Ramanan 2013), as contributions of pairs; float64 on the host.

    A keypoint is a hit if the predicted place lies within alpha * `length` of the true one (Euclidean, border included). SPair-71k
    (Min et al. 2019, arXiv 1908.10543, section 4) takes the longer side of the target's bounding box for `length`; with the longer
    side of the target image the same alpha is far more lenient, so that which one it is belongs to the number. The averages:

    - per point: hits summed over all pairs / points summed over all pairs, `ratio_scores(hits[:, a], points)`;
    - per image (which is to say, per pair): mean over pairs of hits / points, `mean_scores(hits[:, a] / points)`; what the authors'
      evaluation (HPF, Min et al. 2019) prints;
    - per category: either of them over the pairs of a category, and the mean of those over categories.

    Args:
        predicted, true: (x, y) in pixels of the target image, both in the same.
        valid: keypoints that are no padding; the others are neither hits nor points.
        length: in pixels of the target image, times `scale` where there is one.
        alphas: thresholds as shares of `length`.
        scale: factors that turn x and y of `predicted` and `true` into the pixels that `length` is measured in (original width over
            resized width, original height over resized height): a circle around a keypoint of the original is an ellipse in an
            image that was stretched.

    Raises:
        ValueError: a length that is not positive, or shapes that do not belong together.
    """
    predicted, true, length = (np.asarray(a, np.float64) for a in (predicted, true, length))
    shown = np.asarray(valid, bool)
    if predicted.shape != true.shape or shown.shape != true.shape[:2] or length.shape != true.shape[:1]:
        shapes = f"predicted {predicted.shape}, true {true.shape}, valid {shown.shape}, length {length.shape}"
        raise ValueError(f"{shapes} do not belong together; they are [pairs, keypoints, 2] twice, [pairs, keypoints] and [pairs]")
    if not (length > 0).all():
        raise ValueError(f"the length of pair {int(np.argmin(length > 0))} is {length[np.argmin(length > 0)]}; lengths are positive pixels")
    offsets = predicted - true
    if scale is not None:
        offsets = offsets * np.asarray(scale, np.float64)[:, None]
    distances = np.hypot(offsets[..., 0], offsets[..., 1])
    within = distances[..., None] <= (np.asarray(alphas, np.float64) * length[:, None] * (1 + _ROUNDING))[:, None]
    return Keypoints((within & shown[..., None]).sum(axis=1, dtype=np.float64), shown.sum(axis=1, dtype=np.float64))


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
    centres = _centres(grid, patch_size)
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


def _check_grid(patches: int, grid: tuple[int, int]) -> None:
    if patches != grid[0] * grid[1]:
        raise ValueError(f"features have {patches} patches, a grid of {grid[0]} x {grid[1]} has {grid[0] * grid[1]}")


def _centres(grid: tuple[int, int], patch_size: int) -> Float[Array, "patches 2"]:
    """(x, y) of the centres of a grid's patches, row by row."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return jnp.asarray((np.stack([columns, rows], axis=-1) + 0.5) * patch_size, jnp.float32)


def _counted(hit: Bool[Array, "examples"], valid: Bool[Array, "examples"] | None) -> Float[Array, "examples"]:
    return (hit if valid is None else hit & valid).astype(jnp.float32)
