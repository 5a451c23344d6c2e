"""Shared by everything that writes files: the cache folder, free space, hashes, and atomic replacement of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_OVERHEAD = 2**20  # bytes for descriptions and manifests beside the data


def cache_folder() -> Path:
    """The folder of cached checkpoints, decoded images and compiled programs.

    It is named by the environment variable JAXVIT_CACHE; by default it is `~/.cache/jaxvit`.
    """
    return Path(os.environ.get("JAXVIT_CACHE") or "~/.cache/jaxvit").expanduser()


def file_hash(file: Path) -> str:
    """The SHA-256 of a file's bytes, as hex digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def require_space(path: Path, size: int) -> None:
    """Check that there is space for `size` bytes where `path` is to be written.

    Raises:
        ValueError: there is not.
    """
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < size + _OVERHEAD:
        raise ValueError(f'no space left for "{path}": it takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free in {existing}')


def sibling(path: Path, kind: str) -> Path:
    """An unused hidden name in the same folder that ends in `.kind`; being on the same file system, it can be renamed atomically."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{kind}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends, and is removed if the block raises an error."""
    temporary = sibling(path, "tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: at any moment it has either its old content or all of the new."""
    with replacing(path) as temporary:
        temporary.write_text(text)
