"""Readers of the layouts that data sets come in: class folders, Pascal VOC, image and mask folders, SPair-71k.

Everything is sorted by name, so that the same folder gives the same list on every machine, and nothing is left out in silence.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments.images import ENDINGS, IGNORE, in_threads, read_mask, size_of

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LOSSLESS = frozenset((".png", ".bmp", ".tif", ".tiff"))
_NAMED = 3


class ImageList(NamedTuple):
    """Images of one class each; `labels` index `classes`."""

    paths: list[Path]
    labels: Int[np.ndarray, "images"]
    classes: tuple[str, ...]


class MaskList(NamedTuple):
    """Images and, at the same places, their masks; a mask's labels index `classes`, `IGNORE` does not count."""

    images: list[Path]
    masks: list[Path]
    classes: tuple[str, ...]


class KeypointPairs(NamedTuple):
    """Pairs of images of a category with the same keypoints; all lengths in pixels of the original images.

    Attributes:
        images: every image once.
        source, target: indices into `images`.
        source_points, target_points: (x, y) of each keypoint, 0 where not `valid`.
        valid: keypoints that are there; pairs have different numbers of them.
        target_box: the longer side of the target's bounding box.
        target_size: the longer side of the target image.
        category: of the pair.
        names: of the pairs, as the layout file has them.
    """

    images: list[Path]
    source: Int[np.ndarray, "pairs"]
    target: Int[np.ndarray, "pairs"]
    source_points: Float[np.ndarray, "pairs points 2"]
    target_points: Float[np.ndarray, "pairs points 2"]
    valid: Bool[np.ndarray, "pairs points"]
    target_box: Float[np.ndarray, "pairs"]
    target_size: Float[np.ndarray, "pairs"]
    category: np.ndarray
    names: list[str]


def image_folders(root: Path, classes: Sequence[str] | None = None) -> ImageList:
    """The layout of ImageNet: `<root>/<class>/<image>`; classes are sorted by name.

    Args:
        root: folder of one split.
        classes: those of another split, to be labelled alike.

    Raises:
        ValueError: there is no such folder, no image, a class without images, an image outside any class, or other classes than
            `classes`.
    """
    root = _folder(root)
    if loose := [path for path in _visible(root) if _is_image(path)]:
        raise ValueError(f'"{root}" has images outside any class folder ({_some(p.name for p in loose)}); the layout is <class>/<image>')
    found = [path for path in _visible(root) if path.is_dir()]
    if not found:
        raise ValueError(f'"{root}" has no class folders; the layout is <class>/<image>')
    members = [[path for path in _visible(folder) if _is_image(path)] for folder in found]
    for folder, images in zip(found, members, strict=True):
        if not images:
            inside = _some(p.name for p in _visible(folder)) or "nothing"
            raise ValueError(f'class folder "{folder}" has no images (but {inside}); give the folder of one split, or remove the class')
    names = tuple(folder.name for folder in found)
    if classes is not None and set(classes) != set(names):
        extra, missing = sorted(set(names) - set(classes)), sorted(set(classes) - set(names))
        parts = [f"{what} {_some(which)}" for what, which in (("not in the other split:", extra), ("missing:", missing)) if which]
        raise ValueError(f'"{root}" has other classes ({"; ".join(parts)}); every class must be in both splits')
    order = tuple(names if classes is None else classes)
    labels = np.repeat([order.index(name) for name in names], [len(images) for images in members])
    return ImageList([path for images in members for path in images], labels.astype(np.int64), order)


