"""Segmentation from patches: class fractions of a patch's pixels as targets, and classes of pixels from scores of patches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxvit import checks


def _check_masks(labels: Any, classes: int, patch_size: int, ignore: int) -> None:
    checks.check_classes(classes)
    checks.check_counts(patch_size=patch_size)
    checks.check_class_map("labels", labels, "images height width", classes, ignore)


@checks.check_first(_check_masks)
@functools.partial(jax.jit, static_argnames=("classes", "patch_size"))
def class_shares(
    labels: Integer[Array, "images height width"], classes: int, patch_size: int, ignore: int = 255
) -> tuple[Float[Array, "images patches classes"], Float[Array, "images patches"]]:
    """Soft targets and weights of patches, row by row: class fractions of the labelled pixels, and the fraction that is labelled.

    Pixels with the label `ignore` are not labelled; the weight of a patch of such pixels is 0.

    Raises:
        ValueError: labels are no integers [images, height, width], or neither classes nor `ignore`; height or width is no multiple of the
            patch size.
    """
    images, height, width = labels.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"labels of {height} x {width} pixels are not whole patches of {patch_size}; resize or crop to a multiple")
    grid = labels.reshape(images, height // patch_size, patch_size, width // patch_size, patch_size)
    pixels = grid.transpose(0, 1, 3, 2, 4).reshape(images, -1, patch_size**2).astype(jnp.int32)
    pixels = jnp.where(pixels == ignore, classes, pixels)
    counts = jnp.stack([jnp.sum(pixels == c, axis=-1, dtype=jnp.float32) for c in range(classes)], axis=-1)
    labelled = counts.sum(axis=-1)
    return counts / jnp.maximum(labelled, 1)[..., None], labelled / patch_size**2


def _check_scores(scores: Any, size: tuple[int, int]) -> None:
    checks.check_features("scores", scores, "images rows columns classes", fetch=False)
    checks.check_classes(scores.shape[-1])
    checks.check_counts(height=size[0], width=size[1])


@checks.check_first(_check_scores)
@functools.partial(jax.jit, static_argnames="size")
def predict_pixels(scores: Float[Array, "images rows columns classes"], size: tuple[int, int]) -> Int[Array, "images height width"]:
    """The class of every pixel: the argmax of patch scores that are upsampled bilinearly to `size` = (height, width).

    Half-pixel centres, borders clamped: `align_corners=False` of `torch.nn.functional.interpolate`.

    Raises:
        ValueError: scores are not [images, rows, columns, classes] or hold NaN, or `size` is not positive.
    """
    images, _, _, classes = scores.shape
    upsampled = jax.image.resize(scores, (images, *size, classes), "bilinear", precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(upsampled, axis=-1)


def _check_padded(scores: Any, sizes: Any, canvas: tuple[int, int]) -> None:
    _check_scores(scores, canvas)
    checks.check_integers("sizes", sizes)
    if sizes.shape != (len(scores), 2):
        raise ValueError(f"sizes have the shape {sizes.shape}, for {len(scores)} images; give (height, width) of each")
    if (sides := checks.values(sizes, fetch=False)) is not None and not ((sides >= 1) & (sides <= np.asarray(canvas))).all():
        wrong = tuple(sides[np.argmax(((sides < 1) | (sides > np.asarray(canvas))).any(axis=1))].tolist())
        raise ValueError(f"an image of {wrong} pixels does not fit a canvas of {tuple(canvas)}; give the largest height and width")


@checks.check_first(_check_padded)
@functools.partial(jax.jit, static_argnames="canvas")
def predict_padded(
    scores: Float[Array, "images rows columns classes"], sizes: Integer[Array, "images 2"], canvas: tuple[int, int]
) -> Int[Array, "images height width"]:
    """`predict_pixels` for images of different sizes: each upsampled to its own size, at the top left of a common canvas.

    One program serves all sizes, and holds the scores of one image's pixels at a time.

    Args:
        scores: of patches; the rows and columns of each image span its whole height and width.
        sizes: (height, width) of each image.
        canvas: height and width of the result; at least the largest of `sizes`.

    Returns:
        The class of every pixel. Outside an image's own size its border is repeated: targets should be `ignore` there.

    Raises:
        ValueError: scores are not [images, rows, columns, classes] or hold NaN, or a size is not of their images or larger than the canvas.
    """
    _, rows, columns, _ = scores.shape

    def weights(side: Array, patches: int, pixels: int) -> Float[Array, "pixels patches"]:
        coordinate = (jnp.arange(pixels) + 0.5) * (patches / side.astype(jnp.float32)) - 0.5
        coordinate = jnp.clip(coordinate, 0, patches - 1)
        return jnp.maximum(0, 1 - jnp.abs(coordinate[:, None] - jnp.arange(patches)))

    def predict(image: tuple[Array, Array]) -> Array:
        patch_scores, (height, width) = image
        vertical, horizontal = weights(height, rows, canvas[0]), weights(width, columns, canvas[1])
        upsampled = jnp.einsum("yr,xc,rck->yxk", vertical, horizontal, patch_scores, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmax(upsampled, axis=-1)

    predicted: Array = jax.lax.map(predict, (scores, sizes))
    return predicted
