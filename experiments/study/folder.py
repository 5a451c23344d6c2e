"""The folder of a study: whose it is (`run.json`), and what it holds after several runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.datasets.images import TORCHVISION
from experiments.rows import SCHEMA
from experiments.study.cells import Store
from jaxvit.files import refuse_remote, write_text

_MANIFEST = "run.json"
DataHashes = str | Mapping[str, str]
"""Hashes of a study's data by the protocol that images are prepared by, or that of torchvision's, where it is the only one."""
CellName = tuple[str, str, str]
"""Hash, kind and label of a cell: the label says what it is of, the hash by which definition."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """`run.json` of a study's folder.

    Raises:
        ValueError: there is none, it is no folder of this machine, or another version of this program wrote it.
    """
    refuse_remote(folder)
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{folder} holds no study ({type(error).__name__}); run python -m experiments.reproduce first") from error
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or "study" not in manifest:
        raise ValueError(f"{path} is not a study's run.json; give the folder of a study, or a new one")
    if manifest.get("format") != SCHEMA:
        raise ValueError(
            f"{folder} was written by another version (format {manifest.get('format')}, this one reads and writes {SCHEMA}: names of "
            "conditions, fields of rows and parts differ); choose another folder, or remove this one and run the study again"
        )
    return manifest


def check_owner(folder: Path) -> None:
    """Check that a folder is absent, empty, or holds a study of this version.

    Raises:
        ValueError: it holds anything else.
    """
    if (folder / _MANIFEST).exists():
        read_manifest(folder)
    elif folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
        raise ValueError(f"{folder} exists and holds no study; choose another --out")


def check_run_folder(folder: Path, identity: Mapping[str, Any], weights: Mapping[str, str], files: str = "") -> None:
    """Check that a folder can hold this study: it is absent, empty, or holds the same study.

    A study is its data and settings (`identity`). Which models, analyses, tasks and conditions are chosen may differ from run to run.

    Args:
        weights: hash of the weights of every model, by its name in the study.
        files: hash of the files of images; it decides where no two runs prepared them by the same protocol.

    Raises:
        ValueError: the folder holds anything else, or another model under one of the names.
    """
    check_owner(folder)
    if not (folder / _MANIFEST).exists():
        return
    manifest = read_manifest(folder)
    stored = manifest["study"]
    different = sorted(name for name in identity.keys() | stored.keys() if name != "data" and identity.get(name) != stored.get(name))
    earlier, current = (_by_protocol(entries["data"]) for entries in (stored, identity))
    common = earlier.keys() & current.keys()
    if any(earlier[name] != current[name] for name in common) or (not common and manifest.get("files") != files):
        different = sorted([*different, "data"])
    if different:
        raise ValueError(f"{folder} holds another study (it differs in {', '.join(different)}); choose another --out or remove the folder")
    changed = [name for name, sha256 in weights.items() if manifest["models"].get(name, sha256) != sha256]
    if changed:
        raise ValueError(f"{folder} holds numbers of another model named {', '.join(changed)}; choose another --out or rename the model")


def required_devices(folder: Path) -> dict[str, Any]:
    """The devices that workers must have since those that began the study had them; where one process began it, their kind and threads."""
    if not (folder / _MANIFEST).exists():
        return {}
    manifest = read_manifest(folder)
    names = ("device", "devices", "threads") if manifest.get("workers") else ("device", "threads")
    return {name: manifest["machine"][name] for name in names if name in manifest["machine"]}


def init_run_folder(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Create the folder with its run.json before the first cell is computed, unless it has one."""
    if not (folder / _MANIFEST).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `run.json`, whole or not at all."""
    write_text(folder / _MANIFEST, json.dumps({"format": SCHEMA, **manifest}, indent=1))


def merge_hashes(earlier: DataHashes, current: DataHashes) -> DataHashes:
    """The hashes of the data of an earlier run and of this one."""
    merged = {**_by_protocol(earlier), **_by_protocol(current)}
    return merged[TORCHVISION] if merged.keys() == {TORCHVISION} else merged


def _by_protocol(hashes: DataHashes) -> Mapping[str, str]:
    return {TORCHVISION: hashes} if isinstance(hashes, str) else hashes


def merge(earlier: Sequence[Any], current: Sequence[Any]) -> list[Any]:
    """Entries of an earlier run and of this one, each once: in this run's order if it has all of them, else new ones at the end."""
    if set(earlier) <= set(current):
        return list(dict.fromkeys(current))
    return list(dict.fromkeys([*earlier, *current]))


def merged_cells(folder: Path, store: Store, current: Sequence[CellName]) -> list[CellName]:
    """Cells of this run and of earlier runs in the folder. A cell of this run replaces earlier ones of the same kind and label, whose
    definition was another.

    Raises:
        ValueError: a cell of an earlier run is gone.
    """
    replaced = {(kind, label) for _, kind, label in current}
    earlier: list[CellName] = [(name, kind, label) for name, kind, label in read_manifest(folder)["cells"]]
    cells = merge([cell for cell in earlier if cell in set(current) or cell[1:] not in replaced], current)
    missing = [name for name, *_ in cells if not store.holds(name)]
    if missing:
        raise ValueError(
            f"{len(missing)} cells of earlier runs are gone from {store.folder} ({missing[0]}, ...); "
            f"run those again with their models and analyses, or remove {folder / _MANIFEST}"
        )
    return cells
