"""Results as cells: each is addressed by the hash of what determines it, and is either whole on disk or absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.rows import Row
from jaxvit.files import replacing, write_text

Key = Mapping[str, Any]
FORMAT = 3
"""Part of every hash: increase it when rows or arrays of cells are computed differently."""


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
    rows: list[Row]
    provenance: dict[str, Any]
    arrays: dict[str, np.ndarray]


def cell_hash(key: Key) -> str:
    """SHA-256 (first 20 hex digits) of the key as canonical JSON."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class CellFiles(NamedTuple):
    """The files of a finished cell as they are on disk, in the order in which they are written."""

    arrays: bytes
    entry: bytes


class Store:
    """The folder `cells/` of a study: a JSON file and a file of arrays for each cell."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __contains__(self, key: Key) -> bool:
        return self.holds(cell_hash(key))

    def holds(self, name: str) -> bool:
        """Whether the cell with this hash is finished."""
        return self._path(name, ".json").exists()

    def load(self, key: Key) -> Cell:
        """The finished cell of a key.

        Raises:
            ValueError: the cell is not there or cannot be read.
        """
        return self.open(cell_hash(key))

    def open(self, name: str) -> Cell:
        """The finished cell with this hash.

        Raises:
            ValueError: the cell is not there or cannot be read.
        """
        path = self._path(name, ".json")
        try:
            entry = json.loads(path.read_text())
            with np.load(self._path(name, ".npz")) as arrays:
                return Cell(name, entry["key"], entry["rows"], entry["provenance"], dict(arrays))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"cell {path} cannot be read ({type(error).__name__}); delete it and run the study again") from error

    def save(self, key: Key, rows: list[Row], arrays: Mapping[str, np.ndarray], provenance: Mapping[str, Any]) -> Cell:
        """Write a cell: the arrays first, then the JSON, whose presence says that the cell is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = cell_hash(key)
        if self.holds(name):  # another process was faster: the first writer's cell stays, whole
            return self.open(name)
        # scores that are in no other cell are in this one
        own = {"scores_cell": [name]} if any(array.startswith("scores/") for array in arrays) else {}
        rows = [{**row, "cell": name, **(own if row["scores_cell"] is None else {})} for row in rows]
        with replacing(self._path(name, ".npz")) as path, path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        entry = {"key": dict(key), "provenance": dict(provenance), "rows": rows}
        write_text(self._path(name, ".json"), json.dumps(entry, indent=1, allow_nan=False))
        return Cell(name, dict(key), rows, dict(provenance), dict(arrays))

    def read_files(self, name: str) -> CellFiles:
        """The files of a finished cell, to be written into another store."""
        return CellFiles(*(self._path(name, ending).read_bytes() for ending in (".npz", ".json")))

    def write_files(self, name: str, files: CellFiles) -> None:
        """Write the files of a cell that another store has finished, unless it is here already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.holds(name):
            return
        for content, ending in zip(files, (".npz", ".json"), strict=True):
            with replacing(self._path(name, ending)) as path:
                path.write_bytes(content)

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}{ending}"


class Needed:
    """The finished cells that a job needs, and no others: whoever runs it, here or on another machine, knows beforehand what to have."""

    def __init__(self, store: Store, keys: Collection[Key]):
        self._store, self._names = store, {cell_hash(key) for key in keys}

    def load(self, key: Key) -> Cell:
        """The finished cell of a key.

        Raises:
            ValueError: the job does not say that it needs it, or it is not there or cannot be read.
        """
        name = cell_hash(key)
        if name not in self._names:
            kind = key.get("kind", "")
            raise ValueError(f'a job loads a cell of kind "{kind}" ({name}) that is not among its needs; give Job(..., needs=(key,))')
        return self._store.open(name)
