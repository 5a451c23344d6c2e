"""Metrics as per-example contributions: top-1, instance Recall@1, correspondence, PCK, confusion matrices for mIoU.

Padded examples (`valid` False) contribute 0 to every sum. `jaxvit.inference` turns contributions into values and intervals:
`mean_scores(top1(...), valid)`, `ratio_scores(matches.hits, matches.points)`, `Scores(confusion(...), mean_iou)`; for PCK see `pck`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Num, Shaped

from jaxvit import checks
from jaxvit.geometry import unit
from jaxvit.neighbours import nearest

_EXACT = jax.lax.Precision.HIGHEST
_ROUNDING = 1e-9  # relative; a distance that exceeds a threshold by less counts as equal to it


class Matches(NamedTuple):
    """Correspondence of pairs of views, as counts [pairs].

    Attributes:
        hits: source patches matched to the right place.
        cycles: source patches whose match is matched back to them.
        points: source patches that are counted.
    """

    hits: Float[Array, "*pairs"]
    cycles: Float[Array, "*pairs"]
    points: Float[Array, "*pairs"]


class KeypointHits(NamedTuple):
    """Keypoint matches of pairs of images, as counts, float64.

    Attributes:
        hits: [pairs, alphas] keypoints matched to the right place, at every threshold.
        points: [pairs] keypoints.
    """

    hits: Float[np.ndarray, "pairs alphas"]
    points: Float[np.ndarray, "pairs"]


def _check_classified(scores: Any, labels: Any, valid: Any) -> None:
    checks.check_array("scores", scores, "examples classes")
    if scores.shape[1] < 2:
        raise ValueError("scores are of one class, for which every answer is right; give a column for each of at least 2 classes")
    checks.check_labelled("scores", scores, "labels", labels, scores.shape[-1], "examples classes", valid, fetch=False)


@checks.check_first(_check_classified)
@jax.jit
def top1(
    scores: Shaped[Array, "examples classes"], labels: Int[Array, "examples"], valid: Bool[Array, "examples"] | None = None
) -> Float[Array, "examples"]:
    """1 where the class with the highest score is the label, else 0; of equal scores the lowest class counts.

    Raises:
        ValueError: scores are not [examples, classes] or hold NaN, or labels are no integers, not of these examples or no classes.
    """
    return _scores(jnp.argmax(scores, axis=-1) == labels, valid)


def _check_views(first: Any, second: Any, valid: Any) -> None:
    checks.check_features("first", first, "examples width", valid=valid, fetch=False)
    checks.check_features("second", second, "examples width", valid=valid, fetch=False)
    checks.check_same_rows("second", second, "first", first)
    checks.check_width("second", second, "first", first)
    if len(first) < 2:
        raise ValueError("one example, whose second view is always found; give at least 2")


@checks.check_first(_check_views)
@jax.jit
def recall_at_1(
    first: Shaped[Array, "examples width"], second: Shaped[Array, "examples width"], valid: Bool[Array, "examples"] | None = None
) -> Float[Array, "examples"]:
    """Instance retrieval: 1 where the nearest (by cosine) of all valid second views is that of the same example, else 0.

    Of equally near views the one with the lowest index is retrieved: constant features score 1 / examples.

    Raises:
        ValueError: the views are not [examples, width] of the same examples and width, hold NaN, or are of one example.
    """
    _, index = nearest(first, second, 1, valid)
    return _scores(index[:, 0] == jnp.arange(len(first)), valid)


def _check_patches(names: tuple[str, str], first: Any, second: Any, grid: tuple[int, int], patch_size: int, valid: Any = None) -> None:
    for name, patches in zip(names, (first, second), strict=True):
        checks.check_features(name, patches, "pairs patches width", valid=valid, fetch=False)
        _check_grid(patches.shape[1], grid)
    checks.check_same_rows(names[1], second, names[0], first)
    checks.check_width(names[1], second, names[0], first)
    checks.check_counts(patch_size=patch_size)


def _check_warped(
    first: Any, second: Any, warps: Any, grid: tuple[int, int], patch_size: int, tolerance: Any, mask: Any, valid: Any
) -> None:
    _check_patches(("first", "second"), first, second, grid, patch_size, valid)
    checks.check_features("warps", warps, "pairs 2 3", valid=valid, fetch=False)
    checks.check_same_rows("warps", warps, "first", first)
    if not isinstance(tolerance, jax.core.Tracer) and not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance is {tolerance}; give patch sides, at least 0")
    for name, array, shape in (("warps", warps[0], (2, 3)), ("mask", mask, first.shape[:2])):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} have the shape {array.shape}, not {shape}; give one for each pair")


@checks.check_first(_check_warped)
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
    usable: tuple[Bool[Array, "pairs patches"], Bool[Array, "pairs patches"]] | None = None,
) -> Matches:
    """Hits and closed cycles of matching patches between two views whose true correspondence is a known affine map.

    A warp maps pixel coordinates (x, y, 1) of the first view to (x, y) of the second; x runs along columns, y along rows,
    and pixel centres lie at integer + 0.5. Both views have `grid` = (rows, columns) patches, row by row.

    - A source patch is counted (a point) if its centre maps inside the second view: 0 <= x < width, 0 <= y < height.
    - It is a hit if the centre of its nearest neighbour (cosine, over all patches of the second view) lies within
      `tolerance` patch sides (Euclidean, border included) of the true location.
    - Its cycle is closed if the nearest neighbour, in the first view, of its nearest neighbour in the second view has its centre
      within `tolerance` patch sides of its own centre. This needs no warp, but is counted over the same points, because a patch
      outside the second view has no counterpart to return from.

    Args:
        tolerance: in patch sides.
        mask: source patches that may be counted (foreground, say); all by default.
        valid: pairs that are not padding; the others have 0 points.
        usable: patches of the first and of the second view that take part at all; by default all do. Others are no points, nearest
            neighbours of none, and a point whose true location lies in one is not counted.

    Raises:
        ValueError: the features do not have rows x columns patches, or hold NaN; views, warps and mask are not of the same pairs.
    """
    allowed = jnp.ones(first.shape[:2], bool) if mask is None else mask
    if valid is not None:
        allowed = allowed & valid[:, None]
    match_pair = functools.partial(_match, grid=grid, patch_size=patch_size, tolerance=tolerance)
    matches: Matches = jax.vmap(match_pair)(first, second, warps, allowed, usable=usable)
    return matches


def patch_at(
    points: Num[np.ndarray, "*points 2"] | Num[Array, "*points 2"], grid: tuple[int, int], patch_size: int
) -> Int[Array, "*points"]:
    """The patch, row by row, in which each point (x, y) in pixels lies; for a point outside of the image the one next to it."""
    column, row = (jnp.clip(jnp.floor(jnp.asarray(points)[..., i] / patch_size).astype(jnp.int32), 0, grid[1 - i] - 1) for i in (0, 1))
    return row * grid[1] + column


def _check_keypoints(source: Any, target: Any, points: Any, grid: tuple[int, int], patch_size: int) -> None:
    _check_patches(("source", "target"), source, target, grid, patch_size)
    if points.shape[:1] + points.shape[2:] != (len(source), 2):
        raise ValueError(f"points have the shape {points.shape}, for {len(source)} pairs; give (x, y) of the keypoints of each pair")


@checks.check_first(_check_keypoints)
@functools.partial(jax.jit, static_argnames=("grid", "patch_size"))
def match_keypoints(
    source: Shaped[Array, "pairs patches width"],
    target: Shaped[Array, "pairs patches width"],
    points: Num[Array, "pairs keypoints 2"],
    grid: tuple[int, int],
    patch_size: int,
    candidates: Bool[Array, "pairs patches"] | None = None,
) -> Float[Array, "pairs keypoints 2"]:
    """The place in the target image that matches each keypoint of the source image: the centre of the most similar patch (cosine).

    The feature at a keypoint is interpolated bilinearly between the centres of the four source patches around it, and clamped to
    the outermost centres at the border. Of equally similar target patches the first, row by row, is the match.

    Args:
        source, target: patch features, `grid` = (rows, columns) of them, row by row.
        points: (x, y) in pixels of the source image as the model saw it, pixel centres at integer + 0.5. Padding may have any
            coordinates; its results are meaningless.
        patch_size: side of a patch in pixels.
        candidates: target patches that can be a match; by default all can.

    Returns:
        (x, y) in pixels of the target image as the model saw it.

    Raises:
        ValueError: the features do not have rows x columns patches, or hold NaN; or the points are not of the same pairs.
    """
    centres = _centres(grid, patch_size)

    def match_pair(pair: tuple[Array, Array, Array, Array | None]) -> Array:
        source_patches, target_patches, keypoints, possible = pair
        weights = _bilinear_weights(keypoints, grid, patch_size)
        features = jnp.matmul(weights, source_patches.astype(jnp.float32), precision=_EXACT)
        similarity = jnp.matmul(unit(features), unit(target_patches).T, precision=_EXACT)
        if possible is not None:
            similarity = jnp.where(possible, similarity, -jnp.inf)
        return centres[jnp.argmax(similarity, axis=1)]

    matched: Array = jax.lax.map(match_pair, (source, target, points, candidates))
    return matched


@functools.partial(jax.jit, static_argnames=("grid", "patch_size"))
def reads_patches(
    patches: Bool[Array, "pairs patches"], points: Num[Array, "pairs keypoints 2"], grid: tuple[int, int], patch_size: int
) -> Bool[Array, "pairs keypoints"]:
    """Whether the feature at a keypoint, as `match_keypoints` interpolates it, takes any weight from some given source patches."""
    _check_grid(patches.shape[1], grid)

    def reads(pair: tuple[Array, Array]) -> Array:
        return jnp.any((_bilinear_weights(pair[1], grid, patch_size) > 0) & pair[0], axis=1)

    read: Array = jax.lax.map(reads, (patches, points))
    return read


def pck(
    predicted: Num[np.ndarray, "pairs keypoints 2"] | Num[Array, "pairs keypoints 2"],
    true: Num[np.ndarray, "pairs keypoints 2"] | Num[Array, "pairs keypoints 2"],
    valid: Bool[np.ndarray, "pairs keypoints"] | Bool[Array, "pairs keypoints"],
    length: Num[np.ndarray, "pairs"] | Num[Array, "pairs"],
    alphas: Sequence[float],
    scale: Num[np.ndarray, "pairs 2"] | Num[Array, "pairs 2"] | None = None,
) -> KeypointHits:
    """Percentage of correct keypoints (PCK, Yang & Ramanan 2013) as contributions of pairs; float64 on the host.

    A keypoint is a hit if the predicted place lies within alpha * `length` of the true one (Euclidean, border included). SPair-71k
    (Min et al. 2019, arXiv 1908.10543, section 4) takes the longer side of the target's bounding box for `length`. The longer side
    of the target image makes the same alpha far more lenient: report which of the two was used. Averages:

    - per point: hits summed over all pairs / points summed over all pairs, `ratio_scores(hits[:, a], points)`;
    - per image (that is, per pair): mean over pairs of hits / points, `mean_scores(hits[:, a] / points)`, as the authors'
      evaluation (HPF, Min et al. 2019) prints it;
    - per category: either of them over the pairs of a category, then the mean over categories.

    Args:
        predicted, true: (x, y) in pixels of the target image.
        valid: keypoints that are not padding; the others are neither hits nor points.
        length: in pixels of the target image, or in those of `scale`.
        alphas: thresholds as fractions of `length`.
        scale: factors that convert x and y of `predicted` and `true` to the pixels of `length` (original width over resized width,
            original height over resized height): a circle in the original is an ellipse in an image that was stretched.

    Raises:
        ValueError: a length or an alpha that is not positive, a place of a keypoint that is not finite, or shapes that do not belong
            together.
    """
    checks.check_positive("alphas", alphas)
    predicted, true, length = (np.asarray(a, np.float64) for a in (predicted, true, length))
    counted = np.asarray(valid, bool)
    if predicted.shape != true.shape or counted.shape != true.shape[:2] or length.shape != true.shape[:1]:
        shapes = f"predicted {predicted.shape}, true {true.shape}, valid {counted.shape}, length {length.shape}"
        raise ValueError(f"{shapes} do not belong together; they are [pairs, keypoints, 2] twice, [pairs, keypoints] and [pairs]")
    if not (length > 0).all():
        raise ValueError(f"the length of pair {int(np.argmin(length > 0))} is {length[np.argmin(length > 0)]}; lengths are positive pixels")
    offsets = predicted - true
    if not np.isfinite(offsets[counted]).all():
        raise ValueError("a keypoint that is no padding has a place that is NaN or infinite; leave it out: valid False")
    if scale is not None:
        offsets = offsets * np.asarray(scale, np.float64)[:, None]
    distances = np.hypot(offsets[..., 0], offsets[..., 1])
    hits = distances[..., None] <= (np.asarray(alphas, np.float64) * length[:, None] * (1 + _ROUNDING))[:, None]
    return KeypointHits((hits & counted[..., None]).sum(axis=1, dtype=np.float64), counted.sum(axis=1, dtype=np.float64))


def _match(
    first: Shaped[Array, "patches width"],
    second: Shaped[Array, "patches width"],
    warp: Float[Array, "2 3"],
    allowed: Bool[Array, "patches"],
    usable: tuple[Bool[Array, "patches"], Bool[Array, "patches"]] | None,
    grid: tuple[int, int],
    patch_size: int,
    tolerance: float | Float[Array, ""],
) -> Matches:
    """`correspondence` of one pair."""
    centres = _centres(grid, patch_size)
    true = jnp.matmul(centres, warp[:, :2].T, precision=_EXACT) + warp[:, 2]
    inside = jnp.all((true >= 0) & (true < jnp.asarray([grid[1], grid[0]]) * patch_size), axis=-1)
    points = inside & allowed

    similarity = jnp.matmul(unit(first), unit(second).T, precision=_EXACT)
    there, back = similarity, similarity
    if usable is not None:
        points = points & usable[0] & usable[1][patch_at(true, grid, patch_size)]
        there, back = jnp.where(usable[1], similarity, -jnp.inf), jnp.where(usable[0][:, None], similarity, -jnp.inf)
    forward, backward = jnp.argmax(there, axis=1), jnp.argmax(back, axis=0)

    def near(a: Float[Array, "patches 2"], b: Float[Array, "patches 2"]) -> Bool[Array, "patches"]:
        return jnp.sum((a - b) ** 2, axis=-1) <= (tolerance * patch_size) ** 2

    def count(flags: Bool[Array, "patches"]) -> Float[Array, ""]:
        return jnp.sum(flags & points, dtype=jnp.float32)

    hits, cycles = near(centres[forward], true), near(centres[backward[forward]], centres)
    return Matches(hits=count(hits), cycles=count(cycles), points=count(points))


def _check_pixels(predicted: Any, target: Any, classes: int, ignore: int, valid: Any) -> None:
    checks.check_counts(classes=classes)
    checks.check_class_map("predicted", predicted, "images height width", classes)
    checks.check_class_map("target", target, "images height width", classes, ignore)
    if predicted.shape != target.shape:
        raise ValueError(f"predicted has the shape {predicted.shape} and target {target.shape}; bring the prediction to the target's size")
    checks.check_mask("valid", valid, "target", target, fetch=False)


@checks.check_first(_check_pixels)
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

    Raises:
        ValueError: they do not (where their values are on the host), or predictions and targets are not of the same pixels.
    """
    counted = target != ignore
    if valid is not None:
        counted = counted & valid[:, None, None]
    # a pixel that is not counted goes past the last cell, where the sum drops it
    cell = jnp.where(counted, target.astype(jnp.int32) * classes + predicted.astype(jnp.int32), classes**2)

    def count(cells: Int[Array, "pixels"]) -> Int[Array, "cells"]:
        return jnp.zeros(classes**2, jnp.int32).at[cells].add(1, mode="drop")

    return jax.vmap(count)(cell.reshape(len(cell), -1)).reshape(-1, classes, classes)


