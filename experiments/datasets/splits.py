"""Where the images of a study are: class folders, images without classes, a table of labels, parquet or tar files, or a pack; and which of
them are to fit on, which to report on."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from experiments.datasets import layouts, packs
from experiments.datasets.archives import parquet_images, tar_images
from experiments.datasets.label_tables import is_table, read_label_table, table_of
from experiments.datasets.labels import ImageList, class_names, image_list
from experiments.datasets.listing import is_image, left_out_note, visible
from experiments.datasets.reading import named
from experiments.datasets.stored import ImageSource

Members = TypeVar("Members")
FIT, REPORT = "train", "test"
"""Keys of what is listed: images to fit and choose on, and images to report on."""

_FIT_NAMES = ("train", "training", "trn")
_REPORT_NAMES = ("val", "valid", "validation", "dev", "test", "testing")
_SPLIT_NAMES = {*_FIT_NAMES, *_REPORT_NAMES}
_ENDINGS: Mapping[str, Callable[..., ImageList]] = {".parquet": parquet_images, ".tar": tar_images}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def images_by_split(root: Path, label: str = "") -> dict[str, ImageList]:
    """The images to fit on and those to report on (`FIT`, `REPORT`); or all as `FIT`, where they are not divided.

    Images and labels come in the order of class folders wherever they lie: by class, then by name (`labels.image_list`).

    Args:
        root: a folder, or parquet or tar files by a pattern ("data/validation-*.parquet"), or a table of labels.
        label: the column or field of the classes, where a table or an archive has several.

    Raises:
        ValueError: nothing is there that can be read, splits are not known by their names, the two have other classes, or as for the
            layout.
    """
    root = Path(root).expanduser()
    if packs.is_pack(root):
        if label:
            raise ValueError(f'"{root}" is a pack, whose classes were chosen when it was packed; leave --folders.label {label} out')
        return packs.open_pack(root)
    if archives := _archives(root):
        return _of_archives(archives, root, label)
    if root.is_file() and is_table(root):
        return _of_table(root, label)
    if (root / "train").is_dir() and (root / "val").is_dir():
        fitting = _of_folder(root / "train", label)
        if not fitting.classes and (tables := [path.name for path in visible(root) if is_table(path)]):
            raise ValueError(f'"{root}" has a table {tables[0]} above train/ and val/; put one into each, of its images alone')
        return {FIT: fitting, REPORT: _reporting(root / "val", fitting.classes, label)}
    if table := _table(root):
        return _of_table(table, label)
    return {FIT: _of_folder(root, label)}


def any_images(root: Path) -> tuple[list[ImageSource], tuple[str, ...]]:
    """All images of a folder and of those below it, or of archives, whatever their classes and splits; and lines about what is left out.

    Raises:
        ValueError: there are none.
    """
    root = Path(root).expanduser()
    if packs.is_pack(root) or _archives(root):
        listed = images_by_split(root).values()
        return [source for members in listed for source in members.paths], tuple(line for members in listed for line in members.notes)
    paths, others = layouts.images_and_others(root)
    return [*paths], left_out_note(others, root)


def _of_folder(folder: Path, label: str, classes: Sequence[str] | None = None) -> ImageList:
    """Images in class folders, with a table of labels, or without classes.

    Raises:
        ValueError: as in `images_by_split`; a column is named and there is no table.
    """
    if table := _table(folder):
        read = read_label_table(table, label)
        entries = [entry for part in read.entries.values() for entry in part]
        return image_list(entries, class_names(folder), f'the table "{table}"', table.name, classes, read.notes)
    if label:
        raise ValueError(f'--folders.label {label} names a column, and "{folder}" has no table, no parquet and no tar files; leave it out')
    return layouts.image_folders(folder, classes) if classes else layouts.class_or_plain_folder(folder)


def _reporting(folder: Path, classes: tuple[str, ...], label: str) -> ImageList:
    """The images to report on, with the classes of those to fit on.

    Raises:
        ValueError: they have other classes, or only one of the two folders has any.
    """
    listed = _of_folder(folder, label, classes or None)
    if listed.classes and not classes:
        raise ValueError(f'"{folder}" has class folders, "{folder.parent / "train"}" has none; use one layout for both')
    return listed


def _table(folder: Path) -> Path | None:
    """The table of labels in a folder of images without class folders; None where there is none."""
    tables = [path for path in visible(folder) if is_table(path)] if folder.is_dir() else []
    if not tables:
        return None
    class_folders = [path for path in visible(folder) if path.is_dir() and path.name.lower() not in _SPLIT_NAMES and _has_images(path)]
    loose = any(map(is_image, visible(folder)))
    return table_of(tables) if loose or len(class_folders) < 2 else None


def _has_images(folder: Path) -> bool:
    return any(map(is_image, visible(folder)))


def _of_table(path: Path, label: str) -> dict[str, ImageList]:
    read = read_label_table(path, label)
    groups, notes = _chosen(read.entries, f'"{path}"', "leave the other lines out")
    listed: dict[str, ImageList] = {}
    for part, (name, entries) in groups.items():
        title = f"split {name} of {path.name}" if name else path.name
        classes = listed[FIT].classes if listed else None
        names = class_names(path.parent)
        listed[part] = image_list(entries, names, f'the table "{path}"', title, classes, () if listed else (*read.notes, *notes))
    return listed


def _archives(root: Path) -> list[Path]:
    """Parquet or tar files that are meant by a path: itself, those of a pattern, or those in a folder that has no images, in its folders
    named like splits or data, or in its only folder.

    Raises:
        ValueError: nothing fits a pattern, files are compressed, or both kinds are there.
    """
    if root.is_dir():
        found = _archives_in(root)
        if found and (_has_images(root) or any(path.is_dir() and _has_images(path) for path in visible(root))):
            return []  # they are left out, as other files beside images are
    elif root.is_file():
        found = [root] if _kind(root) else []
    else:
        found = sorted(path for path in map(Path, glob.glob(str(root))) if _kind(path)) if glob.has_magic(str(root)) else []
        present = [path for path in visible(root.parent) if _kind(path) in _ENDINGS] if root.parent.is_dir() else []
        if not found and present:
            pattern = root.parent / f"{re.split(r'[-_.]?[0-9]', present[0].name)[0]}*{present[0].suffix}"
            there = f'{named((path.name for path in present), 5)}; a pattern names them: --folders.images "{pattern}"'
            raise ValueError(f'there is no "{root}"; beside it there are {there}')
        if not found and glob.has_magic(str(root)):
            raise ValueError(f'no .parquet or .tar file fits "{root}"; there is none at all')
    if compressed := [path for path in found if _kind(path) == "compressed"]:
        raise ValueError(f'"{compressed[0]}" is compressed, and images are read where they lie; unpack it to a plain .tar file (gunzip)')
    if len(kinds := {_kind(path) for path in found}) > 1:
        raise ValueError(f'"{root}" has {" and ".join(sorted(kinds))} files; name those of one kind: --folders.images "{root}/*.parquet"')
    return found


def _archives_in(folder: Path) -> list[Path]:
    entries = visible(folder)
    if found := [path for path in entries if path.is_file() and _kind(path)]:
        return found
    below = [path for path in entries if path.is_dir()]
    likely = [path for path in below if path.name.lower() in {*_SPLIT_NAMES, "data"}] or below[: len(below) == 1]
    return [path for folder_below in likely for path in _archives_in(folder_below)]


def _kind(path: Path) -> str:
    """ ".parquet", ".tar" or "compressed"; "" for any other file."""
    name = path.name.lower()
    return "compressed" if name.endswith(_COMPRESSED) else next((ending for ending in _ENDINGS if name.endswith(ending)), "")


def _of_archives(files: Sequence[Path], root: Path, label: str) -> dict[str, ImageList]:
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(_split_name(path, root), []).append(path)
    kind = _kind(files[0])
    where = files[0].parent / next((f"*{name}*{kind}" for name in groups if name), f"*{kind}")
    chosen, notes = _chosen(groups, f'"{root}"', f'name the files of one by a pattern, as in --folders.images "{where}"')
    listed: dict[str, ImageList] = {}
    for part, (name, members) in chosen.items():
        title = f"split {name} of {root.name}" if name in _SPLIT_NAMES else root.name
        place = f'"{root}"' + (f" (split {name})" if name and len(groups) > 1 else "")
        images = _ENDINGS[kind](members, place, title, label, listed[FIT].classes if listed else None)
        listed[part] = images._replace(notes=(*notes, *images.notes)) if part == FIT else images
    return listed


def _split_name(path: Path, root: Path) -> str:
    """The split that a file is of: a word of its name, or of the folders above it; else what stands before its number."""
    stem = re.sub(r"-\d{5}-of-\d{5}.*$", "", path.name.removesuffix(path.suffix))
    stem = re.sub(r"[-_.]?\d+$", "", stem)
    above = path.relative_to(root).parts[-2::-1] if root.is_dir() else ()
    words = [*re.split(r"[-_.]", stem), *above]
    return next((word.lower() for word in words if word.lower() in _SPLIT_NAMES), stem)


def _chosen(groups: Mapping[str, Members], place: str, remedy: str) -> tuple[dict[str, tuple[str, Members]], list[str]]:
    """Which split is to fit on and which to report on, with their names; and a line that says so where there are several.

    Raises:
        ValueError: their names do not say it.
    """
    if len(groups) == 1:
        ((name, members),) = groups.items()
        return {FIT: (name, members)}, []
    by_name = {name.lower(): name for name in groups}
    fit, report = (next((by_name[name] for name in names if name in by_name), None) for names in (_FIT_NAMES, _REPORT_NAMES))
    if fit is None or report is None:
        raise ValueError(f"{place} has the splits {named((name or '(no name)' for name in groups), 20)}: which is meant? {remedy}")
    others = [name for name in groups if name not in (fit, report)]
    left_out = f"; {named(others)} {'is' if len(others) == 1 else 'are'} left out" if others else ""
    notes = [f"split {fit} is to fit and choose on, {report} to report on{left_out}"]
    return {FIT: (fit, groups[fit]), REPORT: (report, groups[report])}, notes
