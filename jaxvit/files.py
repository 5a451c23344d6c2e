"""Shared by everything that writes files: the cache folder, free space, hashes, and atomic replacement of files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_OVERHEAD = 2**20  # bytes for descriptions and manifests beside the data
_STALE = 24 * 3600  # seconds after which an untouched temporary folder belongs to no running process
_REMOTE = re.compile(r"([A-Za-z][\w+.-]+):/+")  # also "gs:/", which `Path` makes of "gs://"; one letter is a drive of Windows
_COPY = {"gs": "gcloud storage cp -r", "s3": "aws s3 cp --recursive", "hf": "hf download", "http": "curl -LO", "https": "curl -LO"}


def cache_folder() -> Path:
    """The folder of cached checkpoints, decoded images and compiled programs.

    It is named by the environment variable JAXVIT_CACHE; by default it is `~/.cache/jaxvit`.

    Raises:
        ValueError: the variable names a remote folder.
    """
    folder = os.environ.get("JAXVIT_CACHE") or "~/.cache/jaxvit"
    try:
        refuse_remote(folder)
    except ValueError as error:
        raise ValueError(f"the environment variable JAXVIT_CACHE names the cache, but {error}") from error
    return Path(folder).expanduser()


def refuse_remote(path: str | os.PathLike[str]) -> None:
    """Check that `path` can be on this machine: a `pathlib.Path` takes "gs://bucket" for a local folder "gs:" and would make it.

    Raises:
        ValueError: it is an address, for example of a bucket (gs://, s3://) or of the web (https://).
    """
    text = os.fspath(path)
    if remote := _REMOTE.match(text):
        scheme = remote[1].lower()
        if scheme == "file":
            raise ValueError(f'"{text}" is an address, and files are named by their path; pass "/{text[remote.end() :]}"')
        copy = f" ({_COPY[scheme]})" if scheme in _COPY else ""
        raise ValueError(
            f'"{remote[1]}://{text[remote.end() :]}" is remote, and only local files and folders are read and written: to read it, copy it '
            f"to a local folder first{copy}; to write there, write to a local folder and copy that afterwards"
        )


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


def sweep(folder: Path) -> None:
    """Clean up after processes that were killed while they replaced `folder`, by what `sibling` names.

    A folder that was moved away for a new one is moved back if the new one never came; what has not been touched for a day is
    removed.
    """
    moved, unfinished = (list(folder.parent.glob(f".{glob.escape(folder.name)}.*.{kind}")) for kind in ("old", "tmp"))
    for old in moved:
        if not folder.exists():
            with contextlib.suppress(OSError):  # the process that moved it was faster
                old.rename(folder)
    for leftover in (*moved, *unfinished):
        with contextlib.suppress(FileNotFoundError):  # its process removes it at the same time
            if time.time() - _last_written(leftover) > _STALE:
                shutil.rmtree(leftover, ignore_errors=True)


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
        temporary.write_text(text, encoding="utf-8")


def _last_written(folder: Path) -> float:
    """When a folder or anything in it was last written, in seconds since the epoch."""
    entries = [os.path.join(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files)]
    return max(os.path.getmtime(entry) for entry in (str(folder), *entries))
