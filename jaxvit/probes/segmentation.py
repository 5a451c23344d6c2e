"""Between patches and pixels: class shares of a patch's pixels as targets, patch scores as predictions for pixels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer


@functools.partial(jax.jit, static_argnames=("classes", "patch_size"))
def class_shares(
    labels: Integer[Array, "images height width"], classes: int, patch_size: int, ignore: int = 255
) -> tuple[Float[Array, "images patches classes"], Float[Array, "images patches"]]:
    """Soft targets: the share of each class among a patch's counted pixels, and the share of pixels that count.

    The second is the weight of a patch in a fit: 0 where all its pixels carry the label `ignore`. Patches run row by row.

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
    counted = counts.sum(axis=-1)
    return counts / jnp.maximum(counted, 1)[..., None], counted / patch_size**2


@functools.partial(jax.jit, static_argnames="size")
def predict_pixels(scores: Float[Array, "images rows columns classes"], size: tuple[int, int]) -> Int[Array, "images height width"]:
    """Class of every pixel: patch scores upsampled bilinearly to `size` = (height, width) before the argmax.

    Half-pixel centres, borders clamped (`align_corners=False` elsewhere).
    """
    images, _, _, classes = scores.shape
    upsampled = jax.image.resize(scores, (images, *size, classes), "bilinear", precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(upsampled, axis=-1)


@functools.partial(jax.jit, static_argnames="canvas")
def predict_padded(
    scores: Float[Array, "images rows columns classes"], sizes: Integer[Array, "images 2"], canvas: tuple[int, int]
) -> Int[Array, "images height width"]:
    """`predict_pixels` for images of different sizes: each is upsampled to its own, at the top left of a common canvas.

    One program serves all sizes, and holds the scores of one image's pixels at a time.

    Args:
        scores: of patches; the rows and columns of each image span its whole height and width.
        sizes: (height, width) of each image.
        canvas: height and width of the result; at least the largest of `sizes`.

    Returns:
        Class of every pixel; outside an image's own size the border goes on, for targets that are `ignore` there.
    """
    _, rows, columns, _ = scores.shape

    def weights(side: Array, patches: int, pixels: int) -> Float[Array, "pixels patches"]:
        place = (jnp.arange(pixels) + 0.5) * (patches / side.astype(jnp.float32)) - 0.5
        place = jnp.clip(place, 0, patches - 1)
        return jnp.maximum(0, 1 - jnp.abs(place[:, None] - jnp.arange(patches)))

    def one(image: tuple[Array, Array]) -> Array:
        patch_scores, (height, width) = image
        vertical, horizontal = weights(height, rows, canvas[0]), weights(width, columns, canvas[1])
        upsampled = jnp.einsum("yr,xc,rck->yxk", vertical, horizontal, patch_scores, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmax(upsampled, axis=-1)

    return jax.lax.map(one, (scores, sizes))
