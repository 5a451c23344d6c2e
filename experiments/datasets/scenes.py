"""Digit scenes: labelled images, masks and exact correspondences, composed from the digits and photographs of scikit-learn.

A scene is a darkened 112-pixel tile of a photograph, one main digit near its centre and, half of the time, a small
distractor digit, which the main one hides where they overlap. Scenes are functions on the plane, rendered directly at the
requested view, so that masks and correspondences are exact. Scene i of a split is drawn from fold_in(seed, split, i)
and rendered in a fixed slot of a fixed chunk: it never depends on how many are requested. The test split shares no digit
and no photograph column with the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from sklearn.datasets import load_digits, load_sample_images

from jaxvit.position import resize_matrix

SIZE = 64  # pixels of an image's side
TILE = 112  # pixels of a side of the tile of a photograph behind a scene; beyond it, its border is repeated
_CHUNK = 64  # scenes rendered at once
_DIGIT = 8  # pixels of a digit's side in `load_digits`
_UPSAMPLE = 6  # texture pixels in one of them
_MARGIN = 1  # transparent pixels around a digit, before upsampling
_TRAIN_COLUMNS = 0.6  # share of a photograph's columns, from the left, that are not the test split's

DIGITS = {"pretrain": range(0, 1297), "train": range(0, 1037), "val": range(1037, 1297), "test": range(1297, 1797)}
"""Indices into `load_digits`, by split. "pretrain" is for training models without labels; "train" and "val" divide its digits, to fit
read-outs on one and choose on the other."""

_FOLDS = {"pretrain": 0, "test": 1, "train": 2, "val": 3}  # what a split's seed is folded with: another number gives other scenes


class Scenes(NamedTuple):
    """Labelled scenes.

    Attributes:
        images: RGB pixels.
        labels: class 0..9 of the main digit.
        masks: 0 for ground, 1 + class on the pixels of either digit (opacity above one half).
        number: of the main digit, among those of the split; several scenes show one digit.
    """

    images: UInt8[np.ndarray, "n 64 64 3"]
    labels: Int[np.ndarray, "n"]
    masks: UInt8[np.ndarray, "n 64 64"]
    number: Int[np.ndarray, "n"]


class ScenePairs(NamedTuple):
    """Two views of each scene: same ground and colours, another rotation, scale and translation.

    Attributes:
        first, second: RGB pixels of the two views.
        warp: affine map from pixel coordinates (x, y) of the first view to those of the second, in pixels;
            the centre of the top left pixel is (0.5, 0.5).
        digit: pixels of the main digit in the first view.
        number: of the main digit, among those of the split; several scenes show one digit.
    """

    first: UInt8[np.ndarray, "n 64 64 3"]
    second: UInt8[np.ndarray, "n 64 64 3"]
    warp: Float[np.ndarray, "n 2 3"]
    digit: Bool[np.ndarray, "n 64 64"]
    number: Int[np.ndarray, "n"]


class Material(NamedTuple):
    """The digits and grounds that the scenes of one split are made of; an argument of jitted functions, and of the same shapes for all
    splits, so that they share programs.

    Attributes:
        digits: opacity of every digit, 0 to 1, with a transparent border; zero-padded to the number of the largest split.
        classes: class of every digit.
        digit_count: digits without the padding.
        grounds: the split's columns of each photograph at scales 1 and 1/2, zero-padded to the size of a whole photograph.
        extents: height and width of each ground without the padding.
    """

    digits: Float[Array, "digits side side"]
    classes: Int[Array, "digits"]
    digit_count: Int[Array, ""]
    grounds: UInt8[Array, "grounds height width 3"]
    extents: Int[Array, "grounds 2"]


def scenes(split: str, count: int, seed: int = 0, start: int = 0) -> Scenes:
    """Scenes number start to start + count - 1 of a split, upright and at full contrast.

    Raises:
        ValueError: unknown split, or a negative count or start.
    """
    source = material(split)
    return Scenes(*_in_chunks(functools.partial(_scene_chunk, source, _split_key(split, seed)), count, start))


def pairs(split: str, count: int, seed: int = 0) -> ScenePairs:
    """Two views of each of the first `count` scenes of a split.

    Raises:
        ValueError: unknown split, or a negative count.
    """
    source = material(split)
    return ScenePairs(*_in_chunks(functools.partial(_pair_chunk, source, _split_key(split, seed)), count, 0))


def training_views(
    source: Material, key: Array, indices: Int[Array, "n"], strength: Float[Array, ""] | float, size: int
) -> UInt8[Array, "n 2 size size 3"]:
    """Two views of each scene for training without labels; a pure function, to be called inside a jitted step.

    The views share the main digit and its pose in the scene, but nothing around it: each has its own tile, colours and
    distractor. With a shared ground, two views of a scene could be matched without looking at the digit.

    Args:
        source: `material("pretrain")`.
        key: key of the run; scene i is drawn from fold_in(key, i).
        indices: numbers of the scenes.
        strength: 0 (plain ground, upright view) to 1 (full ground contrast, full geometry).
        size: pixels of a view's side; views of every size show the same field of the scene.
    """

    def views_of_scene(index: Array) -> Array:
        digit_key, *view_keys = jax.random.split(jax.random.fold_in(key, index), 3)
        main = _main_digit(digit_key, source)

        def view(view_key: Array) -> Array:
            surroundings_key, geometry_key = jax.random.split(view_key)
            scene = _compose(surroundings_key, source, main, strength)
            return _render(source, scene, _view(geometry_key, strength, size, shear=0.2), size)[0]

        return jax.vmap(view)(jnp.stack(view_keys))

    return jax.vmap(views_of_scene)(indices)


def definition(split: str) -> dict[str, Any]:
    """The constants that the scenes of a split are drawn with, as JSON: scenes with another definition are other data."""
    return {
        "fold": _FOLDS[split],
        "digits": [DIGITS[split].start, DIGITS[split].stop],
        "train_columns": _TRAIN_COLUMNS,
        "tile": TILE,
        "size": SIZE,
    }


@functools.cache
def material(split: str) -> Material:
    """Digits and grounds of a split.

    Raises:
        ValueError: unknown split.
    """
    if split not in DIGITS:
        raise ValueError(f'unknown split "{split}"; choose one of {", ".join(DIGITS)}')
    digits = load_digits()
    rows = np.asarray(DIGITS[split])
    padded = np.pad(digits.images[rows] / 16, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))
    side = _DIGIT + 2 * _MARGIN
    upsampling = resize_matrix(side, side * _UPSAMPLE, "antialias")
    # A stroke's core has intensity 10 to 16 of 16: opaque from 2/3 on, so that thin strokes are solid too.
    opacity = np.clip(1.5 * np.einsum("is,nst,jt->nij", upsampling, padded, upsampling), 0, 1)
    photos = load_sample_images().images
    grounds = [ground for photo in photos for ground in _grounds(photo, split == "test")]
    height, width = (max(photo.shape[axis] for photo in photos) for axis in (0, 1))
    stacked = np.stack([np.pad(g, ((0, height - g.shape[0]), (0, width - g.shape[1]), (0, 0))) for g in grounds])
    extents = np.asarray([ground.shape[:2] for ground in grounds], np.int32)
    missing = max(map(len, DIGITS.values())) - len(rows)
    opacity = np.pad(opacity.astype(np.float32), ((0, missing), (0, 0), (0, 0)))
    classes = np.pad(digits.target[rows].astype(np.int32), (0, missing))
    return Material(*(jnp.asarray(array) for array in (opacity, classes, np.int32(len(rows)), stacked, extents)))


class _Sprite(NamedTuple):
    """Digit number `digit` in a scene; `inverse` maps scene coordinates to texture pixels, colour is 0 to 255, present 0 or 1."""

    digit: Int[Array, ""]
    inverse: Float[Array, "2 3"]
    colour: Float[Array, "3"]
    present: Float[Array, ""]


class _Pose(NamedTuple):
    """Where the main digit stands, without its colour; centre and side in scene pixels."""

    digit: Int[Array, ""]
    centre: Float[Array, "2"]
    side: Float[Array, ""]
    inverse: Float[Array, "2 3"]


class _Scene(NamedTuple):
    """A scene to be rendered: `origin` is the top left corner (row, column) of its tile in ground number `ground`."""

    ground: Int[Array, ""]
    origin: Int[Array, "2"]
    contrast: Float[Array, ""]
    brightness: Float[Array, ""]
    main: _Sprite
    distractor: _Sprite


def _grounds(photo: np.ndarray, test: bool) -> list[np.ndarray]:
    """The split's columns of a photograph at scales 1 and 1/2 (2x2 means); cut before scaling, so that no mean crosses the cut."""
    cut = round(photo.shape[1] * _TRAIN_COLUMNS)
    columns = photo[:, cut:] if test else photo[:, :cut]
    height, width = (side // 2 for side in columns.shape[:2])
    half = columns[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
    return [columns, np.round(half).astype(np.uint8)]


def _split_key(split: str, seed: int) -> Array:
    return jax.random.fold_in(jax.random.key(seed), _FOLDS[split])


def _uniform(key: Array, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _linear(rotation: Array, scale: Array, shear: Array) -> Float[Array, "2 2"]:
    """The matrix scale * rotation @ horizontal shear."""
    cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
    return scale * jnp.stack([jnp.stack([cosine, shear * cosine - sine]), jnp.stack([sine, shear * sine + cosine])])


def _invert(linear: Float[Array, "2 2"], shift: Float[Array, "2"]) -> Float[Array, "2 3"]:
    """The inverse of the affine map x -> linear @ x + shift. Written out, because a 2x2 solve is a call out of the compiled program."""
    (a, b), (c, d) = linear
    inverse = jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])]) / (a * d - b * c)
    return jnp.concatenate([inverse, -_apply(inverse, shift)[:, None]], axis=1)


