"""Pairs of views of images with exact correspondence: two crops of one image, rotated, scaled, mirrored and recoloured.

A view is a square wholly inside the image, given by centre, side and angle. It is resampled in two steps that keep sub-pixel
positions: PIL's antialiased resize brings the region around it to the view's scale, and bicubic interpolation rotates it. Both put
pixel centres at integer + 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from experiments.datasets.plausibility import refuse_blank
from experiments.datasets.reading import MAX_PIXELS, in_threads, read_rgb
from experiments.datasets.stored import ImageSource, in_reading_order

_GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
_FREE_DRAWS = 10  # draws of the second view before it is moved towards the first
_PULLED_DRAWS = 10  # draws on the way there
_LATTICE = 16  # points along a side, on which overlap is measured


@dataclass(frozen=True)
class PairRecipe:
    """How the two views of an image differ.

    Attributes:
        flip: probability that the second view is mirrored left to right.
        scale: smallest and largest side of a view, as a share of the image's shorter side (drawn uniformly in the logarithm, then
            cut to what fits at the view's angle).
        rotation: largest rotation of a view in either direction, in degrees.
        overlap: smallest share of each view that the other one shows too.
        brightness, contrast, saturation: each view's factor is drawn from 1 - value to 1 + value.
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


class ViewPairs(NamedTuple):
    """Two views of each image.

    Attributes:
        first, second: RGB pixels of the two views.
        warp: affine map from pixel coordinates (x, y) of the first view to those of the second, in pixels; the centre of the top left
            pixel is (0.5, 0.5).
        source: file of each pair's image, or its number in the array; no two pairs share one.
    """

    first: UInt8[np.ndarray, "n size size 3"]
    second: UInt8[np.ndarray, "n size size 3"]
    warp: Float[np.ndarray, "n 2 3"]
    source: tuple[str, ...]


def view_pairs(
    images: Sequence[ImageSource] | UInt8[np.ndarray, "images height width 3"],
    count: int,
    size: int,
    seed: int = 0,
    recipe: PairRecipe | None = None,
    max_pixels: int = MAX_PIXELS,
    keep_blank: bool = True,
) -> ViewPairs:
    """Two views of each of `count` images, taken in an order that the seed determines.

    Pair i is drawn from default_rng((seed, i)) and its image from all that are given, so that it does not depend on `count`.

    Args:
        images: files or pixels; they are shuffled, so that their order by class or folder does not matter.
        count: number of pairs, each from an image of its own.
        size: pixels of a view's side.
        recipe: how the views differ; the default of `PairRecipe` by default.
        max_pixels: of the image in a file.
        keep_blank: accept files of one colour.

    Raises:
        ValueError: fewer images than pairs, no pairs, views of no pixels, or files that cannot be read or (unless they are
            kept) show nothing.
    """
    if count < 1 or size < 1:
        raise ValueError(f"{count} pairs of {size} pixels do not exist; use at least 1 of each")
    if count > len(images):
        raise ValueError(f"{count} pairs need as many images, there are {len(images)}; lower the count or add images")
    order = np.random.default_rng(seed).permutation(len(images))[:count].tolist()

    def make(item: tuple[int, ImageSource | np.ndarray]) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        index, source = item
        image = Image.fromarray(source) if isinstance(source, np.ndarray) else read_rgb(source, max_pixels)
        if not keep_blank and not isinstance(source, np.ndarray):
            refuse_blank(np.asarray(image)[None], [source])
        return (index, *_pair(image, index, size, seed, recipe or PairRecipe()))

    first, second = (np.empty((count, size, size, 3), np.uint8) for _ in range(2))
    warps = np.empty((count, 2, 3), np.float32)
    chosen = enumerate(images[i] for i in order) if isinstance(images, np.ndarray) else in_reading_order([images[i] for i in order])
    for i, *views_and_warp in in_threads(make, chosen, "making pairs of views", count):
        first[i], second[i], warps[i] = views_and_warp
    source = tuple(str(i if isinstance(images, np.ndarray) else images[i]) for i in order)
    return ViewPairs(first, second, warps, source)


class _View(NamedTuple):
    """A square on an image: centre and side in its pixels, angle in radians; mirrored before it is rotated."""

    x: float
    y: float
    side: float
    angle: float
    mirrored: bool = False


