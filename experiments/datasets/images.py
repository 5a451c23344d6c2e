"""The one image decoder and the one resize: files to square uint8 pixels, with the affine map from original to resized pixels.

Resampling is PIL's bicubic, which widens its kernel when it shrinks (antialiasing), as in the published evaluations.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxvit.files import cache_folder, replacing, require_space

Fit = Literal["crop", "stretch", "pad"]
"""How an image becomes a square of side `size`.

- crop: resize the short side to round(size * 256 / 224), then crop the central square; the ImageNet evaluation protocol, with the
  rounding of torchvision's Resize (the long side is cut to an integer) and CenterCrop (the offset is rounded half to even).
- stretch: resize both sides to `size`.
- pad: resize the long side to `size` and the short one to the nearest integer; the rest, at the bottom or the right, is 0.
"""

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
"""Endings of the names of image files, in lower case; upper case counts too."""

IGNORE = 255
"""Label of the mask pixels that no metric counts."""

BAR_DELAY = 3.0
"""Seconds of work before a progress bar is shown."""

_DECODER_VERSION = 1  # raise it when the same file gives other pixels
_CHUNK = 64  # items that are submitted to the threads at once
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpose that turns an image of each EXIF orientation upright."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def load(
    paths: Sequence[Path], size: int, fit: Fit, cache: Path | None = None
) -> tuple[UInt8[np.ndarray, "n size size 3"], Float[np.ndarray, "n 2 3"]]:
    """Decode many images by `decode`, each once: later calls map the pixels from the cache.

    Args:
        paths: files; their names, sizes in bytes and times of change determine the entry of the cache.
        size: pixels of a side.
        fit: how an image becomes a square.
        cache: folder whose `images/` holds the pixels, by default that of the checkpoints. If it cannot be written or is full, the
            pixels stay in memory.

    Returns:
        Pixels (read-only and on disk, if there is a cache) and affine maps, as those of `decode`.

    Raises:
        ValueError: no paths, a file that is missing or no image, an unknown `fit` or a size below 1.
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
        _write(pixels_file, affines_file, paths, size, fit)
        return _open(pixels_file, affines_file, (len(paths), size, size, 3))
    except OSError:
        images = np.empty((len(paths), size, size, 3), np.uint8)
        affines = np.empty((len(paths), 2, 3))
        for i, (image, affine) in enumerate(_decode_all(paths, size, fit)):
            images[i], affines[i] = image, affine
        return images, affines