def _apply(linear: Array, point: Array) -> Array:
    """The product linear @ point, elementwise: float32 on every device, where a matrix product may round to bfloat16."""
    return (linear * point).sum(axis=-1)


def _texture_map(key: Array, side: Array, centre: Array, rotation: float, shear: float) -> Float[Array, "2 3"]:
    """The map from scene coordinates to texture pixels of a digit whose 8x8 square has this side, randomly rotated and sheared."""
    rotation_key, shear_key = jax.random.split(key)
    linear = _linear(_uniform(rotation_key, -rotation, rotation), side / (_DIGIT * _UPSAMPLE), _uniform(shear_key, -shear, shear))
    inverse = _invert(linear, centre)
    return inverse.at[:, 2].add((_DIGIT + 2 * _MARGIN) * _UPSAMPLE / 2)


def _colour(key: Array) -> Float[Array, "3"]:
    """A random bright colour: one channel at 255, none below 0.4 of it."""
    hue = jax.random.uniform(key, (3,))
    return 255 * (0.4 + 0.6 * hue / hue.max())


def _main_digit(key: Array, source: Material) -> _Pose:
    """A random digit in a random pose near the centre."""
    digit_key, side_key, centre_key, pose_key = jax.random.split(key, 4)
    digit = jax.random.randint(digit_key, (), 0, source.digit_count)
    side, centre = _uniform(side_key, 34.0, 48.0), _uniform(centre_key, -4.0, 4.0, (2,))
    return _Pose(digit, centre, side, _texture_map(pose_key, side, centre, rotation=0.26, shear=0.2))


