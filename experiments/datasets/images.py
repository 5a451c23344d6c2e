"""The one resize: image files to square uint8 pixels, with the affine map from original to resized pixels.

Resampling is PIL's bicubic, which widens its kernel when it shrinks (antialiasing), as in the published evaluations.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.datasets.reading import MAX_PIXELS, Refused, all_refused, in_threads, read_pixels
from jaxvit.files import cache_folder, replacing, require_space

Fit = Literal["crop", "stretch", "pad"]
"""How an image becomes a square of side `size`.

- crop: resize the short side to round(size * 256 / 224), then crop the central square; the ImageNet evaluation protocol, with the
  rounding of torchvision's Resize (the long side is cut to an integer) and CenterCrop (the offset is rounded half to even).
- stretch: resize both sides to `size`.
- pad: resize the long side to `size` and the short one to the nearest integer; the rest, at the bottom or the right, is 0.
"""

_DECODER_VERSION = 2  # raise it when the same file gives other pixels
_WHOLE = 2**26  # pixels of an intermediate image that are held at once
_LONG = 2**16  # pixels of its longest side: Pillow keeps a kernel for each


def load(
    paths: Sequence[Path], size: int, fit: Fit, cache: Path | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "n size size 3"], Float[np.ndarray, "n 2 3"]]:
    """Decode many images by `decode`, each once: later calls map the pixels from the cache.

    Args:
        paths: files; their names, sizes in bytes and times of change determine the entry of the cache.
        size: pixels of a side.
        fit: how an image becomes a square.
        cache: folder whose `images/` holds the pixels, by default that of the checkpoints. If it cannot be written or is full, the
            pixels stay in memory.
        max_pixels: of an original image.

    Returns:
        Pixels (read-only and on disk, if there is a cache) and affine maps, as those of `decode`.

    Raises:
        ValueError: no paths, files that cannot be read as images (all are named), an unknown `fit` or a size below 1.
    """
    if not paths:
        raise ValueError("no images to load; give at least one path")
    _check(size, fit)
    pixels_file = (cache_folder() if cache is None else Path(cache)) / "images" / f"{_cache_key(paths, size, fit)}.npy"
    affines_file = pixels_file.with_suffix(".affine.npy")
    try:
        return _open(pixels_file, affines_file, (len(paths), size, size, 3))
    except (OSError, ValueError, EOFError):  # absent, or damaged
        pass
    try:
        _write(pixels_file, affines_file, _decode_all(paths, size, fit, max_pixels), (len(paths), size, size, 3))
        return _open(pixels_file, affines_file, (len(paths), size, size, 3))
    except OSError:
        images = np.empty((len(paths), size, size, 3), np.uint8)
        affines = np.empty((len(paths), 2, 3))
        for i, (image, affine) in enumerate(_decode_all(paths, size, fit, max_pixels)):
            images[i], affines[i] = image, affine
        return images, affines


def decode(
    path: Path, size: int, fit: Fit, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "size size 3"], Float[np.ndarray, "2 3"]]:
    """Decode one image to a square of RGB pixels.

    Returns:
        Pixels, and the affine map from pixel coordinates (x, y, 1) of the upright original to (x, y) of the square; pixel centres are
        at integer + 0.5.

    Raises:
        ValueError: the file cannot be read as an image (`read_rgb`), an unknown `fit` or a size below 1.
    """
    _check(size, fit)
    image = read_pixels(path, max_pixels)
    width, height = image.size
    left = top = 0
    if fit == "crop":
        short = round(size * 256 / 224)
        new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        left, top = (round((side - size) / 2) for side in new)
    elif fit == "stretch":
        new = (size, size)
    else:
        new = (max(1, round(size * width / max(width, height))), max(1, round(size * height / max(width, height))))
    square = image
    # Pillow resizes along x first, and the order matters, because it keeps 8 bits between the two; but columns of hundreds of thousands
    # of pixels lose their length first
    order = (0, 1) if new[0] * height <= _WHOLE or width >= height else (1, 0)
    for axis in order:
        square = _along(square, axis, new[axis], (left, top)[axis], size)
    affine = np.array([[new[0] / width, 0, -left], [0, new[1] / height, -top]], np.float64)
    return np.asarray(square.convert("RGB")), affine


def _along(image: Image.Image, axis: int, new: int, start: int, size: int) -> Image.Image:
    """Pixels `start` to `start + size` along an axis (0: x, 1: y) of the image resized to `new` along it.

    The whole axis is resized, and cropped after it, as the published evaluations do: `resize(box=...)` rounds the box to 32 bits, which
    changes one value in 250 by up to 17. Where that would take a great deal of memory (thin images), the image is cropped to the
    neighbourhood first; there the box is small, and its rounding moves no value by more than 1.
    """
    old, other = image.size[axis], image.size[1 - axis]

    def both(along: float, across: float) -> tuple[float, float]:
        return (along, across) if axis == 0 else (across, along)

    def resized(image: Image.Image, side: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        return image.resize((side, other) if axis == 0 else (other, side), Image.Resampling.BICUBIC, box=box)

    if new * other <= _WHOLE and new <= _LONG:
        return resized(image, new).crop((*both(start, 0), *both(start + size, other)))
    scale = old / new
    margin = math.ceil(2 * max(scale, 1)) + 1  # the bicubic kernel reaches 2 pixels of the coarser grid
    first, last = max(0, math.floor(start * scale) - margin), min(old, math.ceil((start + size) * scale) + margin)
    near = image.crop((*both(first, 0), *both(last, other)))
    return resized(near, size, (*both(start * scale - first, 0), *both((start + size) * scale - first, other)))


def _decode_all(paths: Sequence[Path], size: int, fit: Fit, max_pixels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return in_threads(lambda path: decode(path, size, fit, max_pixels), paths, "decoding images")


def _check(size: int, fit: Fit) -> None:
    if fit not in get_args(Fit):
        raise ValueError(f'unknown fit "{fit}"; choose one of {", ".join(get_args(Fit))}')
    if size < 1:
        raise ValueError(f"images of {size} pixels do not exist; use at least 1")


def _cache_key(paths: Sequence[Path], size: int, fit: Fit) -> str:
    """A hash of what determines the pixels; a file's content by its path, size in bytes and time of change."""
    digest = hashlib.sha256(f"{_DECODER_VERSION} {size} {fit}\n".encode())
    missing = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            missing.append(Refused(path, f"cannot be read as an image ({error.strerror})", "bring it back or take it out"))
            continue
        digest.update(f"{os.fspath(path.absolute())}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    if missing:
        raise all_refused(missing, len(paths))
    return digest.hexdigest()[:32]


def _open(pixels_file: Path, affines_file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    images, affines = np.load(pixels_file, mmap_mode="r"), np.load(affines_file)
    if (images.shape, images.dtype, affines.shape) != (shape, np.uint8, (shape[0], 2, 3)):
        raise ValueError(f"{pixels_file} holds arrays of another shape or type")
    return images, affines


def _write(
    pixels_file: Path, affines_file: Path, decoded: Iterator[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int, int, int]
) -> None:
    """Write image after image into temporary files, which are renamed once all are complete; the pixels last, because their presence
    marks a whole entry.

    The pixels are written, not mapped: a full disk raises OSError on a write, but kills the process on an access to mapped memory.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    try:
        require_space(pixels_file, int(np.prod(shape)))
    except ValueError as error:
        raise OSError(str(error)) from error
    pixels_file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(pixels_file) as new_pixels, replacing(affines_file) as new_affines:  # the inner one is renamed first
        affines = np.empty((shape[0], 2, 3))
        with new_pixels.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i, (image, affine) in enumerate(decoded):
                file.write(image.tobytes())
                affines[i] = affine
        with new_affines.open("wb") as file:
            np.save(file, affines)
