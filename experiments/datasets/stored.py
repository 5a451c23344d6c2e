"""Images that lie in files of many: rows of parquet files, members of tar files, decoded squares of a pack. They are read where they lie;
nothing is unpacked to disk."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

SQUARES, AFFINES = "images.npy", "affines.npy"
"""Files of a pack: uint8 [images, size, size, 3] and float64 [images, 2, 3]."""

_ROWS = 64  # of a row group that are in memory at once: some writers put a whole file into one group


@dataclass(frozen=True, slots=True)
class Stored:
    """An image in a file of many.

    Attributes:
        archive: the file.
        place: where in it: the first byte of a member, or the number of a row.
        name: of the image, for messages.
        content: its bytes, where they have been read already.
    """

    archive: Path
    place: int
    name: str
    content: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def parent(self) -> Path:
        return self.archive

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """The bytes of the image file.

        Raises:
            OSError: they cannot be read.
        """
        if self.content is None:
            raise OSError("it holds no bytes")
        return self.content


@dataclass(frozen=True, slots=True)
class TarImage(Stored):
    """A member of a tar file, `length` bytes from `place` on."""

    length: int = 0

    def read(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.place)
            content = file.read(self.length)
        if len(content) < self.length:
            raise OSError(f'"{self.archive.name}" is cut short')
        return content


@dataclass(frozen=True, slots=True)
class ParquetImage(Stored):
    """A row of a parquet file; the bytes are in `column`, or in the field `bytes` of it: "image.bytes"."""

    column: str = ""

    def read(self) -> bytes:
        content = self.content if self.content is not None else next(_contents(self.archive, self.column, [self.place]))
        if content is None:
            raise OSError("its row has no bytes: the data set names files outside the table")
        return content


@dataclass(frozen=True, slots=True)
class PackedImage(Stored):
    """A decoded square of a pack (`packs`), the folder `archive`; `place` is its number there.

    Attributes:
        preprocess: name of the protocol in `images.PROTOCOLS` that it was prepared by.
        size: pixels of a side.
        sha256: of the squares of the pack.
    """

    preprocess: str = ""
    size: int = 0
    sha256: str = ""

    def read(self) -> bytes:
        return b"P6 %d %d 255\n" % (self.size, self.size) + self.square()[0].tobytes()  # a file in the format PPM

    def square(self) -> tuple[UInt8[np.ndarray, "size size 3"], Float[np.ndarray, "2 3"]]:
        """Its pixels, and the affine map from the original image to them."""
        pixels, affines = _mapped(self.archive)
        return np.array(pixels[self.place]), affines[self.place]


ImageSource: TypeAlias = Path | Stored
"""A file of its own, or an image in a file of many."""


def version(source: ImageSource, moved: bool = False) -> str:
    """What tells the content of an image without reading it: the path, size in bytes and time of change of its file, and its place there.

    Args:
        moved: leave out the folder of the file.

    Raises:
        OSError: the file is not there.
    """
    if isinstance(source, PackedImage):
        return f"{source.sha256}\0{source.place}"
    path = source.archive if isinstance(source, Stored) else source
    stat = path.stat()
    file = f"{path.name if moved else os.fspath(path.absolute())}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return f"{file}\0{source.place}" if isinstance(source, Stored) else file


def name_and_size(source: ImageSource) -> tuple[str, int]:
    """A name and a size in bytes, which differ where images do, and not between copies of one."""
    if isinstance(source, PackedImage):
        return f"{source.sha256}/{source.place}", source.size
    if isinstance(source, Stored):
        return f"{source.archive.name}/{source.place}/{source.name}", source.archive.stat().st_size
    return source.name, source.stat().st_size


def reading_order(sources: Sequence[ImageSource]) -> list[int]:
    """Positions of images in the order in which they are read fastest: archive after archive, each from its beginning to its end. Files
    of their own stay in the order that is given."""

    def place(number: int) -> tuple[str, int]:
        source = sources[number]
        return (os.fspath(source.archive), source.place) if isinstance(source, Stored) else ("", 0)

    return sorted(range(len(sources)), key=place)


def in_reading_order(sources: Sequence[ImageSource]) -> Iterator[tuple[int, ImageSource]]:
    """Images with their positions in `sources`, in `reading_order`; rows of parquet files come with their bytes.

    Raises:
        ValueError: a parquet file cannot be read.
    """
    for _, group in itertools.groupby(reading_order(sources), key=lambda number: getattr(sources[number], "archive", None)):
        numbers = list(group)
        first = sources[numbers[0]]
        if not isinstance(first, ParquetImage):
            yield from ((number, sources[number]) for number in numbers)
            continue
        rows = [getattr(sources[number], "place", 0) for number in numbers]
        for number, content in zip(numbers, _contents(first.archive, first.column, rows), strict=True):
            source = sources[number]
            assert isinstance(source, ParquetImage)
            yield number, replace(source, content=content)


def parquet() -> ModuleType:
    """pyarrow's reader of parquet files.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files are read by pyarrow, which is not installed; pip install -e '.[parquet]'") from error
    return pyarrow.parquet


@functools.lru_cache(maxsize=4)
def _mapped(pack: Path) -> tuple[np.ndarray, np.ndarray]:
    """Squares and affine maps of a pack, mapped from disk."""
    return np.load(pack / SQUARES, mmap_mode="r"), np.load(pack / AFFINES, mmap_mode="r")


def _contents(archive: Path, column: str, rows: Sequence[int]) -> Iterator[bytes | None]:
    """The bytes of ascending rows of a parquet file, read a row group after the other; None where there are none."""
    library = parquet()
    try:
        with library.ParquetFile(archive) as file:
            end = 0
            for group in range(file.num_row_groups):
                start, end = end, end + file.metadata.row_group(group).num_rows
                wanted = rows[bisect.bisect_left(rows, start) : bisect.bisect_left(rows, end)]
                if not wanted:
                    continue
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[column]):
                    values = batch.column(0)
                    values = values.field("bytes") if "." in column else values
                    inside = wanted[bisect.bisect_left(wanted, start) : bisect.bisect_left(wanted, start + len(values))]
                    yield from (values[row - start].as_py() for row in inside)
                    start += len(values)
                    if start > wanted[-1]:
                        break
    except GeneratorExit:
        raise
    except Exception as error:  # pyarrow raises many kinds on damaged files
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f'"{archive}" cannot be read ({reason[:200]}); get the file again') from error
