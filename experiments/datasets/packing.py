"""Making a pack (`packs`): every image is decoded once, by the one decoder. Killed at any moment, the same call goes on from there, to the
same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int

import jaxvit
from experiments.datasets.images import DECODER_VERSION, PROTOCOLS, TORCHVISION, decode
from experiments.datasets.labels import ImageList
from experiments.datasets.packs import FORMAT, LABELS, MANIFEST, NAMES, UNFINISHED, is_pack, read_pack
from experiments.datasets.parts import stratified_order
from experiments.datasets.plausibility import refuse_blank
from experiments.datasets.reading import MAX_PIXELS, Refused, all_refused, in_threads
from experiments.datasets.splits import images_by_split
from experiments.datasets.stored import AFFINES, SQUARES, ImageSource, in_reading_order, reading_order, version
from jaxvit.files import file_hash, replacing, write_text

_DONE = "done.txt"  # a line for every chunk that is on disk: its number, and what tells its content
_CHUNK = 256  # images between two lines
_OVERHEAD = 2**24  # bytes beside the images that stay free
_NAMED_BYTES = 200  # of an image: its name and its label


@dataclass(frozen=True)
class PackOptions:
    """How images are packed: as a study with these options prepares them.

    Attributes:
        size: pixels of a side.
        preprocess: how files of images become squares: a name in `images.PROTOCOLS`.
        limit: pack this many images, drawn by class; by default all.
        seed: of that draw.
        label: column or field of the classes, where a table or an archive has several.
        max_pixels: of the largest image file that is read.
        keep_blank: accept images of one colour.
    """

    size: int = 224
    preprocess: str = TORCHVISION
    limit: int | None = None
    seed: int = 0
    label: str = ""
    max_pixels: int = MAX_PIXELS
    keep_blank: bool = False

    def __post_init__(self) -> None:
        for name, least in {"size": 1, "limit": 2, "seed": 0, "max_pixels": 1}.items():
            if (number := getattr(self, name)) is not None and number < least:
                raise ValueError(f"--{name.replace('_', '-')} is {number}; give at least {least}")


class Packing:
    """One pack that is being made.

    Args:
        root: what `splits.images_by_split` reads.
        out: folder of the pack.

    Raises:
        ValueError: there are no images, `out` lies among them or holds something else, or the disk has no space for them.
    """

    def __init__(self, root: Path, out: Path, options: PackOptions):
        root, self.out, self.options = root.expanduser(), out.expanduser(), options
        if is_pack(root):
            raise ValueError(f'"{root}" is a pack already; name the folder of the original images')
        if self.out.resolve().is_relative_to(root.resolve()):
            raise ValueError(f'"{out}" lies in the folder of the images; choose an --out outside it')
        listed, notes = _limited(images_by_split(root, options.label), options)
        first = next(iter(listed.values()))
        self.sources: list[ImageSource] = [source for members in listed.values() for source in members.paths]
        self.labels = np.concatenate([members.labels for members in listed.values()])
        self.names = [f"{source.parent.name}/{source.name}" for source in self.sources]
        self.notes = (*(line for members in listed.values() for line in members.notes), *notes)
        protocol = PROTOCOLS[options.preprocess]
        self.identity: dict[str, Any] = {
            "format": FORMAT,
            "source": root.resolve().name,
            "size": options.size,
            "preprocess": options.preprocess,
            "protocol": protocol.name(options.size),
            "keep_blank": options.keep_blank,
            "decoder": DECODER_VERSION,
            "count": len(self.sources),
            "splits": {part: len(members.paths) for part, members in listed.items()},
            "classes": list(first.classes),
            "images": hashlib.sha256(json.dumps([self.names, self.labels.tolist()]).encode()).hexdigest()[:20],
        }
        self._order = reading_order(self.sources)
        self._done = self._begin()
        self._require_space()

    @property
    def bytes_of_image(self) -> int:
        """What an image takes on disk."""
        return 3 * self.options.size**2 + 8 * 6 + _NAMED_BYTES

    @property
    def finished(self) -> bool:
        """Whether the pack is there."""
        return (self.out / MANIFEST).is_file()

    @property
    def left(self) -> int:
        """Number of images that are not on disk yet."""
        return sum(len(self._chunk(number)) for number in self._left())

    def write(self) -> Iterator[str]:
        """Decode and write the images that are left; yields where the next one comes from, after each.

        Raises:
            ValueError: images cannot be read or show nothing; all are named once all others are on disk.
            OSError: the disk is full.
        """
        if self.finished:
            return
        left = self._left()
        positions = [position for number in left for position in self._chunk(number)]
        sources = [self.sources[position] for position in positions]
        refused: list[Refused] = []
        side = self.options.size
        with (
            _ArrayFile(self.out / SQUARES, (len(self.sources), side, side, 3), "|u1") as squares,
            _ArrayFile(self.out / AFFINES, (len(self.sources), 2, 3), "<f8") as affines,
            (self.out / _DONE).open("a") as done,
        ):
            ends, bad = np.cumsum([len(self._chunk(number)) for number in left]), False
            decoded = in_threads(self._decode, in_reading_order(sources), "", len(sources))
            for count, (index, result) in enumerate(decoded, 1):
                if isinstance(result, Refused):
                    refused.append(result)
                    bad = True
                else:
                    squares.put(positions[index], result[0])
                    affines.put(positions[index], result[1])
                chunk = int(np.searchsorted(ends, count))
                if count == ends[chunk]:
                    squares.sync()
                    affines.sync()
                    if not bad:
                        done.write(f"{left[chunk]} {self._fingerprint(left[chunk])}\n")
                        done.flush()
                    bad = False
                yield sources[index].parent.name
        if refused:
            raise all_refused(refused, len(self.sources))

    def finish(self) -> None:
        """Write labels, names and, last, the manifest, once all images are on disk."""
        if self.finished:
            return
        with replacing(self.out / LABELS) as path, path.open("wb") as file:
            np.save(file, self.labels)
        write_text(self.out / NAMES, json.dumps(self.names))
        files = (SQUARES, AFFINES, LABELS, NAMES)
        manifest = {
            **self.identity,
            "notes": list(self.notes),
            "versions": {"jaxvit": jaxvit.__version__, "pillow": PIL.__version__},
            "bytes": {name: (self.out / name).stat().st_size for name in files},
            "sha256": {name: file_hash(self.out / name) for name in files},
        }
        write_text(self.out / MANIFEST, json.dumps(manifest, indent=1))
        for name in (UNFINISHED, _DONE):
            (self.out / name).unlink(missing_ok=True)

    def _begin(self) -> dict[int, str]:
        """Create the folder, or check that it holds this pack; returns the chunks that are on disk."""
        if self.finished:
            self._refuse_other(read_pack(self.out))
            return {}
        if (self.out / UNFINISHED).is_file():
            try:
                stored = json.loads((self.out / UNFINISHED).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f'"{self.out / UNFINISHED}" cannot be read ({error}); remove the folder, and pack again') from error
            self._refuse_other(stored)
            return self._read_done()
        if self.out.exists() and (not self.out.is_dir() or any(not path.name.startswith(".") for path in self.out.iterdir())):
            raise ValueError(f'"{self.out}" exists and holds no pack; choose another --out')
        return {}

    def _refuse_other(self, stored: Mapping[str, Any]) -> None:
        different = [name for name, entry in self.identity.items() if stored.get(name) != entry]
        if different:
            state = "a pack" if self.finished else "an unfinished pack"
            raise ValueError(
                f'"{self.out}" holds {state} that differs in {", ".join(different)}; choose another --out, or remove the folder'
            )

    def _read_done(self) -> dict[int, str]:
        try:
            lines = [line.split() for line in (self.out / _DONE).read_text().split("\n")[:-1]]  # the last one may be cut
            size = (self.out / SQUARES).stat().st_size
        except OSError:
            return {}
        done = {int(line[0]): line[1] for line in lines if len(line) == 2 and line[0].isdigit()}
        side = 3 * self.options.size**2
        whole = all((max(self._chunk(number), default=0) + 1) * side <= size for number in done)
        return {number: mark for number, mark in done.items() if mark == self._fingerprint(number)} if whole else {}

    def _require_space(self) -> None:
        """Check that the disk has space for what is left, then mark the folder as one that is being written.

        Raises:
            ValueError: it has not; the message has the number of images that fit.
        """
        if self.finished:
            return
        existing = next(folder for folder in (self.out.absolute(), *self.out.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free - _OVERHEAD
        if free < self.left * self.bytes_of_image:
            fits = max(0, free) // self.bytes_of_image + len(self.sources) - self.left
            fits -= fits % (100 if fits > 1000 else 1)
            remedy = f"--limit {fits} fits, or" if fits > 1 else "not even two images fit:"
            need, have = gigabytes(self.left * self.bytes_of_image), gigabytes(max(0, free))
            raise ValueError(f'"{self.out}" needs {need} for {self.left:,} images, free are {have}; {remedy} choose another --out')
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / UNFINISHED, json.dumps(self.identity))

    def _decode(self, item: tuple[int, ImageSource]) -> tuple[int, tuple[np.ndarray, np.ndarray] | Refused]:
        index, source = item
        options = self.options
        try:
            pixels, affine = decode(source, options.size, PROTOCOLS[options.preprocess], options.max_pixels)
            if not options.keep_blank:
                refuse_blank(pixels[None], [source])
        except Refused as error:
            return index, error
        return index, (pixels, affine)

    def _chunk(self, number: int) -> list[int]:
        """Positions of the images of a chunk, in the order in which they are read."""
        return self._order[number * _CHUNK : (number + 1) * _CHUNK]

    def _left(self) -> list[int]:
        return [number for number in range(-(-len(self.sources) // _CHUNK)) if number not in self._done] if not self.finished else []

    def _fingerprint(self, number: int) -> str:
        """What tells that the files of a chunk are still those that were read, by a decoder that gives the same pixels."""
        versions = "\n".join(version(self.sources[i], moved=True) for i in self._chunk(number))
        return hashlib.sha256(f"{PIL.__version__}\n{versions}".encode(errors="surrogateescape")).hexdigest()[:20]


def gigabytes(size: float) -> str:
    """A number of bytes as people read it."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