def mean_iou(confusion: Num[np.ndarray, "*batch classes classes"]) -> Float[np.ndarray, "*batch"]:
    """Mean over classes of intersection / union, from summed confusion matrices; float64 on the host.

    As in mmsegmentation (`intersect_and_union`, mean of those that are no NaN), a class counts where it is present in targets or
    predictions: one that is predicted and nowhere true counts with 0. NaN where no class counts. The mean ratio of `class_overlap`.

    Raises:
        ValueError: the matrices are not square.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim < 2 or confusion.shape[-1] != confusion.shape[-2]:
        raise ValueError(f"confusion has the shape {confusion.shape}; give matrices [..., classes, classes], summed over images")
    intersection, union = np.moveaxis(class_overlap(np.asarray(confusion, np.float64)), -1, 0)
    present = union > 0
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=present)
    classes = present.sum(axis=-1, dtype=np.float64)
    mean: np.ndarray = np.divide(iou.sum(axis=-1), classes, out=np.full_like(classes, np.nan), where=classes > 0)
    return mean


def class_overlap(confusion: Num[np.ndarray, "*batch classes classes"]) -> Num[np.ndarray, "*batch classes 2"]:
    """Intersection and union in pixels of every class, from confusion matrices: sums of both over images make the class's IoU."""
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([intersection, confusion.sum(axis=-1) + confusion.sum(axis=-2) - intersection], axis=-1)


