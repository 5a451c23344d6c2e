"""Pairs of views of photographs: the warp against colours that encode positions, overlap, addressing, colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

from experiments.datasets.pairs import PairRecipe, ViewPairs, view_pairs
from tests.conftest import SHARED

PLAIN = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
STILL = {"flip": 0.0, "scale": (1.0, 1.0), "rotation": 0.0}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_images(folder: Path, pictures: list[np.ndarray]) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return paths


def position_colours(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row, blue the same everywhere."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8)


def lattice(size: int, border: int) -> np.ndarray:
    y, x = np.mgrid[border : size - border, border : size - border] + 0.5
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)])


def fit_affine(view: np.ndarray) -> np.ndarray:
    """The affine map [2, 3] from a view's pixels to the original's, fitted to its colours; rounding averages out over the pixels."""
    points = lattice(len(view), 3)
    columns, rows = np.floor(points[:2]).astype(int)
    return np.linalg.lstsq(points.T, view[rows, columns, :2] + 0.5, rcond=None)[0].T


def largest_error(view: np.ndarray, other: np.ndarray, warp: np.ndarray) -> float:
    """The largest distance, in pixels of the original, between what a point of a view shows and what the warped point shows."""
    points = lattice(len(view), 0)
    warped = np.vstack([warp @ points, points[2:]])
    visible = ((warped[:2] > 0) & (warped[:2] < len(view))).all(axis=0)
    return float(np.linalg.norm(fit_affine(view) @ points - fit_affine(other) @ warped, axis=0)[visible].max(initial=0))


# measured: 0.10, 0.03, 0.01 pixels of the second view, the less the more pixels there are for the rounding to average out
@pytest.mark.parametrize(("size", "tolerance"), [(64, 0.15), (90, 0.06), (300, 0.02)])
def test_the_warp_leads_to_the_same_position_to_a_fraction_of_a_pixel(tmp_path: Path, size: int, tolerance: float) -> None:
    shapes = [(250, 256), (256, 120), (101, 256), (200, 200), (181, 97), (256, 256)]
    paths = write_images(tmp_path, [position_colours(*shape) for shape in shapes])
    pairs = view_pairs(paths, 6, size, seed=size, recipe=PairRecipe(**PLAIN, rotation=40))
    assert len(np.unique(np.sign(np.linalg.det(pairs.warp[:, :, :2])))) == 2, "some pairs are mirrored, some are not"
    for first, second, warp in zip(pairs.first, pairs.second, pairs.warp.astype(float), strict=True):
        for view in (first, second):  # an affine map explains every colour: no pixel comes from outside of the image
            residual = view[..., :2].reshape(-1, 2).T + 0.5 - fit_affine(view) @ lattice(size, 0)
            assert np.abs(residual).max() < 1.2  # measured: 0.8
            assert (view[..., 2] == 128).all()
        step = np.linalg.norm(fit_affine(second)[:, 0])  # a pixel of the second view in pixels of the original
        assert largest_error(first, second, warp) < tolerance * step
        assert largest_error(first, second, np.add(warp, [[0, 0, 0.5], [0, 0, 0]])) > 0.4 * step
        mirrored = np.array([[-1, 0, size], [0, 1, 0]]) @ np.vstack([warp, [0, 0, 1]])
        assert largest_error(first, second, mirrored) > 10


def test_a_view_that_is_the_whole_image_is_the_image(tmp_path: Path) -> None:
    pictures = [noise(32, 32), noise(32, 32, seed=1)]
    pairs = view_pairs(write_images(tmp_path, pictures), 2, 32, recipe=PairRecipe(**PLAIN, **STILL))
    for i, source in enumerate(pairs.source):
        np.testing.assert_array_equal(pairs.first[i], pictures[int(Path(source).stem)])
        np.testing.assert_array_equal(pairs.second[i], pictures[int(Path(source).stem)])
        np.testing.assert_allclose(pairs.warp[i], [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    mirrored = view_pairs(write_images(tmp_path, pictures), 2, 32, recipe=PairRecipe(**PLAIN, **(STILL | {"flip": 1.0})))
    np.testing.assert_array_equal(mirrored.first, pairs.first)
    np.testing.assert_array_equal(mirrored.second, pairs.first[:, :, ::-1])
    np.testing.assert_allclose(mirrored.warp, [[[-1, 0, 32], [0, 1, 0]]] * 2, atol=1e-5)


def test_a_view_that_is_shrunk_is_averaged(tmp_path: Path) -> None:
    for rotation in (0.0, 45.0):
        picture = noise(320, 320)
        pairs = view_pairs(write_images(tmp_path, [picture]), 1, 32, recipe=PairRecipe(**PLAIN, flip=0, scale=(1, 1), rotation=rotation))
        # at least 7 x 7 pixels are averaged into one, which leaves about a seventh of the noise
        assert pairs.first.std() < 0.25 * picture.std()


def test_the_views_of_a_pair_overlap(tmp_path: Path) -> None:
    shapes = [(40, 40), (40, 200), (200, 30)] * 8
    paths = write_images(tmp_path, [np.zeros((*shape, 3), np.uint8) for shape in shapes])
    for overlap in (0.5, 0.9):
        recipe = PairRecipe(rotation=90, scale=(0.3, 1.0), overlap=overlap)
        warps = view_pairs(paths, len(paths), 20, recipe=recipe).warp.astype(float)
        shares = []
        for warp in warps:
            inverse = np.linalg.inv(np.vstack([warp, [0, 0, 1]]))[:2]
            warped = np.stack([w @ lattice(20, 0) for w in (warp, inverse)])
            shares.append(((warped >= 0) & (warped <= 20)).all(axis=1).mean(axis=1).min())
        assert min(shares) > overlap - 0.06, "the program checks 16 x 16 points, this test 20 x 20"
        assert np.mean(shares) < (1 + overlap) / 2 + 0.1, "but they are not the same view"
    assert len(np.unique(warps.round(3), axis=0)) > len(paths) / 2


def test_a_pair_does_not_depend_on_how_many_are_requested(tmp_path: Path) -> None:
    paths = write_images(tmp_path, [noise(30, 40, seed=i) for i in range(9)])
    many = view_pairs(paths, 9, 16, seed=4)
    assert sorted(many.source) == sorted(map(str, paths))
    assert many.source != tuple(sorted(many.source))
    few = view_pairs(paths, 4, 16, seed=4)
    for part, whole in zip(few, many, strict=True):
        np.testing.assert_array_equal(part, whole[:4])
    other = view_pairs(paths, 9, 16, seed=5)
    assert other.source != many.source
    assert (other.warp != many.warp).any(axis=(1, 2)).all()
    assert (many.first.shape, many.first.dtype, many.warp.shape, many.warp.dtype) == ((9, 16, 16, 3), np.uint8, (9, 2, 3), np.float32)


def recoloured(folder: Path, picture: np.ndarray, **strength: float) -> ViewPairs:
    return view_pairs(write_images(folder, [picture]), 1, len(picture), recipe=PairRecipe(**(PLAIN | strength), **STILL))


def test_colours_change_as_the_recipe_says(tmp_path: Path) -> None:
    picture = noise(32, 32) // 2 + 40  # 40 to 167: nothing is clipped at 0 or 255
    original, luma = picture.astype(float), picture @ [0.299, 0.587, 0.114]
    middle, spread = original - luma.mean(), original - luma[..., None]
    changes = {"brightness": (original, 0.0), "contrast": (middle, luma.mean()), "saturation": (spread, luma[..., None])}
    for name, (part, rest) in changes.items():
        pairs = recoloured(tmp_path, picture, **{name: 0.3})
        factors = []
        for view in (pairs.first[0], pairs.second[0]):
            factor = float(((view - rest) * part).sum() / (part**2).sum())
            assert np.abs(rest + factor * part - view).max() < 0.52, f"{name} is one factor, rounded once"
            factors.append(factor)
        assert 0.69 < min(factors) < max(factors) < 1.31
        assert max(factors) - min(factors) > 0.01, "each view has its own factor"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": 1.5}, r"flip is 1\.5; choose a share from 0 to 1"),
        ({"overlap": -0.1}, "overlap is"),
        ({"scale": (0.9, 0.4)}, r"scale is \(0\.9, 0\.4\); choose two shares"),
        ({"scale": (0.5, 1.2)}, "smallest <= largest <= 1"),
        ({"rotation": -5.0}, "degrees from 0 to 180"),
    ],
)
def test_wrong_recipes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairRecipe(**change)


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    paths = write_images(tmp_path, [noise(8, 8)])
    with pytest.raises(ValueError, match="2 pairs need as many images, there are 1"):
        view_pairs(paths, 2, 16)
    with pytest.raises(ValueError, match="use at least 1 of each"):
        view_pairs(paths, 0, 16)
    with pytest.raises(ValueError, match=r"gone\.png.*cannot be read"):
        view_pairs([tmp_path / "gone.png"], 1, 16)


def test_real_photographs_agree_along_the_warp() -> None:
    folder = SHARED / "data" / "photos" / "val"
    if not folder.is_dir():
        pytest.skip(f"needs the photographs beside the checkout ({folder})")
    pairs = view_pairs(sorted(folder.rglob("*.jpg")), 24, 64, recipe=PairRecipe(**PLAIN))
    points, right, wrong = lattice(64, 0), [], []
    for first, second, warp in zip(pairs.first, pairs.second, pairs.warp.astype(float), strict=True):
        warped = warp @ points
        visible = ((warped > 1) & (warped < 63)).all(axis=0)
        colours = np.stack([map_coordinates(c, warped[::-1] - 0.5, order=1) for c in second.astype(float).transpose(2, 0, 1)])
        flat = first.reshape(-1, 3).T.astype(float)
        right.append(np.abs(colours - flat)[:, visible].mean())
        wrong.append(np.abs(second.reshape(-1, 3).T.astype(float) - flat)[:, visible].mean())
        assert visible.mean() > 0.4
    assert np.mean(right) < 6, "no more than resampling at another scale, in 0..255"
    assert np.mean(wrong) > 5 * np.mean(right)


def test_pixels_have_the_views_of_their_files(tmp_path: Path) -> None:
    pictures = np.stack([noise(24, 20, seed=i) for i in range(5)])
    files, arrays = view_pairs(write_images(tmp_path, [*pictures]), 4, 16, seed=2), view_pairs(pictures, 4, 16, seed=2)
    for name in ("first", "second", "warp"):
        np.testing.assert_array_equal(getattr(files, name), getattr(arrays, name))
    assert [Path(path).stem for path in files.source] == list(arrays.source)
