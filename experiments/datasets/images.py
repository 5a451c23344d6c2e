"""The one resize: image files to square uint8 pixels, with the affine map from original to resized pixels.

Resampling is PIL's, which widens its kernel when it shrinks (antialiasing), as in the published evaluations. `PROTOCOLS` are those of the
implementations that models come from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.datasets.reading import MAX_PIXELS, Refused, all_refused, in_threads, read_pixels
from experiments.datasets.stored import ImageSource, PackedImage, in_reading_order, version
from jaxvit.files import cache_folder, replacing, require_space

Fit = Literal["crop", "stretch", "pad"]
"""How an image becomes a square of side `size`.

- crop: resize the short side to round(size * 256 / 224), then crop the central square; the ImageNet evaluation protocol, with the
  rounding of torchvision's Resize (the long side is cut to an integer) and CenterCrop (the offset is rounded half to even).
- stretch: resize both sides to `size`.
- pad: resize the long side to `size` and the short one to the nearest integer; the rest, at the bottom or the right, is 0.
"""


class Protocol(NamedTuple):
    """How image files become the squares that a model sees.

    Attributes:
        fit: how an image becomes a square.
        resample: the kernel.
        offset: how the offset of a crop becomes an integer: "half even" or "down".
        passes: how the two directions are resized: "x first", rounded to bytes after each, as Pillow did before version 13; "in one call"
            of the installed Pillow, which from version 13 on takes tall images along y first (no value differs by more than 1); or "in
            floats", rounded once, at the end.
    """

    fit: Fit
    resample: Image.Resampling = Image.Resampling.BICUBIC
    offset: Literal["half even", "down"] = "half even"
    passes: Literal["x first", "in one call", "in floats"] = "x first"

    def name(self, size: int) -> str:
        """Its name in protocol ids, with the side of the squares and, where one is cut out, the short side before it."""
        known = next((name for name, protocol in PROTOCOLS.items() if protocol == self and name != TORCHVISION), None)
        if known is None:
            return f"{self.fit} {size}"
        return f"{known} {_short_side(size)}/{size}" if self.fit == "crop" else f"{known} {size}"


TORCHVISION = "torchvision"
PROTOCOLS: dict[str, Protocol] = {
    TORCHVISION: Protocol("crop"),
    "hf_dino": Protocol("stretch", Image.Resampling.BILINEAR, passes="in one call"),
    "hf_dinov2": Protocol("crop", offset="down", passes="in one call"),
    "hf_dinov3": Protocol("stretch", Image.Resampling.BILINEAR, passes="in floats"),
}
"""Protocols of implementations: torchvision's evaluation, as in Meta's and timm's, and the image processors of Hugging Face.

- hf_dino: ViTImageProcessor as facebook/dino-* set it, by Pillow.
- hf_dinov2: BitImageProcessor as facebook/dinov2-* set it, by Pillow: torchvision's but for the offset of the crop.
- hf_dinov3: DINOv3ViTImageProcessor, which resizes floats and does not round them. Here they are rounded to bytes, which moves a pixel
  by half a step of 255 at most.
"""

DECODER_VERSION = 2  # raise it when the same file gives other pixels
_WHOLE = 2**26  # pixels of an intermediate image that are held at once
_LONG = 2**16  # pixels of its longest side: Pillow keeps a kernel for each


def load(
    paths: Sequence[ImageSource], size: int, fit: Fit | Protocol, cache: Path | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "n size size 3"], Float[np.ndarray, "n 2 3"]]:
    """Decode many images by `decode`, each once: later calls map the pixels from the cache.

    Args:
        paths: files, and images in files of many, which are read from their beginning to their end; names, sizes in bytes and times of
            change determine the entry of the cache.
        size: pixels of a side.
        fit: how an image becomes a square; a `Fit` alone is resampled as by torchvision.
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
        _write(pixels_file, affines_file, decode_all(paths, size, fit, max_pixels), (len(paths), size, size, 3))
        return _open(pixels_file, affines_file, (len(paths), size, size, 3))
    except OSError:
        images = np.empty((len(paths), size, size, 3), np.uint8)
        affines = np.empty((len(paths), 2, 3))
        for i, image, affine in decode_all(paths, size, fit, max_pixels):
            images[i], affines[i] = image, affine
        return images, affines