def _compose(key: Array, source: Material, main: _Pose, strength: Array | float) -> _Scene:
    """A scene around a main digit: its ground, colours and distractor; `strength` scales the contrast of the ground."""
    ground_key, origin_key, contrast_key, brightness_key, colour_key, distractor_key = jax.random.split(key, 6)
    ground = jax.random.randint(ground_key, (), 0, source.extents.shape[0])
    origin = jnp.floor(jax.random.uniform(origin_key, (2,)) * (source.extents[ground] - TILE + 1)).astype(jnp.int32)
    return _Scene(
        ground,
        origin,
        contrast=strength * _uniform(contrast_key, 0.4, 1.0),
        brightness=_uniform(brightness_key, 0.3, 0.7),
        main=_Sprite(main.digit, main.inverse, _colour(colour_key), jnp.float32(1)),
        distractor=_distractor(distractor_key, source, main),
    )


def _distractor(key: Array, source: Material, main: _Pose) -> _Sprite:
    """A small digit at the edge of the main one, present in half of the scenes."""
    digit_key, side_key, place_key, pose_key, colour_key, present_key = jax.random.split(key, 6)
    side = _uniform(side_key, 10.0, 15.0)
    angle_key, gap_key = jax.random.split(place_key)
    angle = _uniform(angle_key, 0.0, 2 * np.pi)
    distance = main.side / 2 + _uniform(gap_key, 2.0, 10.0)
    centre = main.centre + distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return _Sprite(
        jax.random.randint(digit_key, (), 0, source.digit_count),
        _texture_map(pose_key, side, centre, rotation=0.26, shear=0.2),
        _colour(colour_key),
        jax.random.bernoulli(present_key).astype(jnp.float32),
    )


