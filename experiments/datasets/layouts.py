"""Layouts of data sets on disk: class folders, Pascal VOC, image and mask folders, SPair-71k.

Everything is sorted by name, so that the same folder gives the same list on every machine. Whatever does not fit its layout raises
an error; what is left out is told.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments.datasets.labels import ImageList, class_names, refuse_other_classes
from experiments.datasets.listing import ENDINGS, by_name, equal_name, existing_folder, find, images_below, is_image, left_out_note, visible
from experiments.datasets.reading import IGNORE, MAX_PIXELS, Refused, all_refused, in_threads, named, read_mask, read_size, read_text

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LOSSLESS = frozenset((".png", ".bmp", ".tif", ".tiff"))
_SPLITS = frozenset(("train", "val", "valid", "validation", "test"))  # names of folders that hold a split, never images of one class


class MaskList(NamedTuple):
    """Images and, in the same order, their masks; labels of a mask index `classes`, and `IGNORE` is no class. `notes` are lines about
    what was left out."""

    images: list[Path]
    masks: list[Path]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
    """List images in the layout of ImageNet, `<root>/<class>/<image>`, with classes sorted by name. Images in folders below that of a
    class belong to the class, as in torchvision's ImageFolder.

    Args:
        root: folder of one split.
        classes: those of another split, whose order the labels then follow.

    Raises:
        ValueError: there is no such folder, no image, a class without images, an image outside any class, other classes than `classes`,
            or all images lie two folders below.
    """
    root = existing_folder(root)
    entries = visible(root)
    if loose := [path for path in entries if is_image(path)]:
        raise ValueError(
            f'"{root}" has images outside any class folder ({named(p.name for p in loose)}); the layout is <class>/<image>, or one folder '
            "of images without classes"
        )
    folders = [path for path in entries if path.is_dir()]
    if not folders:
        raise ValueError(f'"{root}" has no class folders; the layout is <class>/<image>')
    listed = [images_below(folder) for folder in folders]
    for folder, (paths, others) in zip(folders, listed, strict=True):
        if not paths:
            contents = named(p.name for p in visible(folder)) or "nothing"
            ends = f", but images end in {', '.join(sorted(ENDINGS))}" if others else ""
            remedy = "give the folder of one split, or remove the class"
            raise ValueError(f'class folder "{folder}" has no images (but {contents}{ends}); {remedy}')
    if all(path.parent != folder for folder, (paths, _) in zip(folders, listed, strict=True) for path in paths):
        below = named(dict.fromkeys(path.relative_to(root).parts[1] for paths, _ in listed for path in paths))
        raise ValueError(
            f'all images of "{root}" lie two folders below ({below}): are these the classes? name the folder right above the classes, or '
            "move the images into it"
        )
    names = tuple(equal_name(folder.name) for folder in folders)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'"{root}" has two class folders whose names look equal, {named(repeated)} (in NFC and in NFD); join them')
    order = names if classes is None else tuple(map(equal_name, classes))
    refuse_other_classes(names, order, f'"{root}"')
    labels = np.repeat([order.index(name) for name in names], [len(paths) for paths, _ in listed])
    left_out = [path for path in entries if not path.is_dir()] + [path for _, others in listed for path in others]
    notes = left_out_note(left_out, root)
    return ImageList([path for paths, _ in listed for path in paths], labels.astype(np.int64), order, notes, f'the folder "{root}"')


def class_or_plain_folder(root: Path) -> ImageList:
    """List the images of class folders, or without classes all images in a folder that has no class folders and in those below it.

    Raises:
        ValueError: there is no such folder or no image; only one class; class folders do not have their layout (`image_folders`); or
            images lie in folders that are named like splits.
    """
    root = existing_folder(root)
    class_folders = [path for path in visible(root) if path.is_dir() and any(map(is_image, visible(path)))]
    if not class_folders:
        paths, others = images_and_others(root)
        if splits := [path.parent for path in paths if _SPLITS & {name.lower() for name in path.relative_to(root).parts[:-1]}]:
            raise ValueError(f'"{root}" has images in "{splits[0]}", a split; name the folder that holds train/ and val/, or one of these')
        deep = sorted({path.relative_to(root).parts[0] for path in paths if path.parent != root})
        notes = (
            (f'folder "{root.name}" has no class folders right below it: all images, also those in {named(deep)}, have no classes',)
            if deep
            else ()
        )
        notes = (*notes, *left_out_note(others, root))
        return ImageList(paths, np.zeros(len(paths), np.int64), (), notes, f'the folder "{root}"')
    names = [folder.name for folder in class_folders]
    if _SPLITS.issuperset(map(str.lower, names)):
        raise ValueError(f'"{root}" has {named(names)}, which are splits and no classes; name two of them train and val, or give one alone')
    listed = image_folders(root)
    if len(listed.classes) == 1:
        raise ValueError(
            f'"{root}" has one class folder, {names[0]}: a probe of one class is always right; add classes, or name "{class_folders[0]}" '
            "itself, whose images then have no classes"
        )
    return listed


def images_and_others(root: Path) -> tuple[list[Path], list[Path]]:
    """Images in a folder and in those below it, and all other files there.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    root = existing_folder(root)
    paths, others = images_below(root)
    if not paths:
        found = f" (but {named(path.name for path in others)})" if others else ""
        raise ValueError(f'"{root}" has no images; they end in {", ".join(sorted(ENDINGS))}{found}')
    return paths, others


