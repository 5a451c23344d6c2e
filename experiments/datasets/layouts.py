"""Layouts of data sets on disk: class folders, Pascal VOC, image and mask folders, SPair-71k.

Everything is sorted by name, so that the same folder gives the same list on every machine. Whatever does not fit its layout raises
an error; nothing is skipped silently.
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

from experiments.datasets.images import ENDINGS, IGNORE, in_threads, read_mask, read_size

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LOSSLESS = frozenset((".png", ".bmp", ".tif", ".tiff"))
_SPLITS = frozenset(("train", "val", "valid", "validation", "test"))  # names of folders that hold a split, never images of one class
_LISTED = 3  # names that an error message lists before it says how many more there are


class ImageList(NamedTuple):
    """Images with one class each; `labels` index `classes`. Images without classes have none there, and 0 for their labels."""

    paths: list[Path]
    labels: Int[np.ndarray, "images"]
    classes: tuple[str, ...]


class MaskList(NamedTuple):
    """Images and, in the same order, their masks; labels of a mask index `classes`, and `IGNORE` is no class."""

    images: list[Path]
    masks: list[Path]
    classes: tuple[str, ...]


class KeypointPairs(NamedTuple):
    """Pairs of images of one category with corresponding keypoints; all lengths in pixels of the original images.

    Attributes:
        images: every image once.
        source, target: indices of the pair's images in `images`.
        source_points, target_points: (x, y) of each keypoint, 0 where not `valid`.
        valid: which slots hold a keypoint; pairs have different numbers of them.
        target_box: longer side of the target's bounding box.
        target_size: longer side of the target image.
        category: name of each pair's category.
        names: names of the pairs, as in the layout file.
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
    """List images in the layout of ImageNet, `<root>/<class>/<image>`, with classes sorted by name.

    Args:
        root: folder of one split.
        classes: those of another split, whose order the labels then follow.

    Raises:
        ValueError: there is no such folder, no image, a class without images, an image outside any class, or other classes than
            `classes`.
    """
    root = _folder(root)
    if loose := [path for path in _visible(root) if _is_image(path)]:
        raise ValueError(
            f'"{root}" has images outside any class folder ({_some(p.name for p in loose)}); the layout is <class>/<image>, or one folder '
            "of images without classes"
        )
    folders = [path for path in _visible(root) if path.is_dir()]
    if not folders:
        raise ValueError(f'"{root}" has no class folders; the layout is <class>/<image>')
    images = [[path for path in _visible(folder) if _is_image(path)] for folder in folders]
    for folder, paths in zip(folders, images, strict=True):
        if not paths:
            contents = _some(p.name for p in _visible(folder)) or "nothing"
            raise ValueError(f'class folder "{folder}" has no images (but {contents}); give the folder of one split, or remove the class')
    names = tuple(folder.name for folder in folders)
    if classes is not None and set(classes) != set(names):
        extra, missing = sorted(set(names) - set(classes)), sorted(set(classes) - set(names))
        differences = [f"{kind} {_some(which)}" for kind, which in (("not in the other split:", extra), ("missing:", missing)) if which]
        raise ValueError(f'"{root}" has other classes ({"; ".join(differences)}); every class must be in both splits')
    order = tuple(names if classes is None else classes)
    labels = np.repeat([order.index(name) for name in names], [len(paths) for paths in images])
    return ImageList([path for paths in images for path in paths], labels.astype(np.int64), order)


def class_or_plain_folder(root: Path) -> ImageList:
    """List the images of class folders, or without classes all images in a folder that has no class folders and in those below it.

    Raises:
        ValueError: there is no such folder or no image; only one class; class folders do not have their layout (`image_folders`); or
            images lie in folders that are named like splits.
    """
    root = _folder(root)
    class_folders = [path for path in _visible(root) if path.is_dir() and any(map(_is_image, _visible(path)))]
    if not class_folders:
        paths = any_images(root)
        if splits := [path.parent for path in paths if _SPLITS & {name.lower() for name in path.relative_to(root).parts[:-1]}]:
            raise ValueError(f'"{root}" has images in "{splits[0]}", a split; name the folder that holds train/ and val/, or one of these')
        return ImageList(paths, np.zeros(len(paths), np.int64), ())
    names = [folder.name for folder in class_folders]
    if _SPLITS.issuperset(map(str.lower, names)):
        raise ValueError(f'"{root}" has {_some(names)}, which are splits and no classes; name two of them train and val, or give one alone')
    listed = image_folders(root)
    if len(names) == 1:
        raise ValueError(
            f'"{root}" has one class folder, {names[0]}: a probe of one class is always right; add classes, or name "{class_folders[0]}" '
            "itself, whose images then have no classes"
        )
    return listed


