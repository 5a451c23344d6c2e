"""Digit scenes: labelled images, masks and exact correspondences, composed from what scikit-learn ships.

A scene is a darkened 112-pixel tile of a photograph, one main digit near its centre and, half of the time, a small
distractor digit that the main one hides where they meet. Scenes are functions on the plane, rendered directly at the
requested view, so that masks and correspondences are exact. Scene i of a split is drawn from fold_in(seed, split, i)
and rendered in a fixed slot of a fixed chunk: it never depends on how many are asked for. Train and test share no digit
and no photograph column.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from sklearn.datasets import load_digits, load_sample_images

from jaxvit.position import resize_matrix

SIZE = 64
CLASSES = 11
TILE = 112
_CHUNK = 64
_DIGIT = 8
_UPSAMPLE = 6
_MARGIN = 1
_TRAIN_COLUMNS = 0.6

DIGITS = {"train": range(0, 1297), "test": range(1297, 1797), "bank": range(0, 1037), "choose": range(1037, 1297)}
"""Indices into `load_digits`. "bank" and "choose" divide the training digits, for choosing without the test split."""


class Scenes(NamedTuple):
    """Labelled scenes.

    Attributes:
        images: RGB pixels.
        labels: class 0..9 of the main digit.
        masks: 0 for ground, 1 + class on the pixels of either digit (alpha above one half).
    """

    images: UInt8[np.ndarray, "n 64 64 3"]
    labels: Int[np.ndarray, "n"]
    masks: UInt8[np.ndarray, "n 64 64"]


class Pairs(NamedTuple):
    """Two views of each scene: same ground, same colours, another rotation, scale and translation.

    Attributes:
        first, second: RGB pixels of the two views.
        warp: affine map from pixel coordinates (x, y) of the first view to those of the second, in pixels;
            the centre of the top left pixel is (0.5, 0.5).
        digit: pixels of the main digit in the first view.
    """

    first: UInt8[np.ndarray, "n 64 64 3"]
    second: UInt8[np.ndarray, "n 64 64 3"]
    warp: Float[np.ndarray, "n 2 3"]
    digit: Bool[np.ndarray, "n 64 64"]


class Material(NamedTuple):
    """What the scenes of one split are made of; an argument of jitted functions.

    Attributes:
        digits: opacity of every digit in 0..1, with a transparent border.
        classes: class of every digit.
        grounds: the split's part of each photograph at scales 1 and 1/2, zero-padded to one shape.
        extents: height and width of each ground without the padding.
    """

    digits: Float[Array, "digits side side"]
    classes: Int[Array, "digits"]
    grounds: UInt8[Array, "grounds height width 3"]
    extents: Int[Array, "grounds 2"]


def scenes(split: str, count: int, seed: int = 0, start: int = 0) -> Scenes:
    """Scenes start, ..., start + count - 1 of a split, in the upright view and at full contrast.

    Raises:
        ValueError: unknown split, or a negative count or start.
    """
    source = material(split)
    return Scenes(*_in_chunks(functools.partial(_scene_chunk, source, _split_key(split, seed)), count, start))


def pairs(split: str, count: int, seed: int = 0) -> Pairs:
    """Two views of each of the first `count` scenes of a split.

    Raises:
        ValueError: unknown split, or a negative count.
    """
    source = material(split)
    return Pairs(*_in_chunks(functools.partial(_pair_chunk, source, _split_key(split, seed)), count, 0))


def training_views(
    source: Material, key: Array, indices: Int[Array, "n"], strength: Float[Array, ""] | float, size: int
) -> UInt8[Array, "n 2 size size 3"]:
    """Two views per scene for training without labels; pure, to be called inside a jitted step.

    The views share the main digit and its pose in the scene, but nothing around it: each has its own tile, colours and
    distractor, because a shared ground would tell two views of a scene from all others without a look at the digit.

    Args:
        source: `material("train")`.
        key: key of the run; scene i is drawn from fold_in(key, i).
        indices: numbers of the scenes.
        strength: 0 (plain ground, upright view) to 1 (full ground contrast, full geometry).
        size: pixels of a view's side; every size shows the same field.
    """

    def one(index: Array) -> Array:
        identity, *views = jax.random.split(jax.random.fold_in(key, index), 3)
        main = _main_digit(identity, source)

        def view(view_key: Array) -> Array:
            around, geometry = jax.random.split(view_key)
            scene = _surround(around, source, main, strength)
            return _render(source, scene, _view(geometry, strength, size, shear=0.2), size)[0]

        return jax.vmap(view)(jnp.stack(views))

    return jax.vmap(one)(indices)


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
    cells = _DIGIT + 2 * _MARGIN
    enlarge = resize_matrix(cells, cells * _UPSAMPLE, "antialias")
    # A stroke's core has intensity 10 to 16 of 16: opaque from 2/3 on, so that thin strokes are solid too.
    opacity = np.clip(1.5 * np.einsum("is,nst,jt->nij", enlarge, padded, enlarge), 0, 1)
    parts = [ground for photo in load_sample_images().images for ground in _grounds(photo, split == "test")]
    height, width = (max(part.shape[axis] for part in parts) for axis in (0, 1))
    stacked = np.stack([np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0))) for p in parts])
    extents = np.asarray([p.shape[:2] for p in parts], np.int32)
    classes = digits.target[rows].astype(np.int32)
    return Material(*(jnp.asarray(a) for a in (opacity.astype(np.float32), classes, stacked, extents)))


class _Sprite(NamedTuple):
    """A digit in a scene: `inverse` maps scene coordinates to texture pixels; colour in 0..255; present is 0 or 1."""

    digit: Int[Array, ""]
    inverse: Float[Array, "2 3"]
    colour: Float[Array, "3"]
    present: Float[Array, ""]


class _Pose(NamedTuple):
    """The main digit before it is coloured; centre and side in scene pixels."""

    digit: Int[Array, ""]
    centre: Float[Array, "2"]
    side: Float[Array, ""]
    inverse: Float[Array, "2 3"]


class _Scene(NamedTuple):
    """Ground `origin` is the tile's top left corner (row, column) in its photograph."""

    ground: Int[Array, ""]
    origin: Int[Array, "2"]
    contrast: Float[Array, ""]
    brightness: Float[Array, ""]
    main: _Sprite
    small: _Sprite