def decode(
    path: ImageSource, size: int, fit: Fit | Protocol, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "size size 3"], Float[np.ndarray, "2 3"]]:
    """Decode one image to a square of RGB pixels.

    Returns:
        Pixels, and the affine map from pixel coordinates (x, y, 1) of the upright original to (x, y) of the square; pixel centres are
        at integer + 0.5.

    Raises:
        ValueError: the file cannot be read as an image (`read_rgb`), a square of a pack was prepared otherwise, an unknown `fit` or a size
            below 1.
    """
    _check(size, fit)
    protocol = _protocol(fit)
    if isinstance(path, PackedImage):
        refuse_other_pack(path, size, protocol)
        return path.square()
    image = read_pixels(path, max_pixels)
    width, height = image.size
    left = top = 0
    if protocol.fit == "crop":
        short = _short_side(size)
        new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        left, top = ((side - size) // 2 if protocol.offset == "down" else round((side - size) / 2) for side in new)
    elif protocol.fit == "stretch":
        new = (size, size)
    else:
        new = (max(1, round(size * width / max(width, height))), max(1, round(size * height / max(width, height))))

    def resized(pixels: Image.Image) -> Image.Image:
        if protocol.passes == "in one call" and max(new[0] * height, width * new[1]) <= _WHOLE and max(new) <= _LONG:
            return pixels.resize(new, protocol.resample).crop((left, top, left + size, top + size))
        # the order matters, because 8 bits are kept between the two; but columns of hundreds of thousands of pixels lose their length first
        order = (0, 1) if new[0] * height <= _WHOLE or width >= height else (1, 0)
        for axis in order:
            pixels = _along(pixels, axis, new[axis], (left, top)[axis], size, protocol.resample)
        return pixels

    square = _rounded_once(image, resized) if protocol.passes == "in floats" else resized(image)
    affine = np.array([[new[0] / width, 0, -left], [0, new[1] / height, -top]], np.float64)
    return np.asarray(square.convert("RGB")), affine


def decode_all(
    paths: Sequence[ImageSource], size: int, fit: Fit | Protocol, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, UInt8[np.ndarray, "size size 3"], Float[np.ndarray, "2 3"]]]:
    """Decode many images by `decode`, in the order in which they are read fastest; yields the position of each in `paths` with it.

    Raises:
        ValueError: files cannot be read as images; all are named, once all have been read.
    """

    def decode_one(item: tuple[int, ImageSource]) -> tuple[int, np.ndarray, np.ndarray]:
        return (item[0], *decode(item[1], size, fit, max_pixels))

    return in_threads(decode_one, in_reading_order(paths), "decoding images", len(paths))


def refuse_other_pack(image: ImageSource, size: int, protocol: Protocol) -> None:
    """Check that an image, if it is a square of a pack, was prepared in this way.

    Raises:
        ValueError: it was not.
    """
    if not isinstance(image, PackedImage) or (size == image.size and protocol == PROTOCOLS[image.preprocess]):
        return
    has, asked = PROTOCOLS[image.preprocess].name(image.size), protocol.name(size)
    name = next((name for name, known in PROTOCOLS.items() if known == protocol), TORCHVISION)
    options = {"size": (image.size, size), "preprocess": (image.preprocess, name)}
    different = [entry for entry in options.items() if entry[1][0] != entry[1][1]]
    take = " ".join(f"--{'image-size' if option == 'size' else option} {packed}" for option, (packed, _) in different)
    again = " ".join(f"--{option} {wanted}" for option, (_, wanted) in different)
    raise ValueError(
        f'"{image.archive}" is a pack of "{has}", and "{asked}" is asked for; take what it has ({take}), or pack again ({again})'
    )


def _protocol(fit: Fit | Protocol) -> Protocol:
    return Protocol(fit) if isinstance(fit, str) else fit