def _view(key: Array, strength: Array | float, size: int, shear: float) -> Float[Array, "2 3"]:
    """A random map from a view's pixel coordinates to scene coordinates, whose origin is the middle of the tile."""
    rotation_key, scale_key, shear_key, shift_key = jax.random.split(key, 4)
    linear = _linear(
        strength * _uniform(rotation_key, -0.4, 0.4),
        jnp.exp(strength * _uniform(scale_key, -0.22, 0.22)) * (SIZE / size),
        strength * _uniform(shear_key, -1.0, 1.0) * shear,
    )
    shift = strength * _uniform(shift_key, -7.0, 7.0, (2,))
    return jnp.concatenate([linear, (shift - linear.sum(axis=1) * (size / 2))[:, None]], axis=1)


def _render(source: Material, scene: _Scene, view: Array, size: int) -> tuple[Array, Array, Array]:
    """The uint8 image [size, size, 3], and the visible opacity of the main digit and of the distractor [size, size]."""
    y, x = jnp.mgrid[:size, :size] + 0.5
    scene_x, scene_y = (view[i, 0] * x + view[i, 1] * y + view[i, 2] for i in (0, 1))
    image = _ground(source, scene, scene_x, scene_y)
    main, distractor = (_opacity(source, sprite, scene_x, scene_y) for sprite in (scene.main, scene.distractor))
    # The main digit is painted last: a distractor never covers it.
    for sprite, alpha in ((scene.distractor, distractor), (scene.main, main)):
        image = image + alpha[..., None] * (sprite.colour - image)
    return jnp.round(jnp.clip(image, 0, 255)).astype(jnp.uint8), main, distractor * (1 - main)


