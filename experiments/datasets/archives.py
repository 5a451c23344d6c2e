"""Archives of images: parquet files as the Hugging Face hub keeps them, and tar files of WebDataset. Their tables of contents are read,
their images stay where they are."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.datasets.labels import Entry, ImageList, chosen_column, class_names, image_list
from experiments.datasets.listing import ENDINGS
from experiments.datasets.reading import Refused, in_threads, named
from experiments.datasets.stored import ParquetImage, TarImage, parquet

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixel_values", "bytes")
"""Names of columns that hold images, in lower case, the likeliest first."""

_NAME_COLUMNS = ("file_name", "filename", "path", "file", "image_path", "name", "__key__", "key")
_AGAIN = "get the file again"
_NUMBERED = re.compile(r"-\d{5}-of-(\d{5})")


def parquet_images(files: Sequence[Path], place: str, title: str, label: str = "", classes: Sequence[str] | None = None) -> ImageList:
    """List the images in parquet files: a column of structs with the field `bytes`, or of bytes, and a column with the class, as number
    or word. Numbers have the names that the Hugging Face hub wrote into the file, else the lines of `labels.txt` beside it.

    Args:
        files: of one split, in order.
        place: where they are, for errors.
        title: the same, for notes.
        label: the column of the classes, where several may be; by default the one that is named so (`labels.CLASS_COLUMNS`).
        classes: those of another split, whose order the labels then follow.

    Raises:
        ValueError: pyarrow is missing, a file cannot be read, columns are missing or several may be meant, or as in `image_list`.
    """
    library = parquet()
    columns = _parquet_columns(_opened(library, files[0]).schema_arrow, files[0], label)
    entries: list[Entry] = []
    for path in files:
        file = _opened(library, path)
        names = set(file.schema_arrow.names)
        if missing := [name for name in (columns.image, columns.label, columns.name) if name and name.partition(".")[0] not in names]:
            raise Refused(path, f"has no column {missing[0]}, as {files[0].name} has", "use files of one data set")
        wanted = [name for name in (columns.label, columns.name) if name]
        try:
            table = file.read(columns=wanted) if wanted else None
            labels = table[columns.label].to_pylist() if table is not None and columns.label else [None] * file.metadata.num_rows
            written = [None] * len(labels) if table is None or not columns.name else _names(table, columns.name)
        except Exception as error:  # pyarrow raises many kinds on damaged files
            raise _damaged(path, "parquet", error) from error
        for row, (entry_label, name) in enumerate(zip(labels, written, strict=True)):
            source = ParquetImage(path, row, name or f"row {row}", column=columns.image)
            entries.append(Entry(source, name or "", entry_label))
    if entries and isinstance(entries[0].label, list | dict):
        raise ValueError(f'column {columns.label} of "{files[0]}" has several classes an image; name a column of one: --folders.label NAME')
    notes = _missing_files(files, title) + ([] if columns.label else [f"{title} has no column of classes: its images have none"])
    names_of_labels = columns.classes or class_names(files[0].parent)
    return image_list(entries, names_of_labels, place, title, classes, notes)


class _Columns(NamedTuple):
    """Columns of a parquet file: of the bytes of images, of their classes and of their names, as pyarrow names what is to be read; and
    names of the classes. "" and () where there are none."""

    image: str
    label: str
    name: str
    classes: tuple[str, ...]


def _parquet_columns(schema: Any, path: Path, label: str) -> _Columns:
    """The columns of a parquet file.

    Raises:
        ValueError: none or several may hold the images, or several the classes.
    """
    import pyarrow.types as types

    features = _features(schema)
    structs = {field.name for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0}
    binary = {field.name for field in schema if types.is_binary(field.type) or types.is_large_binary(field.type)}
    known = [name for name in schema.names if features.get(name, {}).get("_type") == "Image" and name in structs | binary]
    by_name = {name.lower(): name for name in schema.names if name in structs | binary}
    images = known or [by_name[name] for name in IMAGE_COLUMNS if name in by_name] or sorted(structs) or sorted(binary)
    if not images:
        remedy = "images are columns of bytes, or of structs with the field bytes"
        raise Refused(path, f"has no column of images (its columns are {named(schema.names, 20)})", remedy)
    if len(images) > 1 and (len(known) > 1 or not by_name.keys() & set(IMAGE_COLUMNS)):
        raise Refused(path, f"has several columns of images, {', '.join(images)}", "leave one in it, named image")
    image = images[0]
    flat = [field.name for field in schema if field.name not in structs | binary]
    typed = [name for name in flat if features.get(name, {}).get("_type") == "ClassLabel"]
    column = chosen_column(flat, label, f'"{path}"', typed)
    if image in structs:
        has_path = schema.field(image).type.get_field_index("path") >= 0
        return _Columns(f"{image}.bytes", column, f"{image}.path" if has_path else "", _class_label(features, column))
    texts = {f.name.lower(): f.name for f in schema if f.name != column and (types.is_string(f.type) or types.is_large_string(f.type))}
    name = next((texts[candidate] for candidate in _NAME_COLUMNS if candidate in texts), "")
    return _Columns(image, column, name, _class_label(features, column))


def _features(schema: Any) -> dict[str, Any]:
    """What the Hugging Face hub says of the columns; empty where it says nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)} if isinstance(features, dict) else {}


def _class_label(features: dict[str, Any], column: str) -> tuple[str, ...]:
    return tuple(map(str, features.get(column, {}).get("names") or ()))


def _names(table: Any, column: str) -> list[str | None]:
    outer, _, inner = column.partition(".")
    return [entry and entry[inner] for entry in table[outer].to_pylist()] if inner else table[outer].to_pylist()


