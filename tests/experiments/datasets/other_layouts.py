"""The images of class folders once more: in parquet files of the Hugging Face hub, in tar files of WebDataset, beside a table of labels."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.experiments.tiny_folders import write_picture

CLASSES = ("ant", "bee", "cat")


def write_class_folders(root: Path, counts: dict[str, int], names: Sequence[str] = CLASSES) -> Path:
    """`<split>/<class>/<image>.png` of different sizes; a split "" is the folder itself. Names are of no order over classes."""
    for split, count in counts.items():
        for c, name in enumerate(names):
            for i in range(count):
                seed = 1000 * len(split) + 100 * c + i
                write_picture(root / split / name / f"{(7 * seed) % 97:02}-{seed}.png", seed, 24 + i % 5, 20 + c)
    return root


def shuffled(folder: Path) -> list[Path]:
    """The images of class folders in an order that is not theirs."""
    paths = sorted(folder.rglob("*.png"))
    return [paths[i] for i in np.random.default_rng(5).permutation(len(paths))]


def write_parquet(folder: Path, out: Path, split: str, files: int = 2, named: bool = True, group: int = 5, **columns: Any) -> Path:
    """The images of class folders as `datasets` writes them: structs of bytes and path, and the number of a class whose name is in the
    metadata."""
    paths, names = shuffled(folder), sorted(path.name for path in folder.iterdir())
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    out.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(paths)), files)):
        rows = [paths[i] for i in part]
        table = pa.table(
            {
                "image": pa.array([{"bytes": path.read_bytes(), "path": path.name} for path in rows], image),
                "label": pa.array(columns.get("label") or [names.index(path.parent.name) for path in rows], pa.int64()),
            }
        )
        if named:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, out / f"{split}-{number:05}-of-{files:05}.parquet", row_group_size=group)
    return out


def write_tars(folder: Path, out: Path, pattern: str, files: int = 2, as_json: bool = False) -> Path:
    """The images of class folders as shards: `key.png` and `key.cls` or `key.json`, whose number is of `labels.txt`."""
    paths, names = shuffled(folder), sorted(path.name for path in folder.iterdir())
    out.mkdir(parents=True, exist_ok=True)
    (out / "labels.txt").write_text("\n".join(names) + "\n")
    for number, part in enumerate(np.array_split(np.arange(len(paths)), files)):
        with tarfile.open(out / pattern.format(number), "w") as archive:
            for path in (paths[i] for i in part):
                label = names.index(path.parent.name)
                add(archive, f"{path.stem}{path.suffix}", path.read_bytes())
                if as_json:
                    add(archive, f"{path.stem}.json", json.dumps({"label": label, "width": 24}).encode())
                else:
                    add(archive, f"{path.stem}.cls", str(label).encode())
    return out


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_flat(folder: Path, out: Path, header: str = "filename,label", table: str = "labels.csv") -> Path:
    """The images of class folders in one folder, with a table."""
    out.mkdir(parents=True, exist_ok=True)
    paths = shuffled(folder)
    for path in paths:
        shutil.copy(path, out / path.name)
    lines = [*([header] if header else []), *(f"{path.name},{path.parent.name}" for path in paths)]
    (out / table).write_text("\n".join(lines) + "\n")
    return out