def any_images(root: Path) -> list[Path]:
    """List all images in a folder and the folders below it.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    root = _folder(root)
    paths = sorted(path for path in _below(root) if _is_image(path))
    if not paths:
        raise ValueError(f'"{root}" has no images; they end in {", ".join(sorted(ENDINGS))}')
    return paths


def voc(root: Path, split: str) -> MaskList:
    """List images and masks in the layout of Pascal VOC: `ImageSets/Segmentation/<split>.txt` names files of `JPEGImages/` and
    `SegmentationClass/*.png`.

    Classes are the lines of `labels.txt` if there is one, else the 21 of VOC 2012.

    Raises:
        ValueError: the folder, the split, an image or a mask is missing.
    """
    root = _folder(root)
    names = _read_split(_folder(root / "ImageSets" / "Segmentation"), split)
    files = {folder: _by_name(_visible(_folder(root / folder)), root / folder) for folder in ("JPEGImages", "SegmentationClass")}
    for folder, paths in files.items():
        if absent := [name for name in names if name not in paths]:
            raise ValueError(f'split {split} names files that are not in "{root / folder}": {_some(absent)}')
    images, masks = ([paths[name] for name in names] for paths in files.values())
    return MaskList(images, masks, _read_labels(root) or VOC_CLASSES)


def image_mask_folders(images: Path, masks: Path, classes: Sequence[str] | None = None) -> MaskList:
    """List images and masks in two folders, whose files and folders below have the same names but for the endings.

    Args:
        images: folder of images.
        masks: folder of lossless masks.
        classes: names of the labels 0, 1, ...; by default the lines of `labels.txt` beside the masks or one folder higher, else
            "0", "1", ... up to the largest label, for which every mask is read.

    Raises:
        ValueError: a folder is missing or empty, an image has no mask or a mask no image, or a mask cannot be read.
    """
    images, masks = _folder(images), _folder(masks)
    image_files = _by_name(any_images(images), images)
    mask_files = _by_name([path for path in sorted(_below(masks)) if path.suffix.lower() in _LOSSLESS], masks)
    if not mask_files:
        raise ValueError(f'"{masks}" has no masks; they are {", ".join(sorted(_LOSSLESS))} files, because others change the labels')
    for kind, other, unmatched in (("image", "mask", image_files.keys() - mask_files), ("mask", "image", mask_files.keys() - image_files)):
        if unmatched:
            raise ValueError(f"no {other} belongs to {kind} {_some(sorted(unmatched))}; both need the same names")
    names = sorted(image_files)
    paths = [mask_files[name] for name in names]
    class_names = tuple(classes or ()) or _read_labels(masks) or _read_labels(masks.parent)
    if not class_names:
        largest = max(int(mask[mask != IGNORE].max(initial=0)) for mask in in_threads(read_mask, paths, "reading masks"))
        class_names = tuple(str(label) for label in range(largest + 1))
    return MaskList([image_files[name] for name in names], paths, class_names)


def read_masks(
    paths: Sequence[Path], classes: int | None = None
) -> tuple[UInt8[np.ndarray, "masks height width"], Int[np.ndarray, "masks 2"]]:
    """Read label masks at their own resolution: a palette's indices or grey values as they are in the file.

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
    """Read pairs and keypoints in the layout of SPair-71k (Min et al. 2019): `Layout/<size_of_layout>/<split>.txt` names the pairs, one
    a line ("000001-<source>-<target>:<category>"), `PairAnnotation/<split>/<line>.json` has their keypoints, and the images are in
    `JPEGImages/<category>/`. Its splits are trn, val and test, the sizes of its layout large and small.

    Raises:
        ValueError: the folder, the split, an annotation or an image is missing, a field of an annotation is missing or invalid, or an
            image has another size than its annotation says.
    """
    root = _folder(root)
    names = _read_split(_folder(root / "Layout" / size_of_layout), split)
    read = functools.partial(_read_pair, root, _folder(root / "PairAnnotation" / split))
    pairs = list(in_threads(read, names, "reading annotations"))
    sizes = {path: size for pair in pairs for path, size in pair.sizes.items()}
    images = sorted(sizes)
    for path, size in zip(images, in_threads(read_size, images, "reading image sizes"), strict=True):
        if size != sizes[path]:
            actual, annotated = (" x ".join(map(str, sides)) for sides in (size, sizes[path]))
            raise ValueError(
                f'image "{path}" has {actual} pixels (height x width), its annotation says {annotated}; use the original images'
            )
    index = {path: i for i, path in enumerate(images)}
    counts = np.array([len(pair.source_points) for pair in pairs])
    source_points, target_points = np.zeros((2, len(pairs), counts.max(), 2))
    for i, pair in enumerate(pairs):
        source_points[i, : counts[i]], target_points[i, : counts[i]] = pair.source_points, pair.target_points
    return KeypointPairs(
        images=images,
        source=np.array([index[pair.source] for pair in pairs], np.int64),
        target=np.array([index[pair.target] for pair in pairs], np.int64),
        source_points=source_points,
        target_points=target_points,
        valid=np.arange(counts.max()) < counts[:, None],
        target_box=np.array([pair.target_box for pair in pairs]),
        target_size=np.array([max(sizes[pair.target]) for pair in pairs], np.float64),
        category=np.array([pair.category for pair in pairs]),
        names=names,
    )