def _grounds(photo: np.ndarray, test: bool) -> list[np.ndarray]:
    """The split's columns of a photograph at scales 1 and 1/2 (2x2 means); cut first, so that no mean crosses the cut."""
    cut = round(photo.shape[1] * _TRAIN_COLUMNS)
    part = photo[:, cut:] if test else photo[:, :cut]
    height, width = (side // 2 for side in part.shape[:2])
    half = part[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
    return [part, np.round(half).astype(np.uint8)]


def _split_key(split: str, seed: int) -> Array:
    return jax.random.fold_in(jax.random.key(seed), list(DIGITS).index(split))


def _uniform(key: Array, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _linear(rotation: Array, scale: Array, shear: Array) -> Float[Array, "2 2"]:
    """scale * rotation @ horizontal shear."""
    cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
    return scale * jnp.stack([jnp.stack([cosine, shear * cosine - sine]), jnp.stack([sine, shear * sine + cosine])])


def _invert(linear: Float[Array, "2 2"], shift: Float[Array, "2"]) -> Float[Array, "2 3"]:
    """The inverse of x -> linear @ x + shift; written out, because a 2x2 solve would leave the compiled program."""
    (a, b), (c, d) = linear
    inverse = jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])]) / (a * d - b * c)
    return jnp.concatenate([inverse, -_apply(inverse, shift)[:, None]], axis=1)


def _apply(linear: Array, point: Array) -> Array:
    """linear @ point elementwise: exact float32 on every device, where a matrix product may round to bfloat16."""
    return (linear * point).sum(axis=-1)


def _texture_map(key: Array, side: Array, centre: Array, rotation: float, shear: float) -> Float[Array, "2 3"]:
    """Scene coordinates to texture pixels, for a digit whose 8x8 square has the given side."""
    turn, lean = jax.random.split(key)
    linear = _linear(_uniform(turn, -rotation, rotation), side / (_DIGIT * _UPSAMPLE), _uniform(lean, -shear, shear))
    inverse = _invert(linear, centre)
    return inverse.at[:, 2].add((_DIGIT + 2 * _MARGIN) * _UPSAMPLE / 2)