def _check_grid(patches: int, grid: tuple[int, int]) -> None:
    if patches != grid[0] * grid[1]:
        raise ValueError(f"features have {patches} patches, a grid of {grid[0]} x {grid[1]} has {grid[0] * grid[1]}")


def _bilinear_weights(points: Num[Array, "points 2"], grid: tuple[int, int], patch_size: int) -> Float[Array, "points patches"]:
    """The weight of every patch in a feature at (x, y), interpolated between patch centres and clamped to the outermost."""
    limits = np.asarray([grid[1] - 1, grid[0] - 1], np.float32)
    cell = jnp.clip(points.astype(jnp.float32) / patch_size - 0.5, 0, limits)  # (column, row) in units of patch centres
    # products of hat functions: at most two rows and two columns are above 0
    columns, rows = (jnp.maximum(0, 1 - jnp.abs(cell[:, i, None] - jnp.arange(grid[1 - i]))) for i in (0, 1))
    return (rows[:, :, None] * columns[:, None, :]).reshape(len(points), -1)


def _centres(grid: tuple[int, int], patch_size: int) -> Float[Array, "patches 2"]:
    """(x, y) in pixels of the centres of a grid's patches, row by row."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return jnp.asarray((np.stack([columns, rows], axis=-1) + 0.5) * patch_size, jnp.float32)


def _scores(hit: Bool[Array, "examples"], valid: Bool[Array, "examples"] | None) -> Float[Array, "examples"]:
    """1 for a hit that is not padding, else 0."""
    return (hit if valid is None else hit & valid).astype(jnp.float32)
