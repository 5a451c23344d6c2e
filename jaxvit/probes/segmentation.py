"""Segmentation from patches: class fractions of a patch's pixels as targets, and classes of pixels from scores of patches."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer


@functools.partial(jax.jit, static_argnames=("classes", "patch_size"))
def class_shares(
    labels: Integer[Array, "images height width"], classes: int, patch_size: int, ignore: int = 255
) -> tuple[Float[Array, "images patches classes"], Float[Array, "images patches"]]:
    """Soft targets and weights of patches, row by row: class fractions of the labelled pixels, and the fraction that is labelled.

    Pixels with the label `ignore` are not labelled; the weight of a patch of such pixels is 0.

    Raises:
        ValueError: height or width is no multiple of the patch size.
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


@functools.partial(jax.jit, static_argnames="size")
def predict_pixels(scores: Float[Array, "images rows columns classes"], size: tuple[int, int]) -> Int[Array, "images height width"]:
    """The class of every pixel: the argmax of patch scores that are upsampled bilinearly to `size` = (height, width).

    Half-pixel centres, borders clamped: `align_corners=False` of `torch.nn.functional.interpolate`.
    """
    images, _, _, classes = scores.shape
    upsampled = jax.image.resize(scores, (images, *size, classes), "bilinear", precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(upsampled, axis=-1)


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