def _colour(key: Array) -> Float[Array, "3"]:
    """A bright colour: one channel full, none below 0.4."""
    hue = jax.random.uniform(key, (3,))
    return 255 * (0.4 + 0.6 * hue / hue.max())


def _main_digit(key: Array, source: Material) -> _Pose:
    pick, size, place, pose = jax.random.split(key, 4)
    digit = jax.random.randint(pick, (), 0, source.classes.shape[0])
    side, centre = _uniform(size, 34.0, 48.0), _uniform(place, -4.0, 4.0, (2,))
    return _Pose(digit, centre, side, _texture_map(pose, side, centre, rotation=0.26, shear=0.2))


def _surround(key: Array, source: Material, main: _Pose, strength: Array | float) -> _Scene:
    """Ground, colours and distractor around a main digit."""
    ground_key, corner, contrast, brightness, colour, small_key = jax.random.split(key, 6)
    ground = jax.random.randint(ground_key, (), 0, source.extents.shape[0])
    origin = jnp.floor(jax.random.uniform(corner, (2,)) * (source.extents[ground] - TILE + 1)).astype(jnp.int32)
    pick, size, place, pose, small_colour, present = jax.random.split(small_key, 6)
    side = _uniform(size, 10.0, 15.0)
    angle, gap = jax.random.split(place)
    direction = _uniform(angle, 0.0, 2 * np.pi)
    distance = main.side / 2 + _uniform(gap, 2.0, 10.0)
    centre = main.centre + distance * jnp.stack([jnp.cos(direction), jnp.sin(direction)])
    small = _Sprite(
        jax.random.randint(pick, (), 0, source.classes.shape[0]),
        _texture_map(pose, side, centre, rotation=0.26, shear=0.2),
        _colour(small_colour),
        jax.random.bernoulli(present).astype(jnp.float32),
    )
    shown = _Sprite(main.digit, main.inverse, _colour(colour), jnp.float32(1))
    return _Scene(ground, origin, strength * _uniform(contrast, 0.4, 1.0), _uniform(brightness, 0.3, 0.7), shown, small)


def _view(key: Array, strength: Array | float, size: int, shear: float) -> Float[Array, "2 3"]:
    """Map from a view's pixel coordinates to scene coordinates (origin in the middle of the tile)."""
    turn, zoom, lean, move = jax.random.split(key, 4)
    linear = _linear(
        strength * _uniform(turn, -0.4, 0.4),
        jnp.exp(strength * _uniform(zoom, -0.22, 0.22)) * (SIZE / size),
        strength * _uniform(lean, -1.0, 1.0) * shear,
    )
    shift = strength * _uniform(move, -7.0, 7.0, (2,))
    return jnp.concatenate([linear, (shift - linear.sum(axis=1) * (size / 2))[:, None]], axis=1)


def _render(source: Material, scene: _Scene, view: Array, size: int) -> tuple[Array, Array, Array]:
    """uint8 image [size, size, 3] and the opacity of the main and of the small digit [size, size]."""
    y, x = jnp.mgrid[:size, :size] + 0.5
    scene_x, scene_y = (view[i, 0] * x + view[i, 1] * y + view[i, 2] for i in (0, 1))
    ground = _ground(source, scene, scene_x, scene_y)
    main, small = (_opacity(source, sprite, scene_x, scene_y) for sprite in (scene.main, scene.small))
    # The main digit is painted last: a distractor never covers it.
    for sprite, alpha in ((scene.small, small), (scene.main, main)):
        ground = ground + alpha[..., None] * (sprite.colour - ground)
    return jnp.round(jnp.clip(ground, 0, 255)).astype(jnp.uint8), main, small * (1 - main)


