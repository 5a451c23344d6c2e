"""A finished study as pages, tables and notebooks read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plotting.columns import Column
from experiments.rows import Row, select
from experiments.study.cells import Cell, Store
from experiments.study.folder import read_manifest


class StudyResults(NamedTuple):
    """The rows and cells of a finished study.

    Attributes:
        rows: of `results.jsonl`.
        manifest: `run.json`.
        folder: where it lies.
        models: those that are ablated, in order; baselines are not among them.
    """

    rows: list[Row]
    manifest: dict[str, Any]
    folder: Path
    models: list[str]

    @property
    def columns(self) -> list[Column]:
        """The columns that the tasks of the study declared, in order."""
        return [Column(*column) for column in self.manifest["columns"]]

    def scores(self, row: Row) -> np.ndarray:
        """The scores that a number was made of, [units, draws, parts]: shares of a sum, a score and a count, or a confusion matrix.

        Raises:
            ValueError: the row has none, or its cell cannot be read.
        """
        if row["scores_cell"] is None:
            raise ValueError(f"no scores of single units are kept for {row['metric']} of {row['task']}")
        store = Store(self.folder / "cells")
        return np.concatenate([store.open(name).arrays[row["scores_array"]] for name in row["scores_cell"]], axis=1)

    def cells(self, kind: str, version: int | None = None) -> Iterator[Cell]:
        """The finished cells of a kind, in the order of the study, one in memory at a time; those of one version where it is given, as an
        earlier one may hold other arrays."""
        store = Store(self.folder / "cells")
        cells = (store.open(name) for name, cell_kind, _ in self.manifest["cells"] if cell_kind == kind)
        return (cell for cell in cells if version is None or cell.key["version"] == version)

    def outdated(self, kind: str, version: int) -> list[str]:
        """Models that have cells of a kind, but none of this version: an earlier one computed them."""
        versions: dict[str, set[int]] = {}
        for cell in self.cells(kind):
            versions.setdefault(cell.key["name"], set()).add(cell.key["version"])
        return [model for model in self.models if model in versions and version not in versions[model]]

    def conditions(self, model: str, task: str) -> list[str]:
        """Conditions under which a model has numbers of a task, in order."""
        return list(dict.fromkeys(row["condition"] for row in select(self.rows, model=model, task=task)))


def read_results(folder: Path) -> StudyResults:
    """The finished study in a folder.

    Raises:
        ValueError: there is none, or another version wrote it.
    """
    manifest = read_manifest(folder)
    try:
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no finished study ({type(error).__name__}); run python -m experiments.reproduce first") from error
    return StudyResults(rows, manifest, folder, list(manifest["models"]))