def any_images(root: Path) -> list[Path]:
    """List all images in a folder and the folders below it.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    return images_and_others(root)[0]


def voc(root: Path, split: str) -> MaskList:
    """List images and masks in the layout of Pascal VOC: `ImageSets/Segmentation/<split>.txt` names files of `JPEGImages/` and
    `SegmentationClass/*.png`, one a line without its ending; or an image and its mask a line, both as paths below `root`.

    Classes are the lines of `labels.txt` if there is one, else the 21 of VOC 2012.

    Raises:
        ValueError: the folder, the split, an image or a mask is missing.
    """
    root = existing_folder(root)
    lines = _read_split(existing_folder(root / "ImageSets" / "Segmentation"), split)
    classes = class_names(root) or VOC_CLASSES
    pairs = [line.split() for line in lines]
    if all(len(pair) == 2 and ENDINGS & {Path(pair[0]).suffix.lower()} and ENDINGS & {Path(pair[1]).suffix.lower()} for pair in pairs):
        images, masks = ([find(root, *Path(path.lstrip("/")).parts) for path in paths] for paths in zip(*pairs, strict=True))
        if absent := [path.relative_to(root).as_posix() for path in (*images, *masks) if not path.is_file()]:
            raise ValueError(f'split {split} names files that are not below "{root}": {named(absent)}')
        return MaskList(images, masks, classes)
    folders = (root / "JPEGImages", root / "SegmentationClass")
    files = [by_name(filter(is_image, visible(existing_folder(folder))), folder) for folder in folders]
    for folder, paths in zip(folders, files, strict=True):
        if absent := [name for name in lines if name not in paths]:
            hint = "" if set(absent) < set(lines) else "; a line is a name without its ending, or an image and its mask"
            raise ValueError(f'split {split} names files that are not in "{folder}": {named(absent)}{hint}')
    images, masks = ([paths[name] for name in lines] for paths in files)
    return MaskList(images, masks, classes)


def image_mask_folders(images: Path, masks: Path, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS) -> MaskList:
    """List images and masks in two folders, whose files and folders below have the same names but for the endings.

    Args:
        images: folder of images.
        masks: folder of lossless masks.
        classes: names of the labels 0, 1, ...; by default the lines of `labels.txt` beside the masks or one folder higher, else
            "0", "1", ... up to the largest label, for which every mask is read.
        max_pixels: of a mask.

    Raises:
        ValueError: a folder is missing or empty, an image has no mask or a mask no image, or a mask cannot be read.
    """
    images, masks = existing_folder(images), existing_folder(masks)
    image_paths, other_images = images_and_others(images)
    mask_paths, other_masks = images_below(masks)
    lossy = [path for path in mask_paths if path.suffix.lower() not in _LOSSLESS]
    image_files = by_name(image_paths, images)
    mask_files = by_name([path for path in mask_paths if path not in lossy], masks)
    if not mask_files:
        raise ValueError(f'"{masks}" has no masks; they are {", ".join(sorted(_LOSSLESS))} files, because others change the labels')
    for kind, other, unmatched in (("image", "mask", image_files.keys() - mask_files), ("mask", "image", mask_files.keys() - image_files)):
        if unmatched:
            raise ValueError(f"no {other} belongs to {kind} {named(sorted(unmatched))}; both need the same names")
    names = sorted(image_files)
    paths = [mask_files[name] for name in names]
    names_of_classes = tuple(classes or ()) or class_names(masks) or class_names(masks.parent)
    if not names_of_classes:
        read = functools.partial(read_mask, max_pixels=max_pixels)
        largest = max(int(mask[mask != IGNORE].max(initial=0)) for mask in in_threads(read, paths, "reading masks"))
        names_of_classes = tuple(str(label) for label in range(largest + 1))
    no_masks = [path for path in (*other_masks, *lossy) if path.name != "labels.txt"]
    notes = (*left_out_note(other_images, images), *left_out_note(no_masks, masks))
    return MaskList([image_files[name] for name in names], paths, names_of_classes, notes)


def read_masks(
    paths: Sequence[Path], classes: int | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "masks height width"], Int[np.ndarray, "masks 2"]]:
    """Read label masks at their own resolution: a palette's indices or grey values as they are in the file.

    Args:
        paths: lossless files of one channel.
        classes: number of classes, to check the labels against.
        max_pixels: of a mask.

    Returns:
        Masks, padded with `IGNORE` at the bottom and the right to the largest height and width, and the (height, width) of each.

    Raises:
        ValueError: no paths, a file that cannot be read or has colours instead of labels, or a label that is neither below
            `classes` nor `IGNORE`; all such files are named.
    """
    if not paths:
        raise ValueError("no masks to read; give at least one path")

    def read(path: Path) -> UInt8[np.ndarray, "height width"]:
        mask = read_mask(path, max_pixels)
        if classes is not None and (largest := int(mask[mask != IGNORE].max(initial=0))) >= classes:
            has = f"has the label {largest}, {classes} classes have labels 0 to {classes - 1} ({IGNORE}: ignored)"
            raise Refused(path, has, "name every label in labels.txt, one a line from label 0 on, or number them anew", "mask")
        return mask

    masks = list(in_threads(read, paths, "reading masks"))
    sizes = np.array([mask.shape for mask in masks], np.int64)
    padded = np.full((len(masks), *sizes.max(axis=0)), IGNORE, np.uint8)
    for canvas, mask in zip(padded, masks, strict=True):
        canvas[: mask.shape[0], : mask.shape[1]] = mask
    return padded, sizes


def spair(root: Path, split: str = "test", size_of_layout: str = "large", max_pixels: int = MAX_PIXELS) -> KeypointPairs:
    """Read pairs and keypoints in the layout of SPair-71k (Min et al. 2019): `Layout/<size_of_layout>/<split>.txt` names the pairs, one
    a line ("000001-<source>-<target>:<category>"), `PairAnnotation/<split>/<line>.json` has their keypoints, and the images are in
    `JPEGImages/<category>/`. Its splits are trn, val and test, the sizes of its layout large and small.

    Raises:
        ValueError: the folder, the split, an annotation or an image is missing, a field of an annotation is missing or invalid, or an
            image has another size than its annotation says.
    """
    root = existing_folder(root)
    names = _read_split(existing_folder(root / "Layout" / size_of_layout), split)
    read = functools.partial(_read_pair, root, existing_folder(root / "PairAnnotation" / split))
    pairs = list(in_threads(read, names, "reading annotations"))
    sizes = {path: size for pair in pairs for path, size in pair.sizes.items()}
    images = sorted(sizes)
    refused = []
    sizes_of_files = in_threads(functools.partial(read_size, max_pixels=max_pixels), images, "reading image sizes")
    for path, size in zip(images, sizes_of_files, strict=True):
        if size != sizes[path]:
            actual, annotated = (" x ".join(map(str, sides)) for sides in (size, sizes[path]))
            has = f"has {actual} pixels (height x width), its annotation says {annotated}"
            refused.append(Refused(path, has, "use the original images", "image"))
    if refused:
        raise all_refused(refused, len(images))
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
    path = find(folder, f"{name}.json")
    try:
        entry: dict[str, Any] = json.loads(read_text(path))
        category = str(entry["category"])
        source, target = (find(root / "JPEGImages", category, str(entry[field])) for field in ("src_imname", "trg_imname"))
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
        raise Refused(path, f"lacks the field {error}", "get SPair-71k again", "annotation") from error
    except (OSError, TypeError, ValueError, IndexError) as error:
        raise Refused(path, f"cannot be read ({error})", "get SPair-71k again", "annotation") from error
    return _PairAnnotation(source, target, source_points, target_points, float(max(box[2:] - box[:2])), category, sizes)


def _read_split(folder: Path, split: str) -> list[str]:
    """Lines of the file of a split."""
    path = folder / f"{split}.txt"
    if not path.is_file():
        splits = named(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise ValueError(f'there is no split "{split}" in "{folder}"; there is: {splits}')
    names = [equal_name(line.strip()) for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise ValueError(f'split "{path}" is empty; it names one item a line')
    if len(set(names)) < len(names):
        raise ValueError(f'split "{path}" names {named(sorted({n for n in names if names.count(n) > 1}))} twice; remove the repetition')
    return names
