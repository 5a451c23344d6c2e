"""Pairs of views of photographs whose correspondence is known exactly: two crops of one image, turned, scaled, mirrored, recoloured.

A view is a square on the image, given by centre, side and angle, that lies inside it altogether. It is read in two steps that keep
sub-pixel places: PIL's antialiased resize brings the part of the image around it to the view's scale, and bicubic interpolation
turns it. Both put pixel centres at integer + 0.5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.images import in_threads, upright

_GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
_FREE = 10  # draws of the second view before it is drawn towards the first
_PULLED = 10  # draws on the way there
_LATTICE = 16  # points along a side that the overlap is measured on


@dataclass(frozen=True)
class PairRecipe:
    """How the two views of an image differ.

    Attributes:
        flip: probability that the second view is mirrored left to right.
        scale: smallest and largest side of a view, as a share of the image's shorter side (drawn uniformly in the logarithm, then
            cut to what fits at the view's angle).
        rotation: largest turn of a view to either side, in degrees.
        overlap: smallest share of each view that the other one shows too.
        brightness, contrast, saturation: a view's factor is drawn from 1 - value to 1 + value, each view its own.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.6, 1.0)
    rotation: float = 15.0
    overlap: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        for name in ("flip", "overlap", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; choose a share from 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; choose two shares, 0 < smallest <= largest <= 1")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}; choose degrees from 0 to 180")


class Pairs(NamedTuple):
    """Two views of each image.

    Attributes:
        first, second: RGB pixels of the two views.
        warp: affine map from pixel coordinates (x, y) of the first view to those of the second, in pixels; the centre of the top left
            pixel is (0.5, 0.5).
        source: file of each pair, no two the same.
    """

    first: UInt8[np.ndarray, "n size size 3"]
    second: UInt8[np.ndarray, "n size size 3"]
    warp: Float[np.ndarray, "n 2 3"]
    source: tuple[str, ...]


def view_pairs(paths: Sequence[Path], count: int, size: int, seed: int = 0, recipe: PairRecipe | None = None) -> Pairs:
    """Two views of each of `count` images, taken from `paths` in an order that the seed determines.

    Pair i is drawn from default_rng((seed, i)) and its image from the whole list: it does not depend on how many are asked for.

    Args:
        paths: images; classes or places one after another are no matter, the order is shuffled.
        count: pairs, each from an image of its own.
        size: pixels of a view's side.
        recipe: how the views differ; the default of `PairRecipe` by default.

    Raises:
        ValueError: fewer images than pairs, no pairs, views of no pixels, or an image that cannot be read.
    """
    if count < 1 or size < 1:
        raise ValueError(f"{count} pairs of {size} pixels do not exist; use at least 1 of each")
    if count > len(paths):
        raise ValueError(f"{count} pairs need as many images, there are {len(paths)}; lower the count or add images")
    chosen = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))[:count]]
    make = functools.partial(_pair, size=size, seed=seed, recipe=recipe or PairRecipe())
    first, second = (np.empty((count, size, size, 3), np.uint8) for _ in range(2))
    warps = np.empty((count, 2, 3), np.float32)
    for i, (one, other, warp) in enumerate(in_threads(make, enumerate(chosen), "making pairs of views")):
        first[i], second[i], warps[i] = one, other, warp
    return Pairs(first, second, warps, tuple(str(path) for path in chosen))


class _View(NamedTuple):
    """A square on an image: centre and side in its pixels, angle in radians, mirrored (before it is turned) or not."""

    x: float
    y: float
    side: float
    angle: float
    mirrored: bool = False


