"""One file of a user to upright pixels, to labels or to text, or one line that says why not and what to do.

Rules for pixels of more than 8 bits: integers are divided by the largest number of their bits (65535, or 4095 where a TIFF says that its
samples have 12 bits), numbers from 0 to 1 in floating point are multiplied by 255, both rounded. What has no stated range is refused.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.datasets.stored import ImageSource

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is read unless a larger bound is given: a quarter of a gigabyte in three bytes each, as in Pillow."""

IGNORE = 255
"""Label of the mask pixels that no metric counts."""

BAR_DELAY = 3.0
"""Seconds of work before a progress bar is shown."""

_CHUNK = 64  # items that are under way at once
_NAMED = 20  # files that one message names
_TWELVE_BIT = 4096  # values below this in 16 bits come from sensors of 12 bits or fewer, and would look black
_REPLACE = "replace the file or take it out"
_BITS_PER_SAMPLE, _IMAGE_WIDTH, _IMAGE_LENGTH = 258, 256, 257  # tags of TIFF

Item = TypeVar("Item")
Result = TypeVar("Result")


class Refused(ValueError):
    """A file that cannot be used.

    Args:
        path: the file, or the image in one of many.
        reason: what is wrong with it, as it stands after its name.
        remedy: what to do.
        kind: what the file is, before its name; may be empty.
    """

    def __init__(self, path: ImageSource, reason: str, remedy: str, kind: str = "") -> None:
        self.fault, self.remedy = f'{kind} "{path}" {reason}'.lstrip(), remedy
        super().__init__(f"{self.fault}; {remedy}")