def decode(path: Path, size: int, fit: Fit) -> tuple[UInt8[np.ndarray, "size size 3"], Float[np.ndarray, "2 3"]]:
    """Decode one image to a square of RGB pixels.

    Returns:
        Pixels, and the affine map from pixel coordinates (x, y, 1) of the upright original to (x, y) of the square; pixel centres are
        at integer + 0.5.

    Raises:
        ValueError: the file cannot be read as an image, an unknown `fit` or a size below 1.
    """
    _check(size, fit)
    image = read_rgb(path)
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
    # resize the whole image, then crop: `resize(box=...)` rounds the box to float32, which changes one value in 250 by up to 17
    square = image.resize(new, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    affine = np.array([[new[0] / width, 0, -left], [0, new[1] / height, -top]], np.float64)
    return np.asarray(square), affine


def read_rgb(path: Path) -> Image.Image:
    """Read a file as an 8-bit RGB image, upright as its EXIF orientation says.

    Grey, palette, 16-bit and CMYK pixels are converted; transparent ones are blended over white. Colour profiles are not applied.

    Raises:
        ValueError: the file is missing, cut short or no image.
    """
    try:
        with Image.open(path) as opened:
            transpose = _UPRIGHT.get(_orientation(opened))
            image: Image.Image = opened if transpose is None else opened.transpose(transpose)
            if image.mode in _SIXTEEN_BIT:
                image = Image.fromarray(np.round(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # PIL raises many kinds on damaged files
        raise _unreadable(path, error) from error


def read_size(path: Path) -> tuple[int, int]:
    """Read the height and width of the upright image from the file's header.

    Raises:
        ValueError: the file is missing or no image.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            return (width, height) if _orientation(opened) >= 5 else (height, width)
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def read_mask(path: Path) -> UInt8[np.ndarray, "height width"]:
    """Read the labels of one mask as they are in the file: a palette's indices or grey values. They are not read as RGB, because two
    labels may have the same colour.

    Raises:
        ValueError: the file cannot be read, has colours instead of labels, or labels outside 0 to 255.
    """
    try:
        with Image.open(path) as opened:
            mode, labels = opened.mode, np.asarray(opened)
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    if labels.ndim != 2 or mode == "F":
        raise ValueError(f'mask "{path}" has colours ({mode}), not one label a pixel; save it with a palette or in grey')
    if labels.max(initial=0) > IGNORE or labels.min(initial=0) < 0:
        raise ValueError(f'mask "{path}" has labels from {labels.min()} to {labels.max()}; they lie in 0 to {IGNORE} ({IGNORE}: ignored)')
    return labels.astype(np.uint8)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], label: str) -> Iterator[Result]:
    """Map a function over items by a pool of threads; yields results in order and holds few of them. On a terminal, work of more than
    `BAR_DELAY` seconds shows a progress bar named `label`."""
    items = list(items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, start_time = bar.add_task(label, total=len(items)), time.monotonic()
    try:
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for start in range(0, len(items), _CHUNK):
                for result in pool.map(function, items[start : start + _CHUNK]):
                    yield result
                    bar.advance(task)
                if bar.console.is_terminal and time.monotonic() - start_time > BAR_DELAY:
                    bar.start()  # a second start does nothing
    finally:
        if bar.live.is_started:
            bar.stop()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; from 5 on, width and height are swapped."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data do not make the pixels unreadable
        return 1


def _decode_all(paths: Sequence[Path], size: int, fit: Fit) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return in_threads(lambda path: decode(path, size, fit), paths, "decoding images")


def _check(size: int, fit: Fit) -> None:
    if fit not in get_args(Fit):
        raise ValueError(f'unknown fit "{fit}"; choose one of {", ".join(get_args(Fit))}')
    if size < 1:
        raise ValueError(f"images of {size} pixels do not exist; use at least 1")


def _unreadable(path: Path, error: Exception) -> ValueError:
    """The error for a file that PIL cannot read, with the first line of PIL's reason."""
    reason = (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]
    return ValueError(f'"{path}" cannot be read as an image ({reason}); replace the file or take it out')


def _cache_key(paths: Sequence[Path], size: int, fit: Fit) -> str:
    """A hash of what determines the pixels; a file's content by its path, size in bytes and time of change."""
    digest = hashlib.sha256(f"{_DECODER_VERSION} {size} {fit}\n".encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        digest.update(f"{os.fspath(path.absolute())}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _open(pixels_file: Path, affines_file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    images, affines = np.load(pixels_file, mmap_mode="r"), np.load(affines_file)
    if (images.shape, images.dtype, affines.shape) != (shape, np.uint8, (shape[0], 2, 3)):
        raise ValueError(f"{pixels_file} holds arrays of another shape or type")
    return images, affines


def _write(pixels_file: Path, affines_file: Path, paths: Sequence[Path], size: int, fit: Fit) -> None:
    """Decode image after image into temporary files, which are renamed once all are complete; the pixels last, because their presence
    marks a whole entry.

    The pixels are written, not mapped: a full disk raises OSError on a write, but kills the process on an access to mapped memory.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    shape = (len(paths), size, size, 3)
    try:
        require_space(pixels_file, int(np.prod(shape)))
    except ValueError as error:
        raise OSError(str(error)) from error
    pixels_file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(pixels_file) as new_pixels, replacing(affines_file) as new_affines:  # the inner one is renamed first
        affines = np.empty((len(paths), 2, 3))
        with new_pixels.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i, (image, affine) in enumerate(_decode_all(paths, size, fit)):
                file.write(image.tobytes())
                affines[i] = affine
        with new_affines.open("wb") as file:
            np.save(file, affines)