def _ground(source: Material, scene: _Scene, x: Array, y: Array) -> Float[Array, "size size 3"]:
    """Colours of the tile at scene coordinates, with the scene's contrast (around the mean over a lattice) and brightness."""

    def read(row: Array, column: Array) -> Array:
        return source.grounds[scene.ground, scene.origin[0] + row, scene.origin[1] + column].astype(jnp.float32)

    lattice = jnp.arange(TILE // 16, TILE, TILE // 8)
    mean = read(lattice[:, None], lattice[None, :]).mean(axis=(0, 1))
    pixels = _bilinear(read, x + TILE / 2, y + TILE / 2, TILE)
    return scene.brightness * (mean + scene.contrast * (pixels - mean))


def _opacity(source: Material, sprite: _Sprite, x: Array, y: Array) -> Float[Array, "size size"]:
    """A digit's opacity at scene coordinates."""
    u, v = (sprite.inverse[i, 0] * x + sprite.inverse[i, 1] * y + sprite.inverse[i, 2] for i in (0, 1))
    # Outside the texture its border is repeated, which is transparent.
    texture = _bilinear(lambda row, column: source.digits[sprite.digit, row, column][..., None], u, v, source.digits.shape[-1])
    return sprite.present * texture[..., 0]


def _bilinear(read: Callable[[Array, Array], Array], x: Array, y: Array, side: int) -> Array:
    """Bilinear interpolation at pixel coordinates of a square of this side; outside, the border is repeated."""
    x, y = (jnp.clip(c - 0.5, 0, side - 1) for c in (x, y))
    column, row = (jnp.minimum(jnp.floor(c), side - 2).astype(jnp.int32) for c in (x, y))
    right, down = (x - column)[..., None], (y - row)[..., None]
    above = read(row, column) * (1 - right) + read(row, column + 1) * right
    below = read(row + 1, column) * (1 - right) + read(row + 1, column + 1) * right
    return above * (1 - down) + below * down


@jax.jit
def _scene_chunk(source: Material, key: Array, indices: Int[Array, "chunk"]) -> tuple[Array, Array, Array, Array]:
    """Images, labels, masks and digits of the scenes with these numbers, in the order of the fields of `Scenes`."""
    upright = jnp.asarray([[1.0, 0.0, -SIZE / 2], [0.0, 1.0, -SIZE / 2]])

    def scene_of(index: Array) -> tuple[Array, Array, Array, Array]:
        digit_key, surroundings_key = jax.random.split(jax.random.fold_in(key, index))
        scene = _compose(surroundings_key, source, _main_digit(digit_key, source), 1.0)
        image, main, distractor = _render(source, scene, upright, SIZE)
        label, other = source.classes[scene.main.digit], source.classes[scene.distractor.digit]
        mask = jnp.where(main > 0.5, 1 + label, jnp.where(distractor > 0.5, 1 + other, 0))
        return image, label, mask.astype(jnp.uint8), scene.main.digit

    return jax.vmap(scene_of)(indices)


@jax.jit
def _pair_chunk(source: Material, key: Array, indices: Int[Array, "chunk"]) -> tuple[Array, Array, Array, Array, Array]:
    """Two views, warps, pixels and numbers of the main digits of the scenes with these numbers, as the fields of `ScenePairs`."""

    def pair_of(index: Array) -> tuple[Array, Array, Array, Array, Array]:
        digit_key, surroundings_key, *view_keys = jax.random.split(jax.random.fold_in(key, index), 4)
        scene = _compose(surroundings_key, source, _main_digit(digit_key, source), 1.0)
        first, second = (_view(k, 1.0, SIZE, shear=0.0) for k in view_keys)
        image, main, _ = _render(source, scene, first, SIZE)
        inverse = _invert(second[:, :2], second[:, 2])
        linear = jnp.stack([_apply(inverse[:, :2], first[:, i]) for i in (0, 1)], axis=1)
        shift = _apply(inverse[:, :2], first[:, 2]) + inverse[:, 2]
        warp = jnp.concatenate([linear, shift[:, None]], axis=1)
        return image, _render(source, scene, second, SIZE)[0], warp, main > 0.5, scene.main.digit

    return jax.vmap(pair_of)(indices)


def _in_chunks(render: Callable[[Array], tuple[Array, ...]], count: int, start: int) -> list[np.ndarray]:
    """The arrays of items start to start + count - 1. Whole aligned chunks are rendered and then cut, so that an item always occupies
    the same slot of the same compiled program."""
    if count < 0 or start < 0:
        raise ValueError(f"count and start must not be negative, got {count} and {start}")
    first, last = start // _CHUNK, max(start + count - 1, start) // _CHUNK
    chunks = [jax.device_get(render(c * _CHUNK + jnp.arange(_CHUNK))) for c in range(first, last + 1)]
    return [np.concatenate(arrays)[start - first * _CHUNK :][:count] for arrays in zip(*chunks, strict=True)]