def read_rgb(path: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a file as an 8-bit RGB image, upright as its EXIF orientation says.

    Grey, palette, CMYK, 16-bit and floating-point pixels are converted; transparent ones are blended over white. Colour profiles are not
    applied.

    Raises:
        ValueError: the file is missing, cut short, no image or an animation, has more than `max_pixels`, or numbers whose full range
            it does not state.
    """
    return read_pixels(path, max_pixels).convert("RGB")


def read_pixels(path: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `read_rgb`, but an image without colours stays in grey, which takes a quarter of the memory."""
    with _opened(path, max_pixels) as opened:
        if getattr(opened, "is_animated", False) and opened.format != "MPO":  # a photo with a preview of itself
            frames = getattr(opened, "n_frames", "several")
            raise Refused(path, f"has {frames} frames", "save the one that you mean as an image of its own")
        bits = _bits(opened)
        image = _upright(opened)
        if image.mode == "F" or image.mode.startswith("I"):
            return _eight_bits(path, image, bits)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("L" if image.mode in ("1", "L") else "RGB")


def read_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read the height and width of the upright image from the file's header.

    Raises:
        ValueError: the file is missing, no image or has more than `max_pixels`.
    """
    with _opened(path, max_pixels) as opened:
        width, height = opened.size
        if isinstance(opened, TiffImageFile):  # some versions of Pillow turn the size of these when they open one
            width, height = (opened.tag_v2[tag] for tag in (_IMAGE_WIDTH, _IMAGE_LENGTH))
        return (width, height) if orientation(opened) >= 5 else (height, width)


def read_mask(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width"]:
    """Read the labels of one mask as they are in the file, upright: a palette's indices or grey values. They are not read as RGB, because
    two labels may have the same colour.

    Raises:
        ValueError: the file cannot be read, has colours instead of labels, or labels outside 0 to 255.
    """
    with _opened(path, max_pixels) as opened:
        image = _upright(opened)
        mode, labels = image.mode, np.asarray(image)
    if labels.ndim != 2 or mode == "F":
        raise Refused(path, f"has colours ({mode}), not one label a pixel", "save it with a palette or in grey", "mask")
    if labels.max(initial=0) > IGNORE or labels.min(initial=0) < 0:
        labelled = f"has labels from {labels.min()} to {labels.max()}"
        raise Refused(path, labelled, f"number them from 0 to {IGNORE} ({IGNORE}: ignored)", "mask")
    return labels.astype(np.uint8)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, or in UTF-16 or UTF-32 with one.

    Raises:
        ValueError: the file cannot be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Refused(path, f"cannot be read ({error.strerror})", _REPLACE) from error
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Refused(path, f"is not text in UTF-8 (byte 0x{content[error.start]:02x} in line {line})", "save it in UTF-8") from error


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; from 5 on, width and height are swapped."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data do not make the pixels unreadable
        return 1


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Result]:
    """Map a function over items by a pool of threads; yields results in order and holds few of them. On a terminal, work of more than
    `BAR_DELAY` seconds shows a progress bar named `label`, unless that is empty.

    Args:
        total: number of items, where they are made one by one.

    Raises:
        ValueError: the function refuses files; all of them are named at once, once all have been read.
    """
    if total is None:
        items = items if isinstance(items, Sized) else list(items)
        total = len(items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, start_time = bar.add_task(label, total=total), time.monotonic()
    refused: list[Refused] = []

    def attempt(item: Item) -> Result | Refused:
        try:
            return function(item)
        except Refused as error:
            return error

    def results(pool: ThreadPoolExecutor) -> Iterator[Result | Refused]:
        under_way: deque[Future[Result | Refused]] = deque()
        for item in items:  # the next ones are read while the threads are at work
            under_way.append(pool.submit(attempt, item))
            if len(under_way) >= _CHUNK:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    try:
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for number, result in enumerate(results(pool), 1):
                if isinstance(result, Refused):
                    refused.append(result)
                elif not refused:
                    yield result
                bar.advance(task)
                if label and not number % _CHUNK and bar.console.is_terminal and time.monotonic() - start_time > BAR_DELAY:
                    bar.start()  # a second start does nothing
    finally:
        if bar.live.is_started:
            bar.stop()
    if refused:
        raise all_refused(refused, total)


def all_refused(refused: list[Refused], total: int) -> ValueError:
    """One error for several files, grouped by what to do about them.

    Args:
        total: number of files, of which these were refused.
    """
    if len(refused) == 1:
        return refused[0]
    by_remedy: dict[str, list[str]] = {}
    for refusal in refused[:_NAMED]:
        by_remedy.setdefault(refusal.remedy, []).append(refusal.fault)
    groups = [f"{', '.join(names)}: {remedy}" for remedy, names in by_remedy.items()]
    more = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    return ValueError(f"{len(refused)} of {total} files cannot be used: {'; '.join(groups)}{more}")


class _NoOwnBound:
    """A context in which Pillow has no bound on pixels of its own, which is one number for the whole process: the first thread that enters
    takes it away, the last one that leaves sets it again."""

    def __init__(self) -> None:
        self.lock, self.threads, self.bound = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self.lock:
            if not self.threads:
                self.bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.threads += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.threads -= 1
            if not self.threads:
                Image.MAX_IMAGE_PIXELS = self.bound


_NO_OWN_BOUND = _NoOwnBound()


@contextlib.contextmanager
def _opened(path: ImageSource, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header has been read.

    Raises:
        ValueError: as in `read_rgb`; whatever goes wrong inside the context is also the file's.
    """
    try:
        with _NO_OWN_BOUND, Image.open(path if isinstance(path, Path) else io.BytesIO(path.read())) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                size = f"has {width} x {height} = {width * height:,} pixels, more than {max_pixels:,}"
                raise Refused(path, size, f"raise the bound if memory allows it (--max-pixels {width * height}), or make it smaller")
            yield opened
    except Refused:
        raise
    except UnidentifiedImageError as error:
        count = path.stat().st_size if isinstance(path, Path) else len(path.read())
        content = "in no image format that is known here" if count else "empty"
        raise Refused(path, f"cannot be read as an image (it is {content})", _REPLACE) from error
    except Exception as error:  # PIL raises many kinds on damaged files
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Refused(path, f"cannot be read as an image ({reason[:200]})", _REPLACE) from error


def _upright(opened: Image.Image) -> Image.Image:
    """The pixels, turned as the orientation says: of a TIFF, Pillow does so as it reads them, and takes the tag away."""
    opened.load()
    return ImageOps.exif_transpose(opened) if orientation(opened) != 1 else opened


def _bits(opened: Image.Image) -> int:
    """Bits of a sample of an image of one channel, as far as they matter here: 32 where the full range is not known."""
    if isinstance(opened, TiffImageFile):
        bits: int = opened.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0]
        return 32 if opened.mode == "I" else bits  # signed, or of 32 bits
    return 16


def _eight_bits(path: ImageSource, image: Image.Image, bits: int) -> Image.Image:
    """Whole or floating-point numbers as 8-bit grey, by the rules at the top."""
    values = np.asarray(image)
    low, high = values.min(initial=0), values.max(initial=0)
    numbers = f"floating-point numbers from {low:.4g} to {high:.4g}" if image.mode == "F" else f"whole numbers from {low} to {high}"
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # nor NaN
            raise Refused(path, f"has {numbers}, not from 0 to 1", "divide them by their full range, or save 8-bit pixels")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    if bits > 16 or low < 0 or high > 65535:
        raise Refused(path, f"has {numbers} and does not say which is white", "save it with 8 bits, or with the full range of 16")
    if bits == 16 and high < _TWELVE_BIT:
        remedy = "multiply them to the full range of 16 bits (by 16 if they have 12), or save 8-bit pixels"
        raise Refused(path, f"has {numbers} in 16 bits, which look black", remedy)
    return Image.fromarray(np.round(values.astype(np.float64) * (255 / (2**bits - 1))).astype(np.uint8))


def named(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = iter(names)
    first, rest = list(itertools.islice(names, count)), sum(1 for _ in names)
    return ", ".join(first) + (f" and {rest} more" if rest else "")
