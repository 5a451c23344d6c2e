"""Which image files a folder holds, by names that are equal where they look equal; what else lies there is named, and nothing is lost.

File systems write an accented letter as one character or as two (Unicode's forms NFC and NFD): names are compared in NFC.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from experiments.datasets.reading import named

ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".jp2", ".j2k", ".tga", ".avif"),
    )
)
"""Endings of the names of image files, in lower case; upper case counts too."""


def is_image(path: Path) -> bool:
    """Whether a file is an image by its ending."""
    return path.suffix.lower() in ENDINGS and path.is_file()


def existing_folder(path: Path) -> Path:
    """The path of a folder that exists, with `~` expanded.

    Raises:
        ValueError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f'"{path}" is a file; name a folder (an archive must be unpacked first)')
    raise ValueError(f'there is no folder "{path}"; name one that exists')


def visible(folder: Path) -> list[Path]:
    """Files and folders that are not hidden, sorted by name.

    Raises:
        ValueError: the folder may not be read.
    """
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: equal_name(path.name))
    except OSError as error:
        raise _closed(folder, error) from error


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and in the folders below it, also linked ones, sorted by name; hidden ones are left out.

    Raises:
        ValueError: a folder may not be read, a link to an image points nowhere, or two names look equal.
    """
    files: dict[str, Path] = {}
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    refused: list[OSError] = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refused.append):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent) / name for name in names if not name.startswith(".")):
            name = equal_name(path.relative_to(folder).as_posix())
            if files.setdefault(name, path) != path:
                raise ValueError(f'"{folder}" has two files whose names look equal, {name} (in NFC and in NFD); remove or rename one')
    if refused:
        raise _closed(Path(refused[0].filename), refused[0]) from refused[0]
    paths = [path for _, path in sorted(files.items())]
    if dangling := [path for path in paths if path.is_symlink() and not path.exists() and path.suffix.lower() in ENDINGS]:
        raise ValueError(f"{len(dangling)} links to images point nowhere: {_quoted(dangling)}; bring their files back, or remove them")
    return paths


def images_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images in a folder and in those below it, and all other files there.

    Raises:
        ValueError: as in `files_below`.
    """
    paths = files_below(folder)
    images = [path for path in paths if is_image(path)]
    return images, sorted(set(paths) - set(images))


def by_name(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by their names relative to the folder, without endings.

    Raises:
        ValueError: two have the same name but for the ending.
    """
    files: dict[str, Path] = {}
    for path in paths:
        name = equal_name(path.relative_to(folder).with_suffix("").as_posix())
        if files.setdefault(name, path) != path:
            raise ValueError(f'"{files[name]}" and "{path}" have the same name but for the ending; remove one')
    return files


def find(folder: Path, *names: str) -> Path:
    """The file or folder of these names, one below the other, whose own names may be in another form of Unicode."""
    path = folder
    for name in names:
        step = path / name
        if not step.exists() and path.is_dir():
            step = next((other for other in visible(path) if equal_name(other.name) == equal_name(name)), step)
        path = step
    return path


def equal_name(name: str) -> str:
    """The name in Unicode's form NFC, in which names that look equal are equal."""
    return unicodedata.normalize("NFC", name)


def left_out_note(left_out: Iterable[Path], folder: Path) -> tuple[str, ...]:
    """A line for a study's notes about files that are no images by their endings; none if there is no such file. Notes stand on a page
    that others read: they hold no paths of this machine."""
    names = [path.relative_to(folder).as_posix() for path in left_out]
    line = f'folder "{folder.name}" has {len(names)} files that are no images by their endings and were left out: {named(names)}'
    return (line,) if names else ()


def _quoted(paths: Iterable[Path]) -> str:
    return named((f'"{path}"' for path in paths), 20)


def _closed(folder: Path, error: OSError) -> ValueError:
    return ValueError(f'folder "{folder}" cannot be read ({error.strerror}); give yourself the right to read it')