def _pair(image: Image.Image, index: int, size: int, seed: int, recipe: PairRecipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First view, second view and the warp between them, of a pair given by its image and its number."""
    random = np.random.default_rng((seed, index))
    first, second = _draw_views(random, *image.size, recipe)
    warp = np.linalg.inv(_to_image(second, size)) @ _to_image(first, size)
    first_pixels, second_pixels = (_recolour(random, _resample(image, view, size), recipe) for view in (first, second))
    return first_pixels, second_pixels, warp[:2]


def _draw_views(random: np.random.Generator, width: int, height: int, recipe: PairRecipe) -> tuple[_View, _View]:
    """Two random views that overlap. If no free draw of the second does, further ones are moved towards the first, the last onto it."""
    first, mirrored = _draw_view(random, width, height, recipe, None), bool(random.random() < recipe.flip)
    for pull in (*[0.0] * _FREE_DRAWS, *np.linspace(0, 1, _PULLED_DRAWS)):
        drawn = _draw_view(random, width, height, recipe, first)
        between = _View(
            x=pull * first.x + (1 - pull) * drawn.x,
            y=pull * first.y + (1 - pull) * drawn.y,
            side=pull * first.side + (1 - pull) * drawn.side,
            angle=pull * first.angle + (1 - pull) * drawn.angle,
            mirrored=mirrored,
        )
        second = _fit_inside(between, width, height) if pull < 1 else first._replace(mirrored=mirrored)
        if min(_overlap(first, second), _overlap(second, first)) >= recipe.overlap:
            break
    return first, second


def _draw_view(random: np.random.Generator, width: int, height: int, recipe: PairRecipe, near: _View | None) -> _View:
    """A random view anywhere on the image, or with its centre within half a side of that of `near`."""
    low, high = recipe.scale
    angle = math.radians(random.uniform(-recipe.rotation, recipe.rotation))
    side = min(width, height) * math.exp(random.uniform(math.log(low), math.log(high)))
    (x, y), reach = ((width / 2, height / 2), max(width, height)) if near is None else ((near.x, near.y), near.side / 2)
    least, most = (_fit_inside(_View(x + step, y + step, side, angle), width, height) for step in (-reach, reach))
    return least._replace(x=random.uniform(least.x, most.x), y=random.uniform(least.y, most.y))


def _fit_inside(view: _View, width: int, height: int) -> _View:
    """The view, shrunk and moved until it lies inside the image."""
    extent = abs(math.cos(view.angle)) + abs(math.sin(view.angle))  # side of the upright square around a rotated one of side 1
    side = min(view.side, min(width, height) / extent)
    half = side * extent / 2
    return view._replace(x=min(max(view.x, half), width - half), y=min(max(view.y, half), height - half), side=side)


def _to_image(view: _View, size: int) -> Float[np.ndarray, "3 3"]:
    """The matrix from pixel coordinates (x, y, 1) of the view to those of the image."""
    cosine, sine = math.cos(view.angle), math.sin(view.angle)
    linear = view.side / size * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1 if view.mirrored else 1, 1])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([view.x, view.y]) - linear.sum(axis=1) * (size / 2)
    return matrix


def _overlap(view: _View, other: _View) -> float:
    """The share of a view that another view shows too, on a lattice of points."""
    y, x = (np.mgrid[:_LATTICE, :_LATTICE] + 0.5).reshape(2, -1)
    points = np.linalg.inv(_to_image(other, 1)) @ _to_image(view, _LATTICE) @ np.stack([x, y, np.ones_like(x)])
    return float(((points[:2] >= 0) & (points[:2] <= 1)).all(axis=0).mean())


def _resample(image: Image.Image, view: _View, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The pixels of a view."""
    scale = max(view.side / size, 1.0)  # image pixels in a pixel of the view; enlarging needs no antialiasing
    half = view.side / 2 * (abs(math.cos(view.angle)) + abs(math.sin(view.angle)))
    margin = 5 * scale  # each kernel reaches two pixels of the view: with this margin the crop's edge has no effect
    left, top = max(0, math.floor(view.x - half - margin)), max(0, math.floor(view.y - half - margin))
    right, bottom = min(image.width, math.ceil(view.x + half + margin)), min(image.height, math.ceil(view.y + half + margin))
    region = image.crop((left, top, right, bottom))
    resized = (round(region.width / scale), round(region.height / scale))
    to_resized = np.diag([resized[0] / region.width, resized[1] / region.height, 1.0]) @ _shift(-left, -top) @ _to_image(view, size)
    coefficients = tuple(to_resized[:2].ravel().tolist())

    def resample_band(band: Image.Image) -> np.ndarray:
        # in floats, rounded once at the end: PIL's bicubic `transform` of bytes truncates to integers
        scaled = band.convert("F").resize(resized, Image.Resampling.BICUBIC)
        return np.asarray(scaled.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC))

    return np.clip(np.round(np.stack([resample_band(band) for band in region.split()], axis=-1)), 0, 255).astype(np.uint8)


def _shift(x: float, y: float) -> Float[np.ndarray, "3 3"]:
    """The matrix of a translation."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _recolour(
    random: np.random.Generator, pixels: UInt8[np.ndarray, "size size 3"], recipe: PairRecipe
) -> UInt8[np.ndarray, "size size 3"]:
    """A view with random saturation, contrast (around the mean grey) and brightness, rounded once."""
    strengths = (recipe.saturation, recipe.contrast, recipe.brightness)
    saturation, contrast, brightness = (random.uniform(1 - strength, 1 + strength) for strength in strengths)
    grey = (pixels @ _GREY)[..., None]
    colours = grey + saturation * (pixels - grey)
    colours = brightness * (grey.mean() + contrast * (colours - grey.mean()))
    return np.clip(np.round(colours), 0, 255).astype(np.uint8)