def _pair(item: tuple[int, Path], size: int, seed: int, recipe: PairRecipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First view, second view and the warp between them, for pair `item[0]` of image `item[1]`."""
    index, path = item
    image = upright(path)
    random = np.random.default_rng((seed, index))
    first, second = _views(random, *image.size, recipe)
    warp = np.linalg.inv(_to_image(second, size)) @ _to_image(first, size)
    one, other = (_recolour(random, _read(image, view, size), recipe) for view in (first, second))
    return one, other, warp[:2]


def _views(random: np.random.Generator, width: int, height: int, recipe: PairRecipe) -> tuple[_View, _View]:
    """Two views that overlap. If none of the first draws does, they are pulled towards the first view, at last all the way."""
    first, mirrored = _drawn(random, width, height, recipe, None), bool(random.random() < recipe.flip)
    for pull in (*[0.0] * _FREE, *np.linspace(0, 1, _PULLED)):
        drawn = _drawn(random, width, height, recipe, first)
        x, y, side, angle = (pull * a + (1 - pull) * b for a, b in zip(first[:4], drawn[:4], strict=True))
        second = _placed(_View(x, y, side, angle, mirrored), width, height) if pull < 1 else first._replace(mirrored=mirrored)
        if min(_share(first, second), _share(second, first)) >= recipe.overlap:
            break
    return first, second


def _drawn(random: np.random.Generator, width: int, height: int, recipe: PairRecipe, near: _View | None) -> _View:
    """A view anywhere on the image, or with its centre within half a side of that of `near`."""
    low, high = recipe.scale
    angle = math.radians(random.uniform(-recipe.rotation, recipe.rotation))
    side = min(width, height) * math.exp(random.uniform(math.log(low), math.log(high)))
    middle, reach = ((width / 2, height / 2), max(width, height)) if near is None else ((near.x, near.y), near.side / 2)
    least, most = (_placed(_View(middle[0] + step, middle[1] + step, side, angle), width, height) for step in (-reach, reach))
    return least._replace(x=random.uniform(least.x, most.x), y=random.uniform(least.y, most.y))


def _placed(view: _View, width: int, height: int) -> _View:
    """The view shrunk and moved until it lies inside the image."""
    reach = abs(math.cos(view.angle)) + abs(math.sin(view.angle))  # sides of the upright square around a turned one of side 1
    side = min(view.side, min(width, height) / reach)
    half = side * reach / 2
    return view._replace(x=min(max(view.x, half), width - half), y=min(max(view.y, half), height - half), side=side)


def _to_image(view: _View, size: int) -> Float[np.ndarray, "3 3"]:
    """Pixel coordinates (x, y, 1) of the view to those of the image."""
    cosine, sine = math.cos(view.angle), math.sin(view.angle)
    linear = view.side / size * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1 if view.mirrored else 1, 1])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([view.x, view.y]) - linear.sum(axis=1) * (size / 2)
    return matrix


def _share(view: _View, other: _View) -> float:
    """Share of the one view that the other shows, on a lattice of points."""
    y, x = (np.mgrid[:_LATTICE, :_LATTICE] + 0.5).reshape(2, -1)
    points = np.linalg.inv(_to_image(other, 1)) @ _to_image(view, _LATTICE) @ np.stack([x, y, np.ones_like(x)])
    return float(((points[:2] >= 0) & (points[:2] <= 1)).all(axis=0).mean())


def _read(image: Image.Image, view: _View, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The pixels of a view."""
    scale = max(view.side / size, 1.0)  # pixels of the image in one of the view; what is enlarged needs no antialiasing
    half = view.side / 2 * (abs(math.cos(view.angle)) + abs(math.sin(view.angle)))
    margin = 5 * scale  # both kernels reach two pixels of the view's scale far: no edge but the image's own is felt
    left, top = max(0, math.floor(view.x - half - margin)), max(0, math.floor(view.y - half - margin))
    right, bottom = min(image.width, math.ceil(view.x + half + margin)), min(image.height, math.ceil(view.y + half + margin))
    part = image.crop((left, top, right, bottom))
    new = (round(part.width / scale), round(part.height / scale))
    to_near = np.diag([new[0] / part.width, new[1] / part.height, 1.0]) @ _shift(-left, -top) @ _to_image(view, size)
    coefficients = tuple(to_near[:2].ravel().tolist())

    def band(pixels: Image.Image) -> np.ndarray:
        # in floats, rounded once at the end: PIL's bicubic `transform` of bytes cuts off what is behind the point
        near = pixels.convert("F").resize(new, Image.Resampling.BICUBIC)
        return np.asarray(near.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC))

    return np.clip(np.round(np.stack([band(pixels) for pixels in part.split()], axis=-1)), 0, 255).astype(np.uint8)


def _shift(x: float, y: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _recolour(
    random: np.random.Generator, pixels: UInt8[np.ndarray, "size size 3"], recipe: PairRecipe
) -> UInt8[np.ndarray, "size size 3"]:
    """Saturation, contrast (around the mean grey) and brightness of a view, rounded once."""
    strengths = (recipe.saturation, recipe.contrast, recipe.brightness)
    saturation, contrast, brightness = (random.uniform(1 - strength, 1 + strength) for strength in strengths)
    grey = (pixels @ _GREY)[..., None]
    colours = grey + saturation * (pixels - grey)
    colours = brightness * (grey.mean() + contrast * (colours - grey.mean()))
    return np.clip(np.round(colours), 0, 255).astype(np.uint8)