def _ground(source: Material, scene: _Scene, x: Array, y: Array) -> Float[Array, "size size 3"]:
    def read(row: Array, column: Array) -> Array:
        return source.grounds[scene.ground, scene.origin[0] + row, scene.origin[1] + column].astype(jnp.float32)

    lattice = jnp.arange(TILE // 16, TILE, TILE // 8)
    mean = read(lattice[:, None], lattice[None, :]).mean(axis=(0, 1))
    pixels = _bilinear(read, x + TILE / 2, y + TILE / 2, TILE)
    return scene.brightness * (mean + scene.contrast * (pixels - mean))


def _opacity(source: Material, sprite: _Sprite, x: Array, y: Array) -> Float[Array, "size size"]:
    u, v = (sprite.inverse[i, 0] * x + sprite.inverse[i, 1] * y + sprite.inverse[i, 2] for i in (0, 1))
    # Reading outside the texture repeats its border, which is transparent.
    texture = _bilinear(lambda row, column: source.digits[sprite.digit, row, column][..., None], u, v, source.digits.shape[-1])
    return sprite.present * texture[..., 0]


def _bilinear(read: Callable[[Array, Array], Array], x: Array, y: Array, side: int) -> Array:
    """Bilinear sample at pixel coordinates of a square with the given side; the border is repeated outside."""
    x, y = (jnp.clip(c - 0.5, 0, side - 1) for c in (x, y))
    column, row = (jnp.minimum(jnp.floor(c), side - 2).astype(jnp.int32) for c in (x, y))
    right, down = (x - column)[..., None], (y - row)[..., None]
    above = read(row, column) * (1 - right) + read(row, column + 1) * right
    below = read(row + 1, column) * (1 - right) + read(row + 1, column + 1) * right
    return above * (1 - down) + below * down


@jax.jit
def _scene_chunk(source: Material, key: Array, indices: Int[Array, "chunk"]) -> tuple[Array, Array, Array]:
    upright = jnp.asarray([[1.0, 0.0, -SIZE / 2], [0.0, 1.0, -SIZE / 2]])

    def one(index: Array) -> tuple[Array, Array, Array]:
        identity, around = jax.random.split(jax.random.fold_in(key, index))
        scene = _surround(around, source, _main_digit(identity, source), 1.0)
        image, main, small = _render(source, scene, upright, SIZE)
        label, other = source.classes[scene.main.digit], source.classes[scene.small.digit]
        mask = jnp.where(main > 0.5, 1 + label, jnp.where(small > 0.5, 1 + other, 0))
        return image, label, mask.astype(jnp.uint8)

    return jax.vmap(one)(indices)


@jax.jit
def _pair_chunk(source: Material, key: Array, indices: Int[Array, "chunk"]) -> tuple[Array, Array, Array, Array]:
    def one(index: Array) -> tuple[Array, Array, Array, Array]:
        identity, around, *views = jax.random.split(jax.random.fold_in(key, index), 4)
        scene = _surround(around, source, _main_digit(identity, source), 1.0)
        first, second = (_view(k, 1.0, SIZE, shear=0.0) for k in views)
        image, main, _ = _render(source, scene, first, SIZE)
        back = _invert(second[:, :2], second[:, 2])
        linear = jnp.stack([_apply(back[:, :2], first[:, i]) for i in (0, 1)], axis=1)
        shift = _apply(back[:, :2], first[:, 2]) + back[:, 2]
        warp = jnp.concatenate([linear, shift[:, None]], axis=1)
        return image, _render(source, scene, second, SIZE)[0], warp, main > 0.5

    return jax.vmap(one)(indices)


def _in_chunks(render: Callable[[Array], tuple[Array, ...]], count: int, start: int) -> list[np.ndarray]:
    """Render aligned chunks, so that a scene always occupies the same slot of the same program, and cut."""
    if count < 0 or start < 0:
        raise ValueError(f"count and start must not be negative, got {count} and {start}")
    first, last = start // _CHUNK, max(start + count - 1, start) // _CHUNK
    chunks = [jax.device_get(render(c * _CHUNK + jnp.arange(_CHUNK))) for c in range(first, last + 1)]
    return [np.concatenate(parts)[start - first * _CHUNK :][:count] for parts in zip(*chunks, strict=True)]
