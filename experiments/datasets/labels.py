"""From what a table or an archive writes as the class of an image to labels, classes and their order, which is that of class folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.datasets.listing import equal_name
from experiments.datasets.reading import named, read_text
from experiments.datasets.stored import ImageSource

CLASS_COLUMNS = (
    *(
        "label",
        "labels",
        "class",
        "classes",
        "class_name",
        "classname",
        "class_id",
        "category",
        "target",
        "cls",
        "fine_label",
        "coarse_label",
    ),
    *("species", "breed", "wnid", "synset", "predictionstring"),
)
"""Names of columns that hold the class of an image, in lower case."""

_OPTION = ": --folders.label {0}, of experiments.pack --label {0}"
_NOT_LABELLED = frozenset(("", "-1", "None", "nan", "NaN"))
_WNID = re.compile(r"_n\d{8}(?=\.\w+$)")  # ImageNet on the Hugging Face hub names n01440764_10026.JPEG n01440764_10026_n01440764.JPEG


class ImageList(NamedTuple):
    """Images with one class each.

    Attributes:
        paths: files, or images in files of many.
        labels: index `classes`; 0 where images have no classes.
        classes: their names; none where images have no classes.
        notes: lines about what was left out.
        place: where the images are, for errors, as in 'the folder "photos"'.
    """

    paths: Sequence[ImageSource]
    labels: Int[np.ndarray, "images"]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    place: str = ""


class Entry(NamedTuple):
    """An image as it is listed: where it is, its name, and its class as it is written; None or -1 where it has none."""

    source: ImageSource
    name: str
    label: Any


def image_list(
    entries: Sequence[Entry], names: Sequence[str], place: str, title: str, classes: Sequence[str] | None = None, notes: Sequence[str] = ()
) -> ImageList:
    """Images with labels, in the order of class folders: by class, then by name, then as they are listed. Images without a class are left
    out where others have one.

    Classes are in the order of `names`; numbers without names in the order of numbers; words in that of their letters, as folders are.

    Args:
        entries: the images as they are listed.
        names: of the classes 0, 1, ..., where the data set has them; those without images are left out.
        place: where the images are, for errors.
        title: the same, for notes, which hold no path of this machine.
        classes: those of another split, whose order the labels then follow.
        notes: lines that are there already.

    Raises:
        ValueError: there is no image; only one class; a label that is no class; or other classes than `classes`.
    """
    if not entries:
        raise ValueError(f"{place} has no images; name files that have some")
    written = [_written(entry.label) for entry in entries]
    lines = list(notes)
    if not any(text is not None for text in written):
        if classes:
            raise ValueError(f"{place} has no classes, the images to fit on have {len(classes)}; use images with the same classes for both")
        order = sorted(range(len(entries)), key=lambda i: _sorted_name(entries[i].name))
        return ImageList([entries[i].source for i in order], np.zeros(len(entries), np.int64), (), tuple(lines), place)
    if bare := [entry.name for entry, text in zip(entries, written, strict=True) if text is None]:
        lines.append(f"{len(bare)} of {len(entries)} images of {title} have no class and were left out: {named(bare)}")
    of_label = _class_names({text for text in written if text is not None}, names, place)
    present = dict.fromkeys(of_label.values())
    if absent := [name for name in map(equal_name, names) if name not in present]:
        lines.append(f"{len(absent)} of {len(names)} classes of {title} have no image and were left out: {named(absent)}")
    if classes is None and len(present) == 1:
        raise ValueError(f"all images of {place} are of class {next(iter(present))}: a probe of one class is always right; add classes")
    ordered = tuple(present) if classes is None else tuple(classes)
    refuse_other_classes(present, ordered, place)
    index = {text: ordered.index(name) for text, name in of_label.items()}
    labelled = [(index[text], _sorted_name(entry.name), i) for i, (entry, text) in enumerate(zip(entries, written, strict=True)) if text]
    labelled.sort()
    labels = np.array([label for label, _, _ in labelled], np.int64)
    return ImageList([entries[i].source for _, _, i in labelled], labels, ordered, tuple(lines), place)


def refuse_other_classes(present: Sequence[str] | dict[str, None], classes: Sequence[str], place: str) -> None:
    """Check that these are the classes of the other split.

    Raises:
        ValueError: some are missing, or there are others.
    """
    if set(classes) != set(present):
        extra, missing = sorted(set(present) - set(classes)), sorted(set(classes) - set(present))
        differences = [f"{kind} {named(which)}" for kind, which in (("not in the other split:", extra), ("missing:", missing)) if which]
        raise ValueError(f"{place} has other classes ({'; '.join(differences)}); every class must be in both splits")


def chosen_column(columns: Sequence[str], column: str, place: str, known: Sequence[str] = ()) -> str:
    """The column that holds the classes, "" where none does by its name.

    Args:
        columns: those that may.
        column: the one that the user named, else "".
        known: those that do, where the data set says so.

    Raises:
        ValueError: there is no such column, or several may be meant.
    """
    if column:
        if column not in columns:
            raise ValueError(f"{place} has no column {column} of classes; it has {', '.join(columns) or 'none'}{_OPTION.format('NAME')}")
        return column
    known = known or [name for name in columns if name.lower() in CLASS_COLUMNS]
    if len(known) > 1:
        raise ValueError(f"{place} has several columns of classes, {', '.join(known)}; name one{_OPTION.format(known[0])}")
    return known[0] if known else ""


def class_names(folder: Path) -> tuple[str, ...]:
    """Class names in `labels.txt`, one a line; empty if there is no such file."""
    path = folder / "labels.txt"
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip()) if path.is_file() else ()


def _written(label: Any) -> str | None:
    """A label as text, whole numbers without a fraction (pandas writes 3.0 where one is missing); None where there is none."""
    text = re.sub(r"^(-?\d+)\.0$", r"\1", str(label).strip())
    return None if text in _NOT_LABELLED else equal_name(text)


def _sorted_name(name: str) -> str:
    return _WNID.sub("", equal_name(name))


def _class_names(labels: set[str], names: Sequence[str], place: str) -> dict[str, str]:
    """The name of the class of every label, in the order of classes.

    Raises:
        ValueError: a number that names no class.
    """
    if not all(re.fullmatch(r"0|[1-9]\d*", label) for label in labels):
        if numbers := [label for label in sorted(labels) if re.fullmatch(r"-\d+|-?\d*\.\d+(e[+-]?\d+)?|nan", label, re.IGNORECASE)]:
            raise ValueError(f"{place} has labels that count no classes ({named(numbers)}); number classes from 0, or write their names")
        return {label: label for label in sorted(labels)}
    numbers = sorted(labels, key=int)
    if not names:
        return {label: label for label in numbers}
    if int(numbers[-1]) >= len(names):
        raise ValueError(
            f"{place} has the label {numbers[-1]}, but {len(names)} classes have names, of labels 0 to {len(names) - 1}; name all"
        )
    if len(set(names)) < len(names):
        raise ValueError(
            f"{place} names the class {next(n for n in names if list(names).count(n) > 1)} twice; give every class its own name"
        )
    return {label: equal_name(names[int(label)]) for label in numbers}
