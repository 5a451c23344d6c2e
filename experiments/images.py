"""The one image decoder and the one resize: files to square uint8 pixels, and where every pixel of the original went.

Resampling is PIL's bicubic, which widens its kernel when it shrinks (antialiasing), as in the published evaluations.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxvit.checkpoint import cache_folder, require_space

Fit = Literal["crop", "stretch", "pad"]
"""How an image becomes a square of side `size`.

- crop: the short side to round(size * 256 / 224), then the central square; the ImageNet evaluation protocol, with the rounding of
  torchvision's Resize (the long side is cut to an integer) and CenterCrop (the offset is rounded half to even).
- stretch: both sides to `size`.
- pad: the long side to `size`, the short one to the nearest integer; the rest, at the bottom or the right, is 0.
"""

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
"""Names of image files end so, in either case."""

IGNORE = 255
"""Mask label of pixels that do not count."""

_DECODER = 1  # raise it when the same file gives other pixels
_CHUNK = 64
_PATIENCE = 3.0  # seconds before a bar is shown
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def load(
    paths: Sequence[Path], size: int, fit: Fit, cache: Path | None = None
) -> tuple[UInt8[np.ndarray, "n size size 3"], Float[np.ndarray, "n 2 3"]]:
    """Many images by `decode`, each decoded once: the next call maps the pixels from the cache.

    Args:
        paths: files; their names, sizes in bytes and times of change determine the entry of the cache.
        size: pixels of a side.
        fit: how an image becomes a square.
        cache: folder whose `images/` holds the pixels; by default that of the checkpoints. One that cannot be written, or is full,
            is done without: the pixels then stay in memory.

    Returns:
        Pixels (read-only and on disk, where there is a cache) and affine maps, as those of `decode`.

    Raises:
        ValueError: no paths, a file that is missing or no image, an unknown `fit` or a size below 1.
    """
    if not paths:
        raise ValueError("no images to load; give at least one path")
    _check(size, fit)
    pixels = (cache_folder() if cache is None else Path(cache)) / "images" / f"{_name(paths, size, fit)}.npy"
    maps = pixels.with_suffix(".affine.npy")
    try:
        return _open(pixels, maps, (len(paths), size, size, 3))
    except (OSError, ValueError, EOFError):  # not there, or damaged
        pass
    try:
        _write(pixels, maps, paths, size, fit)
        return _open(pixels, maps, (len(paths), size, size, 3))
    except OSError:
        images = np.empty((len(paths), size, size, 3), np.uint8)
        affines = np.empty((len(paths), 2, 3))
        for i, (image, affine) in enumerate(_decoded(paths, size, fit)):
            images[i], affines[i] = image, affine
        return images, affines


def decode(path: Path, size: int, fit: Fit) -> tuple[UInt8[np.ndarray, "size size 3"], Float[np.ndarray, "2 3"]]:
    """One image as a square of RGB pixels.

    Returns:
        Pixels, and the affine map from pixel coordinates (x, y, 1) of the upright original to (x, y) of the square; pixel centres lie
        at integer + 0.5.

    Raises:
        ValueError: the file cannot be read as an image, an unknown `fit` or a size below 1.
    """
    _check(size, fit)
    image = upright(path)
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
    # the whole image and then the crop: `resize(box=...)` rounds the box to float32, which moves one value in 250 by up to 17
    square = image.resize(new, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    affine = np.array([[new[0] / width, 0, -left], [0, new[1] / height, -top]], np.float64)
    return np.asarray(square), affine


def upright(path: Path) -> Image.Image:
    """A file as 8-bit RGB, turned as its EXIF orientation says.

    Grey, palette, 16-bit and CMYK pixels are converted; what is transparent is laid over white. Colour profiles are not applied.

    Raises:
        ValueError: the file is missing, cut short or no image.
    """
    try:
        with Image.open(path) as opened:
            turn = _TURNS.get(_orientation(opened))
            image: Image.Image = opened if turn is None else opened.transpose(turn)
            if image.mode in _SIXTEEN_BIT:
                image = Image.fromarray(np.round(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # the readers of damaged files raise many kinds
        raise _unreadable(path, error) from error


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of the upright image, from its header.

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
    """Labels of one mask as they are in the file, a palette's indices or grey values; never through RGB, where two labels may share a
    colour.

    Raises:
        ValueError: the file cannot be read, or has colours or labels above 255.
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


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], label: str) -> Iterator[Result]:
    """`map` over a pool of threads, in order and with few results waiting; on a terminal a bar where it takes more than a few
    seconds."""
    items = list(items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, began = bar.add_task(label, total=len(items)), time.monotonic()
    try:
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for start in range(0, len(items), _CHUNK):
                for result in pool.map(work, items[start : start + _CHUNK]):
                    yield result
                    bar.advance(task)
                if bar.console.is_terminal and time.monotonic() - began > _PATIENCE:
                    bar.start()  # a second start does nothing
    finally:
        if bar.live.is_started:
            bar.stop()


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; those from 5 on swap the sides."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # the pixels of a photograph with damaged EXIF data are as good as any
        return 1


def _decoded(paths: Sequence[Path], size: int, fit: Fit) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return in_threads(lambda path: decode(path, size, fit), paths, "decoding images")


def _check(size: int, fit: Fit) -> None:
    if fit not in get_args(Fit):
        raise ValueError(f'unknown fit "{fit}"; choose one of {", ".join(get_args(Fit))}')
    if size < 1:
        raise ValueError(f"images of {size} pixels do not exist; use at least 1")


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]
    return ValueError(f'"{path}" cannot be read as an image ({reason}); replace the file or take it out')


def _name(paths: Sequence[Path], size: int, fit: Fit) -> str:
    """Hash of everything that determines the pixels, as far as the file system tells."""
    digest = hashlib.sha256(f"{_DECODER} {size} {fit}\n".encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        digest.update(f"{os.fspath(path.absolute())}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _open(pixels: Path, maps: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    images, affines = np.load(pixels, mmap_mode="r"), np.load(maps)
    if (images.shape, images.dtype, affines.shape) != (shape, np.uint8, (shape[0], 2, 3)):
        raise ValueError(f"{pixels} holds something else")
    return images, affines


def _write(pixels: Path, maps: Path, paths: Sequence[Path], size: int, fit: Fit) -> None:
    """Decode into temporary neighbours, image after image, that take their names when all are there; the pixels last.

    Written, not mapped: a full disk raises OSError on writing and kills the process on touching a map.
    """
    shape = (len(paths), size, size, 3)
    try:
        require_space(pixels, int(np.prod(shape)))
    except ValueError as error:
        raise OSError(str(error)) from error
    pixels.parent.mkdir(parents=True, exist_ok=True)
    temporary = [path.with_name(f".{uuid.uuid4().hex}.tmp") for path in (maps, pixels)]
    try:
        affines = np.empty((len(paths), 2, 3))
        with temporary[1].open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i, (image, affine) in enumerate(_decoded(paths, size, fit)):
                file.write(image.tobytes())
                affines[i] = affine
        with temporary[0].open("wb") as file:
            np.save(file, affines)
        for before, after in zip(temporary, (maps, pixels), strict=True):
            os.replace(before, after)
    finally:
        for left in temporary:
            left.unlink(missing_ok=True)