def any_images(root: Path) -> list[Path]:
    """All images in a folder and the folders below it.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    root = _folder(root)
    paths = sorted(path for path in _below(root) if _is_image(path))
    if not paths:
        raise ValueError(f'"{root}" has no images; they end in {", ".join(sorted(ENDINGS))}')
    return paths


def voc(root: Path, split: str) -> MaskList:
    """The layout of Pascal VOC: `ImageSets/Segmentation/<split>.txt` names files of `JPEGImages/` and `SegmentationClass/*.png`.

    Classes are the lines of `labels.txt` where there is one, else the 21 of VOC 2012.

    Raises:
        ValueError: the folder, the split, an image or a mask is missing.
    """
    root = _folder(root)
    names = _split(_folder(root / "ImageSets" / "Segmentation"), split)
    inside = {name: _named(_visible(_folder(root / name)), root / name) for name in ("JPEGImages", "SegmentationClass")}
    for folder, files in inside.items():
        if absent := [name for name in names if name not in files]:
            raise ValueError(f'split {split} names files that are not in "{root / folder}": {_some(absent)}')
    images, masks = ([inside[folder][name] for name in names] for folder in inside)
    return MaskList(images, masks, _labels(root) or VOC_CLASSES)


def image_mask_folders(images: Path, masks: Path, classes: Sequence[str] | None = None) -> MaskList:
    """Two folders with files of the same names, endings aside, also in the same folders below.

    Args:
        images: folder of images.
        masks: folder of lossless masks.
        classes: names of the labels 0, 1, ...; by default the lines of `labels.txt` beside the masks or one folder higher, else
            "0", "1", ... up to the largest label, for which every mask is read.

    Raises:
        ValueError: a folder is missing or empty, an image has no mask or a mask no image, or a mask cannot be read.
    """
    images, masks = _folder(images), _folder(masks)
    pictures = _named(any_images(images), images)
    labels = _named([path for path in sorted(_below(masks)) if path.suffix.lower() in _LOSSLESS], masks)
    if not labels:
        raise ValueError(f'"{masks}" has no masks; they are {", ".join(sorted(_LOSSLESS))} files, because others change the labels')
    for what, other, names in (("image", "mask", pictures.keys() - labels), ("mask", "image", labels.keys() - pictures)):
        if names:
            raise ValueError(f"no {other} belongs to {what} {_some(sorted(names))}; both need the same names")
    order = sorted(pictures)
    paths = [labels[name] for name in order]
    named = tuple(classes or ()) or _labels(masks) or _labels(masks.parent)
    if not named:
        largest = max(int(mask[mask != IGNORE].max(initial=0)) for mask in in_threads(read_mask, paths, "reading masks"))
        named = tuple(str(label) for label in range(largest + 1))
    return MaskList([pictures[name] for name in order], paths, named)


def read_masks(
    paths: Sequence[Path], classes: int | None = None
) -> tuple[UInt8[np.ndarray, "masks height width"], Int[np.ndarray, "masks 2"]]:
    """Label masks at their own resolution: a palette's indices or grey values as they are in the file.

    Args:
        paths: lossless files of one channel.
        classes: number of classes, to check the labels against.

    Returns:
        Masks, padded with `IGNORE` at the bottom and the right to the largest height and width, and the (height, width) of each.

    Raises:
        ValueError: no paths, a file that cannot be read or has colours instead of labels, or a label that is neither below
            `classes` nor `IGNORE`.
    """
    if not paths:
        raise ValueError("no masks to read; give at least one path")
    masks = list(in_threads(read_mask, paths, "reading masks"))
    if classes is not None:
        for path, mask in zip(paths, masks, strict=True):
            if (largest := int(mask[mask != IGNORE].max(initial=0))) >= classes:
                raise ValueError(f'mask "{path}" has the label {largest}, {classes} classes have labels 0 to {classes - 1} (255: ignored)')
    sizes = np.array([mask.shape for mask in masks], np.int64)
    padded = np.full((len(masks), *sizes.max(axis=0)), IGNORE, np.uint8)
    for canvas, mask in zip(padded, masks, strict=True):
        canvas[: mask.shape[0], : mask.shape[1]] = mask
    return padded, sizes


def spair(root: Path, split: str = "test", size_of_layout: str = "large") -> KeypointPairs:
    """The layout of SPair-71k (Min et al. 2019): `Layout/<size_of_layout>/<split>.txt` names the pairs, one a line
    ("000001-<source>-<target>:<category>"), `PairAnnotation/<split>/<line>.json` has their keypoints, and the images are
    `JPEGImages/<category>/`. Its splits are trn, val and test.

    Raises:
        ValueError: the folder, the split, an annotation or an image is missing, a field of an annotation is missing or no such
            thing, or an image has another size than its annotation says.
    """
    root = _folder(root)
    names = _split(_folder(root / "Layout" / size_of_layout), split)
    read = functools.partial(_pair, root, _folder(root / "PairAnnotation" / split))
    found = list(in_threads(read, names, "reading annotations"))
    sizes = {path: size for pair in found for path, size in pair.sizes.items()}
    images = sorted(sizes)
    for path, size in zip(images, in_threads(size_of, images, "reading image sizes"), strict=True):
        if size != sizes[path]:
            given, said = (" x ".join(map(str, sides)) for sides in (size, sizes[path]))
            raise ValueError(f'image "{path}" has {given} pixels (height x width), its annotation says {said}; use the original images')
    index = {path: i for i, path in enumerate(images)}
    counts = [len(pair.points[0]) for pair in found]
    points = np.zeros((2, len(found), max(counts), 2))
    for i, pair in enumerate(found):
        points[:, i, : counts[i]] = pair.points
    ends = np.array([[index[path] for path in pair.ends] for pair in found], np.int64)
    return KeypointPairs(
        images=images,
        source=ends[:, 0],
        target=ends[:, 1],
        source_points=points[0],
        target_points=points[1],
        valid=np.arange(max(counts)) < np.array(counts)[:, None],
        target_box=np.array([pair.box for pair in found]),
        target_size=np.array([max(sizes[pair.ends[1]]) for pair in found], np.float64),
        category=np.array([pair.category for pair in found]),
        names=names,
    )


class _Pair(NamedTuple):
    """What an annotation of SPair-71k says; `ends` are the images, `sizes` their height and width."""

    ends: tuple[Path, Path]
    points: Float[np.ndarray, "2 points 2"]
    box: float
    category: str
    sizes: dict[Path, tuple[int, int]]


def _pair(root: Path, folder: Path, name: str) -> _Pair:
    """The annotation of a pair; its boxes are (x1, y1, x2, y2), its sizes (width, height, channels)."""
    path = folder / f"{name}.json"
    try:
        entry: dict[str, Any] = json.loads(path.read_text())
        category = str(entry["category"])
        source, target = (root / "JPEGImages" / category / str(entry[field]) for field in ("src_imname", "trg_imname"))
        sizes = {end: (int(entry[field][1]), int(entry[field][0])) for end, field in ((source, "src_imsize"), (target, "trg_imsize"))}
        box = np.array(entry["trg_bndbox"], np.float64)
        if box.shape != (4,) or not (box[2:] > box[:2]).all():
            raise ValueError(f"trg_bndbox is {entry['trg_bndbox']}, not x1, y1, x2, y2")
        first, second = (np.array(entry[field], np.float64) for field in ("src_kps", "trg_kps"))
        if first.shape != second.shape or first.ndim != 2 or first.shape[1] != 2 or not len(first):
            raise ValueError(f"src_kps and trg_kps are of shapes {first.shape} and {second.shape}, not n points x 2 both")
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise ValueError("a keypoint has no coordinates")
    except KeyError as error:
        raise ValueError(f'annotation "{path}" lacks the field {error}; get SPair-71k again') from error
    except (OSError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f'annotation "{path}" cannot be read ({error}); get SPair-71k again') from error
    return _Pair((source, target), np.stack([first, second]), float(max(box[2:] - box[:2])), category, sizes)


def _split(folder: Path, split: str) -> list[str]:
    """Lines of the file of a split."""
    path = folder / f"{split}.txt"
    if not path.is_file():
        there = _some(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise ValueError(f'there is no split "{split}" in "{folder}"; there is: {there}')
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f'split "{path}" is empty; it names one item a line')
    if len(set(names)) < len(names):
        raise ValueError(f'split "{path}" names {_some(sorted({n for n in names if names.count(n) > 1}))} twice; remove the repetition')
    return names


def _labels(folder: Path) -> tuple[str, ...]:
    """Class names of `labels.txt`, one a line; nothing where there is no such file."""
    path = folder / "labels.txt"
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip()) if path.is_file() else ()


def _folder(path: Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ValueError(f'there is no folder "{path}"; name one that exists')
    return path


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _below(folder: Path) -> Iterable[Path]:
    """Files in a folder and, links included, in those below it."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in files if not name.startswith("."))


def _named(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Image files by their names in the folder, without endings."""
    named: dict[str, Path] = {}
    for path in filter(_is_image, paths):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if named.setdefault(name, path) != path:
            raise ValueError(f'"{named[name]}" and "{path}" have the same name but for the ending; remove one')
    return named


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def _some(names: Iterable[str]) -> str:
    """The first of many names."""
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")
