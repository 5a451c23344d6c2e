"""A pack: decoded images of one size with their labels and names in one folder, which any machine opens in place of the originals.

| file | holds |
|---|---|
| `pack.json` | what it is (`MANIFEST`); it is written last: a folder without it is no pack |
| `images.npy` | the squares, uint8 [images, size, size, 3] |
| `affines.npy` | maps from pixels of the originals to those of the squares, float64 [images, 2, 3] |
| `labels.npy` | int64 [images]; they index `classes` of the manifest |
| `names.json` | what each image was called, for messages |

Images lie in the order of class folders, those to fit on before those to report on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets.images import PROTOCOLS
from experiments.datasets.labels import ImageList
from experiments.datasets.stored import SQUARES, PackedImage
from jaxvit.files import file_hash

FORMAT = 1
MANIFEST, LABELS, NAMES = "pack.json", "labels.npy", "names.json"
UNFINISHED = "unfinished.json"
"""What is being packed; there until the pack is whole."""


def is_pack(folder: Path) -> bool:
    """Whether a folder is a pack, or one that is being written."""
    return (folder / MANIFEST).is_file() or (folder / UNFINISHED).is_file()


def open_pack(folder: Path) -> dict[str, ImageList]:
    """The images of a pack by what they are for (`splits.images_by_split`).

    Raises:
        ValueError: it is not finished, not whole, or of another version.
    """
    manifest = read_pack(folder)
    labels = np.load(folder / LABELS)
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    options = {"preprocess": manifest["preprocess"], "size": manifest["size"], "sha256": manifest["sha256"][SQUARES]}
    images = [PackedImage(folder, number, name, **options) for number, name in enumerate(names)]
    listed: dict[str, ImageList] = {}
    start = 0
    for part, count in manifest["splits"].items():
        notes = () if listed else (*manifest["notes"], _views_note(folder, manifest))
        span = slice(start, start + count)
        listed[part] = ImageList(images[span], labels[span], tuple(manifest["classes"]), notes, f'the pack "{folder}"')
        start += count
    return listed


def _views_note(folder: Path, manifest: Mapping[str, Any]) -> str:
    squares = f"its squares of {manifest['size']} pixels"
    return f"{folder.name} is a pack: pairs of views are cut out of {squares}, unless other images are named (--folders.views)"


def read_pack(folder: Path) -> dict[str, Any]:
    """The manifest of a whole pack.

    Raises:
        ValueError: as in `open_pack`.
    """
    if not is_pack(folder):
        raise ValueError(f'"{folder}" is no pack; name a folder that experiments.pack wrote')
    if not (folder / MANIFEST).is_file():
        raise ValueError(f'"{folder}" is a pack that is not finished; run the same python -m experiments.pack again, which goes on with it')
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f'"{folder / MANIFEST}" cannot be read ({error}); copy or make the pack again') from error
    if version != FORMAT or manifest["preprocess"] not in PROTOCOLS:
        raise ValueError(f'"{folder}" was packed by another version (format {version}, this one reads {FORMAT}); pack the images again')
    for name, size in manifest["bytes"].items():
        present = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if present != size:
            raise ValueError(f'"{folder}" is not whole: {name} has {present:,} bytes of {size:,}; copy it again')
    return manifest


def verify_pack(folder: Path) -> dict[str, Any]:
    """The manifest of a pack, once every byte has been read and compared with it.

    Raises:
        ValueError: a file has other content, or as in `read_pack`.
    """
    manifest = read_pack(folder)
    for name, sha256 in manifest["sha256"].items():
        if file_hash(folder / name) != sha256:
            raise ValueError(f'"{folder / name}" is damaged: its content is not the one that was packed; copy it again')
    return manifest