def _short_side(size: int) -> int:
    """The short side of an image before a square of side `size` is cut out of it: 256 for 224."""
    return round(size * 256 / 224)


def _rounded_once(image: Image.Image, resized: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image resized channel by channel in floating point, and rounded to bytes."""
    channels = [np.asarray(resized(image.getchannel(i).convert("F"))) for i in range(len(image.getbands()))]
    return Image.merge(image.mode, [Image.fromarray(np.rint(channel).clip(0, 255).astype(np.uint8)) for channel in channels])


def _along(image: Image.Image, axis: int, new: int, start: int, size: int, resample: Image.Resampling) -> Image.Image:
    """Pixels `start` to `start + size` along an axis (0: x, 1: y) of the image resized to `new` along it.

    The whole axis is resized, and cropped after it, as the published evaluations do: `resize(box=...)` rounds the box to 32 bits, which
    changes one value in 250 by up to 17. Where that would take a great deal of memory (thin images), the image is cropped to the
    neighbourhood first; there the box is small, and its rounding moves no value by more than 1.
    """
    old, other = image.size[axis], image.size[1 - axis]

    def both(along: float, across: float) -> tuple[float, float]:
        return (along, across) if axis == 0 else (across, along)

    def resized(image: Image.Image, side: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        return image.resize((side, other) if axis == 0 else (other, side), resample, box=box)

    if new * other <= _WHOLE and new <= _LONG:
        return resized(image, new).crop((*both(start, 0), *both(start + size, other)))
    scale = old / new
    margin = math.ceil(2 * max(scale, 1)) + 1  # the bicubic kernel, the widest, reaches 2 pixels of the coarser grid
    first, last = max(0, math.floor(start * scale) - margin), min(old, math.ceil((start + size) * scale) + margin)
    near = image.crop((*both(first, 0), *both(last, other)))
    return resized(near, size, (*both(start * scale - first, 0), *both((start + size) * scale - first, other)))


def _check(size: int, fit: Fit | Protocol) -> None:
    if _protocol(fit).fit not in get_args(Fit):
        raise ValueError(f'unknown fit "{fit}"; choose one of {", ".join(get_args(Fit))}')
    if size < 1:
        raise ValueError(f"images of {size} pixels do not exist; use at least 1")


def _cache_key(paths: Sequence[ImageSource], size: int, fit: Fit | Protocol) -> str:
    """A hash of what determines the pixels; a file's content by its path, size in bytes and time of change."""
    protocol = _protocol(fit)
    how = protocol.fit if protocol == Protocol(protocol.fit) else f"{protocol} {PIL.__version__}"
    digest = hashlib.sha256(f"{DECODER_VERSION} {size} {how}\n".encode())
    missing = []
    for path in paths:
        try:
            entry = version(path)
        except OSError as error:
            missing.append(Refused(path, f"cannot be read as an image ({error.strerror})", "bring it back or take it out"))
            continue
        digest.update(f"{entry}\n".encode(errors="surrogateescape"))
    if missing:
        raise all_refused(missing, len(paths))
    return digest.hexdigest()[:32]


def _open(pixels_file: Path, affines_file: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    images, affines = np.load(pixels_file, mmap_mode="r"), np.load(affines_file)
    if (images.shape, images.dtype, affines.shape) != (shape, np.uint8, (shape[0], 2, 3)):
        raise ValueError(f"{pixels_file} holds arrays of another shape or type")
    return images, affines


def _write(
    pixels_file: Path, affines_file: Path, decoded: Iterator[tuple[int, np.ndarray, np.ndarray]], shape: tuple[int, int, int, int]
) -> None:
    """Write images, each at its position, into temporary files, which are renamed once all are complete; the pixels last, because their
    presence marks a whole entry.

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
            start = file.tell()
            for i, image, affine in decoded:
                file.seek(start + i * image.nbytes)
                file.write(image.tobytes())
                affines[i] = affine
        with new_affines.open("wb") as file:
            np.save(file, affines)
