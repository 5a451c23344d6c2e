"""Results as cells: each is addressed by the hash of what determines it, and is either whole on disk or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Key = Mapping[str, Any]
FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """A finished piece of a study.

    Attributes:
        hash: of the key.
        key: everything that determines the numbers.
        rows: one dictionary per number (a line of `results.jsonl`).
        provenance: device, versions, time, duration; not part of the key.
        arrays: per-example contributions and maps.
    """

    hash: str
    key: dict[str, Any]
    rows: list[dict[str, Any]]
    provenance: dict[str, Any]
    arrays: dict[str, np.ndarray]


def cell_hash(key: Key) -> str:
    """SHA-256 (first 20 hex digits) of the key as canonical JSON."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Store:
    """The folder `cells/` of a study."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __contains__(self, key: Key) -> bool:
        return self._path(cell_hash(key), ".json").exists()

    def load(self, key: Key) -> Cell:
        """The finished cell of a key.

        Raises:
            ValueError: the cell is not there or cannot be read.
        """
        name = cell_hash(key)
        try:
            data = json.loads(self._path(name, ".json").read_text())
            with np.load(self._path(name, ".npz")) as arrays:
                return Cell(name, data["key"], data["rows"], data["provenance"], dict(arrays))
        except (OSError, ValueError, KeyError) as error:
            path = self._path(name, ".json")
            raise ValueError(f"cell {path} cannot be read ({type(error).__name__}); delete it and run the study again") from error

    def save(self, key: Key, rows: list[dict[str, Any]], arrays: Mapping[str, np.ndarray], provenance: Mapping[str, Any]) -> Cell:
        """Write a cell: the arrays first, then the JSON whose presence says that the cell is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = cell_hash(key)
        rows = [{**row, "cell": name} for row in rows]
        with _replacing(self._path(name, ".npz")) as path, path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        data = {"key": dict(key), "provenance": dict(provenance), "rows": rows}
        write_text(self._path(name, ".json"), json.dumps(data, indent=1, allow_nan=False))
        return Cell(name, dict(key), rows, dict(provenance), dict(arrays))

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}{ending}"


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    with _replacing(path) as temporary:
        temporary.write_text(text)


def fill_between(path: Path, marks: tuple[str, str], table: str) -> None:
    """Replace what stands between two marks of a file.

    Raises:
        ValueError: the marks are not there.
    """
    text, (begin, end) = path.read_text(), marks
    if begin not in text or end not in text:
        raise ValueError(f"{path} lacks the marks {begin} and {end}; add them where the table shall stand")
    before, after = text.split(begin, 1)[0], text.split(end, 1)[1]
    write_text(path, f"{before}{begin}\n{table}\n{end}{after}")


class _replacing:
    """A temporary neighbour of a file that takes its place if nothing was raised."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
