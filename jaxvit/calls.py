"""Checks of calls: one line that says which argument is not what it should be, and how to make it so."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def check_numpy(name: str, array: Any) -> None:
    """Check that an argument is an array of NumPy or JAX.

    Raises:
        ValueError: it is a torch tensor, a list, or anything else.
    """
    if isinstance(array, np.ndarray | jax.Array):
        return
    if type(array).__module__.partition(".")[0] == "torch":
        raise ValueError(f"{name} is a torch tensor; pass {name}.detach().cpu().numpy()")
    raise ValueError(f"{name} is a {type(array).__name__}, not an array; pass a NumPy or JAX array: np.asarray({name})")


def check_axes(name: str, images: Any, axes: str = "batch, height, width, 3") -> None:
    """Check the axes of images: a batch with the colours last.

    Raises:
        ValueError: one image alone, colours first, or anything else.
    """
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[-1] == 3:
        return
    remedy = ""
    if len(shape) == 4 and shape[1] == 3:
        remedy = f"; colours come last: {name}.transpose(0, 2, 3, 1)"
    elif len(shape) == 3:
        remedy = f"; one image is a batch of one: {name}[None]" if shape[-1] == 3 else ""
    elif len(shape) == 4 and shape[-1] in (1, 4):
        remedy = f"; for grey images {name}.repeat(3, axis=-1)" if shape[-1] == 1 else f"; leave out transparency: {name}[..., :3]"
    raise ValueError(f"{name} must be [{axes}], got {shape}{remedy}")


def check_pixels(name: str, images: Any) -> None:
    """Check a batch of pixels as they are stored, uint8 [batch, height, width, 3].

    Raises:
        ValueError: they are anything else.
    """
    check_numpy(name, images)
    if images.dtype != np.uint8:
        raise ValueError(f"{name} must be pixels as stored, uint8 in 0..255, which are normalised on the device; got {images.dtype}")
    check_axes(name, images)
