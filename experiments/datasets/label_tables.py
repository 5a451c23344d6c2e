"""A table of labels beside images: which file is of which class, in CSV, as people and Kaggle write it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.datasets.labels import CLASS_COLUMNS, Entry, chosen_column
from experiments.datasets.listing import ENDINGS, equal_name, images_below
from experiments.datasets.reading import Refused, named, read_text

FILE_COLUMNS = (
    *("file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "image_name", "image", "img", "img_path", "img_name"),
    *("image_id", "imageid", "id", "name", "photo"),
)
"""Names of columns that hold the file of an image, in lower case, the likeliest first."""

_SPLIT_COLUMNS = ("split", "subset", "partition")
_MENDED = "mend these lines"


class LabelTable(NamedTuple):
    """Images of a table, by split ("" where it has no such column), and lines about images that it does not have."""

    entries: dict[str, list[Entry]]
    notes: tuple[str, ...]


def read_label_table(path: Path, label: str = "") -> LabelTable:
    """Read which image is of which class.

    A column has files (`FILE_COLUMNS`), relative to the table, with or without folders and endings; another one classes
    (`labels.CLASS_COLUMNS`), numbers or words; "PredictionString" is Kaggle's for ImageNet, whose first word is the class. Where there are
    two columns, one is enough to know the other; two without a header are a file and its class. A column `split` divides the images.

    Args:
        path: the table; images are below its folder.
        label: the column of the classes, where several may be.

    Raises:
        ValueError: columns are missing or several may be meant, files are not there or named twice, or a line has other columns.
    """
    text = read_text(path)
    delimiter = max(",;\t|", key=text.partition("\n")[0].count)
    rows = [(number, row) for number, row in _rows(path, text, delimiter) if any(map(str.strip, row))]
    images, _ = images_below(path.parent)
    files = _Files(images, path.parent)
    if not rows:
        raise Refused(path, "is empty", "write a file and its class a line")
    columns = _header(path, rows, files, label)
    entries: dict[str, list[Entry]] = {}
    lines: dict[Path, int] = {}
    absent, repeated = [], []
    for number, row in rows[columns.first_line :]:
        if len(row) != columns.width:
            raise Refused(path, f"has {len(row)} columns in line {number}, {columns.width} in the first one", _MENDED)
        written = row[columns.file].strip()
        image = files.find(written)
        if image is None:
            absent.append(written)
        elif lines.setdefault(image, number) != number:
            repeated.append(f"{written} in lines {lines[image]} and {number}")
        else:
            name = equal_name(image.relative_to(path.parent).as_posix())
            of_class = row[columns.label].strip()
            of_class = next(iter(of_class.split()), "") if columns.first_word else of_class
            entries.setdefault("" if columns.split is None else row[columns.split].strip(), []).append(Entry(image, name, of_class))
    if absent:
        raise Refused(
            path, f"names {len(absent)} files that are not below its folder: {named(absent)}", "bring them, or take out their lines"
        )
    if repeated:
        raise Refused(path, f"names {len(repeated)} files twice: {named(repeated)}", "an image has one line and one class")
    others = [image.relative_to(path.parent).as_posix() for image in images if image not in lines]
    note = f"{len(others)} images of folder {path.parent.name} are not in {path.name} and were left out: {named(others)}"
    return LabelTable(entries, (note,) if others else ())


class _Header(NamedTuple):
    """Positions of columns, how many there are, and where the first image stands; `first_word`: a class is the first word of its column."""

    file: int
    label: int
    split: int | None
    width: int
    first_line: int
    first_word: bool = False


def _rows(path: Path, text: str, delimiter: str) -> Iterable[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise Refused(path, f"cannot be read in line {reader.line_num} ({error})", _MENDED) from error


def _header(path: Path, rows: Sequence[tuple[int, list[str]]], files: _Files, label: str) -> _Header:
    """What the columns are.

    Raises:
        ValueError: it cannot be told.
    """
    first = [cell.strip() for cell in rows[0][1]]
    names = [cell.lower().replace(" ", "_") for cell in first]
    if not label and not {*FILE_COLUMNS, *CLASS_COLUMNS} & set(names):
        positions = [i for i, cell in enumerate(first) if files.find(cell) is not None or Path(cell).suffix.lower() in ENDINGS]
        if len(first) == 2 and len(positions) == 1 and _may_be_classes(rows, 1 - positions[0]):
            return _Header(positions[0], 1 - positions[0], None, 2, 0)
        raise Refused(path, f"has the columns {named(first, 20)}: none is known for files or for classes", _header_advice(path))
    if len(rows) < 2:
        raise Refused(path, "has a header and no line below it", "write a file and its class a line")
    candidates = [names.index(name) for name in FILE_COLUMNS if name in names and first[names.index(name)] != label]
    file = next((i for i in candidates if i < len(rows[1][1]) and files.find(rows[1][1][i].strip()) is not None), None)
    file = candidates[0] if file is None and candidates else file
    named_label = first.index(chosen) if (chosen := chosen_column(first, label, f'"{path}"')) else None
    if len(first) == 2 and file is None and named_label is not None:
        file = 1 - named_label
    elif len(first) == 2 and file is not None and named_label is None and _may_be_classes(rows[1:], 1 - file):
        named_label = 1 - file
    if file is None or named_label is None:
        what = "files" if file is None else "classes"
        raise Refused(path, f"has the columns {named(first, 20)}: none is known for {what}", _header_advice(path))
    split = next((names.index(name) for name in _SPLIT_COLUMNS if name in names), None)
    return _Header(file, named_label, split, len(first), 1, names[named_label] == "predictionstring")


def _may_be_classes(rows: Sequence[tuple[int, list[str]]], column: int) -> bool:
    """Whether the words of a column of unknown name repeat themselves, as captions do not."""
    words = [row[column].strip() for _, row in rows if len(row) > column]
    return 2 * len(set(words)) <= len(words)


def _header_advice(path: Path) -> str:
    advice = "name them file and label in its first line, or that of the classes by --folders.label"
    return f"{advice}; or, if {path.name} is no table of labels, move it elsewhere"


class _Files:
    """Images below a folder, to be found by what a table calls them."""

    def __init__(self, images: Iterable[Path], root: Path):
        self._relative = {equal_name(path.relative_to(root).as_posix()): path for path in images}
        self._by_base: dict[str, list[str]] = {}
        for name in self._relative:
            base = name.rpartition("/")[2].lower()
            for key in {base, base.rpartition(".")[0]}:
                self._by_base.setdefault(key, []).append(name)

    def find(self, written: str) -> Path | None:
        """The image of a name with or without folders and ending, None where there is none.

        Raises:
            ValueError: several images may be meant.
        """
        name = equal_name(written.replace("\\", "/")).removeprefix("./")
        if name in self._relative:
            return self._relative[name]
        names = self._by_base.get(name.rpartition("/")[2].lower(), [])
        ends = [other for other in names if f"/{other}".lower().endswith((f"/{name}".lower(), *(f"/{name}{e}".lower() for e in ENDINGS)))]
        names = ends or names
        if len(names) > 1:
            raise ValueError(f'several images may be meant by "{written}": {named(names)}; write their folders into the table')
        return self._relative[names[0]] if names else None


def is_table(path: Path) -> bool:
    """Whether a file is a table of labels by its ending."""
    return path.suffix.lower() in (".csv", ".tsv") and path.is_file()


def table_of(tables: Sequence[Path]) -> Path:
    """The one table of labels among those of a folder: labels.csv, or the only one.

    Raises:
        ValueError: there are several, and none is named so.
    """
    by_name: Mapping[str, Path] = {path.name.lower(): path for path in tables}
    if len(tables) > 1 and "labels.csv" not in by_name:
        raise ValueError(
            f'"{tables[0].parent}" has several tables, {named(path.name for path in tables)}; name that of the labels: '
            f'--folders.images "{tables[0]}"'
        )
    return by_name.get("labels.csv", tables[0])