class _ArrayFile:
    """A file of a .npy array whose entries are written one by one, at their positions; what is there stays.

    It is written, not mapped: a full disk raises OSError on a write, but kills the process on an access to mapped memory.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str):
        self._path = path
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # which never cuts off what another process wrote
        self._dtype = np.dtype(dtype)
        np.lib.format.write_array_header_1_0(self._file, {"descr": dtype, "fortran_order": False, "shape": shape})
        self._start, self._entry = self._file.tell(), int(np.prod(shape[1:])) * self._dtype.itemsize

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, position: int, entry: np.ndarray) -> None:
        with self._named():
            self._file.seek(self._start + position * self._entry)
            self._file.write(entry.astype(self._dtype).tobytes())

    def sync(self) -> None:
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error of a write does not say of which file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self._path)) from error


def _limited(listed: Mapping[str, ImageList], options: PackOptions) -> tuple[dict[str, ImageList], list[str]]:
    """As many images as `limit` says, of every split its share, drawn so that every class has its own; and a line that says so.

    Raises:
        ValueError: a class would be left without an image.
    """
    total = sum(len(members.paths) for members in listed.values())
    if options.limit is None or options.limit >= total:
        return dict(listed), []
    chosen, before = {}, 0
    for part, members in listed.items():
        end = before + len(members.paths)
        count = options.limit * end // total - options.limit * before // total
        before = end
        indices: Int[np.ndarray, "images"] = np.sort(stratified_order(members.labels, options.seed)[:count])
        chosen[part] = members._replace(paths=_taken(members.paths, indices), labels=members.labels[indices])
        if members.classes and len(present := np.unique(chosen[part].labels)) < len(members.classes):
            lost = len(members.classes) - len(present)
            raise ValueError(
                f"--limit {options.limit} leaves {lost} of {len(members.classes)} classes of {members.place} no image; raise it"
            )
    return chosen, [f"{options.limit:,} of {total:,} images were packed (--limit), drawn by class with seed {options.seed}"]


def _taken(paths: Sequence[ImageSource], indices: Int[np.ndarray, "images"]) -> list[ImageSource]:
    return [paths[i] for i in indices]