class _PairAnnotation(NamedTuple):
    """An annotation of SPair-71k; `sizes` are height and width of both images."""

    source: Path
    target: Path
    source_points: Float[np.ndarray, "points 2"]
    target_points: Float[np.ndarray, "points 2"]
    target_box: float
    category: str
    sizes: dict[Path, tuple[int, int]]


def _read_pair(root: Path, folder: Path, name: str) -> _PairAnnotation:
    """The annotation of a pair; its boxes are (x1, y1, x2, y2), its sizes (width, height, channels)."""
    path = folder / f"{name}.json"
    try:
        entry: dict[str, Any] = json.loads(path.read_text())
        category = str(entry["category"])
        source, target = (root / "JPEGImages" / category / str(entry[field]) for field in ("src_imname", "trg_imname"))
        sizes = {image: (int(entry[field][1]), int(entry[field][0])) for image, field in ((source, "src_imsize"), (target, "trg_imsize"))}
        box = np.array(entry["trg_bndbox"], np.float64)
        if box.shape != (4,) or not (box[2:] > box[:2]).all():
            raise ValueError(f"trg_bndbox is {entry['trg_bndbox']}, not x1, y1, x2, y2")
        source_points, target_points = (np.array(entry[field], np.float64) for field in ("src_kps", "trg_kps"))
        if source_points.shape != target_points.shape or source_points.ndim != 2 or source_points.shape[1] != 2 or not len(source_points):
            raise ValueError(f"src_kps and trg_kps are of shapes {source_points.shape} and {target_points.shape}, not n points x 2 both")
        if not (np.isfinite(source_points).all() and np.isfinite(target_points).all()):
            raise ValueError("a keypoint has no coordinates")
    except KeyError as error:
        raise ValueError(f'annotation "{path}" lacks the field {error}; get SPair-71k again') from error
    except (OSError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f'annotation "{path}" cannot be read ({error}); get SPair-71k again') from error
    return _PairAnnotation(source, target, source_points, target_points, float(max(box[2:] - box[:2])), category, sizes)


def _read_split(folder: Path, split: str) -> list[str]:
    """Lines of the file of a split."""
    path = folder / f"{split}.txt"
    if not path.is_file():
        splits = _some(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise ValueError(f'there is no split "{split}" in "{folder}"; there is: {splits}')
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f'split "{path}" is empty; it names one item a line')
    if len(set(names)) < len(names):
        raise ValueError(f'split "{path}" names {_some(sorted({n for n in names if names.count(n) > 1}))} twice; remove the repetition')
    return names


def _read_labels(folder: Path) -> tuple[str, ...]:
    """Class names in `labels.txt`, one a line; empty if there is no such file."""
    path = folder / "labels.txt"
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip()) if path.is_file() else ()


def _folder(path: Path) -> Path:
    """The path of a folder that exists, with `~` expanded."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ValueError(f'there is no folder "{path}"; name one that exists')
    return path


def _visible(folder: Path) -> list[Path]:
    """Files and folders that are not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _below(folder: Path) -> Iterable[Path]:
    """Files in a folder and in the folders below it, also linked ones; hidden ones are left out."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in files if not name.startswith("."))


def _by_name(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Image files by their names relative to the folder, without endings."""
    files: dict[str, Path] = {}
    for path in filter(_is_image, paths):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if files.setdefault(name, path) != path:
            raise ValueError(f'"{files[name]}" and "{path}" have the same name but for the ending; remove one')
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:_LISTED]) + (f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")
