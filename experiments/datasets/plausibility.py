"""Whether images and masks, once decoded, can be what their user takes them for. A score on a constant image is perfect from nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from experiments.datasets.reading import IGNORE, Refused, all_refused, in_threads, named, read_size
from experiments.datasets.stored import ImageSource

BLACK = 20
"""An image without any value from here to 255 looks black: its values have 4 bits of 8, or 12 of 16, and resizing adds a little."""

_KEEP = "replace them or take them out, or keep such images: --keep-blank"
_PIECE = 256  # images that are looked at at once: they may be mapped from a file larger than memory

Pixels = UInt8[np.ndarray, "images height width 3"]


def refuse_blank(images: Pixels, paths: Sequence[ImageSource]) -> None:
    """Check that there is something to see in every image.

    Raises:
        ValueError: images are of one colour, or so dark that they look black (`BLACK`); all are named.
    """
    refused = [Refused(paths[i], reason, _KEEP) for i, reason in blank_images(images).items()]
    if refused:
        raise all_refused(refused, len(images))


def blank_images(images: Pixels) -> dict[int, str]:
    """What is wrong with the images that show nothing, by number."""
    reasons = {}
    for start in range(0, len(images), _PIECE):
        piece = images[start : start + _PIECE]
        few = piece[:, ::16, ::16]  # what is of one colour is so here too; minima by channel of all pixels take as long as half of decoding
        constant = (few.min(axis=(1, 2)) == few.max(axis=(1, 2))).all(axis=1)
        for i in np.flatnonzero(constant | (piece.reshape(len(piece), -1).max(axis=1) < BLACK)):
            low, high = piece[i].min(axis=(0, 1)), piece[i].max(axis=(0, 1))
            if (low == high).all():
                reasons[start + int(i)] = f"is of one colour ({', '.join(map(str, low))})"
            elif high.max() < BLACK:
                reasons[start + int(i)] = f"looks black (no value above {high.max()} of 255)"
    return reasons


def refuse_other_sides(images: Sequence[Path], masks: Sequence[Path], max_pixels: int) -> None:
    """Check that each mask has the sides of its image, as that stands upright.

    Raises:
        ValueError: some have not; all are named.
    """

    def check(pair: tuple[Path, Path]) -> None:
        image, mask = (read_size(path, max_pixels) for path in pair)
        if image != mask:
            sides = [" x ".join(map(str, size)) for size in (mask, image)]
            turned = " (turned upright by its EXIF orientation)" if mask == image[::-1] else ""
            has = f"has {sides[0]} pixels (height x width), its image {sides[1]}{turned}"
            raise Refused(pair[1], has, "save masks upright, with the sides of their images", "mask")

    list(in_threads(check, list(zip(images, masks, strict=True)), "comparing sides"))


class ReadMasks(NamedTuple):
    """Masks of one part: each in the upper left of its canvas, its height and width, and its file."""

    masks: UInt8[np.ndarray, "masks height width"]
    sizes: Int[np.ndarray, "masks 2"]
    paths: Sequence[Path]


def refuse_unlabelled(parts: Sequence[ReadMasks], keep: bool) -> None:
    """Check that there are classes to tell apart in every part, and something to score in every mask.

    Args:
        keep: accept masks without any label, as long as there are others in their part.

    Raises:
        ValueError: some masks have no label, or all labels of a part are the same.
    """
    empty = []
    for part in parts:
        counts = np.zeros(IGNORE + 1, np.int64)
        for mask, (height, width), path in zip(*part, strict=True):
            one = np.bincount(mask[:height, :width].ravel(), minlength=IGNORE + 1)
            counts += one
            if not one[:IGNORE].any():
                empty.append(Refused(path, f"has no label (all {IGNORE}: ignored)", _KEEP.replace("images", "masks"), "mask"))
        labels = np.flatnonzero(counts[:IGNORE])
        if len(labels) < 2:
            what = f"have no label but {labels[0]}" if len(labels) else "have no label at all"
            ignored = (
                f"; {IGNORE} is ignored: if it is the foreground, save it as {labels[0] + 1}" if len(labels) and counts[IGNORE] else ""
            )
            remedy = "a class alone is always right: use masks of at least two labels"
            raise ValueError(f'the {len(part.paths)} masks from "{part.paths[0]}" on {what}{ignored}; {remedy}')
    if empty and not keep:
        raise all_refused(empty, sum(len(part.paths) for part in parts))


def repeated_images(
    images: Mapping[str, Pixels], names: Mapping[str, Sequence[str]], fitted: Sequence[str], reported: str
) -> tuple[str, ...]:
    """A line for a study's notes about images to report on that equal, pixel by pixel, images to fit or choose on; none if there are none.

    Args:
        images: by part; all of one size.
        names: what each image is called, by part.
        fitted: parts to fit or choose on.
        reported: the part to report on.
    """
    known = {_digest(image) for part in fitted for image in images[part]}
    repeated = [name for name, image in zip(names[reported], images[reported], strict=True) if _digest(image) in known]
    if not repeated:
        return ()
    counts, parts = f"{len(repeated)} of {len(images[reported])} images of part {reported}", " or ".join(fitted)
    return (f"{counts} are in part {parts} too, pixel by pixel ({named(repeated)}): scores on them are too good",)


def _digest(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