def _opened(library: Any, path: Path) -> Any:
    try:
        return library.ParquetFile(path)
    except Exception as error:  # pyarrow raises many kinds on damaged files
        raise _damaged(path, "parquet", error) from error


def _damaged(path: Path, kind: str, error: Exception) -> Refused:
    """What to say of an archive that cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as closed:
        return Refused(path, f"cannot be read ({closed.strerror})", "give yourself the right to read it")
    if start.startswith(b"version https://git-lfs"):
        return Refused(path, "is a pointer of Git LFS, not the data", "fetch them: git lfs pull")
    if kind == "tar" and start[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
        return Refused(path, "is compressed", f'unpack it to a plain tar file: gunzip "{path}"')
    reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
    return Refused(path, f"cannot be read as a {kind} file ({'it is empty' if not start else reason[:200]})", _AGAIN)


def _missing_files(files: Sequence[Path], title: str) -> list[str]:
    """A line where fewer files are here than their names say there are.

    Raises:
        ValueError: they say several numbers.
    """
    totals = sorted({int(match[1]) for path in files if (match := _NUMBERED.search(path.name))})
    if len(totals) > 1:
        raise ValueError(f'"{files[0].parent}" has files of several versions ({named(p.name for p in files)}); remove those of all but one')
    return [f"{len(files)} of {totals[0]} files of {title} are here"] if totals and len(files) < totals[0] else []


def tar_images(files: Sequence[Path], place: str, title: str, label: str = "", classes: Sequence[str] | None = None) -> ImageList:
    """List the images in tar files of WebDataset: members that follow one another and have the same name up to the first dot are one
    example, of an image, its class in `.cls` (a number or a word) or in a field of `.json`, and others that are left out.

    Numbers have the names in the lines of `labels.txt` beside the files. Members are read where they lie: whatever their names say,
    nothing is written.

    Args:
        files: of one split, in order.
        place: where they are, for errors.
        title: the same, for notes.
        label: the field of `.json` with the class, instead of `.cls`.
        classes: those of another split, whose order the labels then follow.

    Raises:
        ValueError: a file is compressed, damaged or cut short, an example has two images, or as in `image_list`.
    """
    contents = list(in_threads(lambda path: _tar_entries(path, label), files, "reading tar files"))
    entries = [entry for content, _ in contents for entry in content]
    others = [name for _, names in contents for name in names]
    if not entries:
        has = f" (but {named(others)})" if others else ""
        raise ValueError(f"{place} has no images{has}; members are named key.jpg and key.cls, with an ending from the first dot on")
    notes = [f"{len(others)} members of {title} belong to no image and were left out: {named(others)}"] if others else []
    if entries and all(entry.label is None for entry in entries):
        if label:
            raise ValueError(f"{place} has no .json, and {label} is asked for as its field of classes; leave --folders.label out")
        notes.append(f"{title} has no .cls and no class in .json: its images have none")
    return image_list(entries, class_names(files[0].parent), place, title, classes, notes)


def _tar_entries(path: Path, label: str) -> tuple[list[Entry], list[str]]:
    """The images of a tar file, and the names of the members of examples without one."""
    examples: dict[str, dict[str, tarfile.TarInfo]] = {}
    entries: list[Entry] = []
    others: list[str] = []
    with path.open("rb") as file:

        def end() -> None:
            for key, members in examples.items():
                images = [ending for ending in members if f".{ending}" in ENDINGS]
                if len(images) > 1:
                    raise Refused(path, f"has two images of {key}, .{' and .'.join(images)}", "leave one of them")
                if not images:
                    others.extend(member.name for member in members.values())
                    continue
                image = members[images[0]]
                source = TarImage(path, image.offset_data, image.name, length=image.size)
                entries.append(Entry(source, image.name, _tar_label(file.fileno(), path, members, label)))
            examples.clear()

        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # a million of them take a gigabyte
                    folder, _, base = member.name.rpartition("/")
                    if not member.isfile() or base.startswith("."):
                        continue
                    key, _, ending = base.partition(".")
                    key, ending = f"{folder}/{key}" if folder else key, ending.lower()
                    if key not in examples:
                        end()
                    if ending in examples.setdefault(key, {}):
                        raise Refused(path, f'has the member "{member.name}" twice', "give every example a name of its own")
                    examples[key][ending] = member
                file.seek(archive.offset)
                if any(file.read(tarfile.BLOCKSIZE) or b"\1"):  # the blocks of zeros that end a whole file
                    raise tarfile.ReadError(f"damaged or cut short at byte {archive.offset:,}")
        except (tarfile.TarError, OSError, UnicodeError) as error:
            raise _damaged(path, "tar", error) from error
        end()
    return entries, others


def _tar_label(file: int, path: Path, members: dict[str, tarfile.TarInfo], label: str) -> Any:
    """The class of an example as it is written; None where there is none."""
    if "cls" in members and not label:
        return _content(file, members["cls"]).decode(errors="replace")
    if "json" not in members:
        return None
    try:
        fields = json.loads(_content(file, members["json"]))
        if not isinstance(fields, dict):
            raise ValueError("no fields with names")
    except ValueError as error:
        raise Refused(path, f'has the member "{members["json"].name}" that is no JSON object ({error})', _AGAIN) from error
    written = fields.get(chosen_column(list(fields), label, f'"{path}/{members["json"].name}"'))
    if isinstance(written, list | dict):
        raise Refused(path, f'has several classes in "{members["json"].name}"', "name a field of one: --folders.label NAME")
    return written


def _content(file: int, member: tarfile.TarInfo) -> bytes:
    return os.pread(file, member.size, member.offset_data)
