"""The decoder against PIL and torch: sizes and offsets of the published protocols, the affine map, kinds of files, the cache."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.ndimage import map_coordinates

from experiments.datasets import images, reading
from experiments.datasets.reading import read_rgb
from tests.conftest import SHARED


def smooth(height: int, width: int) -> np.ndarray:
    """Red grows with x, green with y, blue with both: the colour of a pixel encodes its position."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([255 * x / width, 255 * y / height, 127 * (x / width + y / height)], axis=-1).round().astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def write_image(folder: Path, pixels: np.ndarray, name: str = "image.png", **options: object) -> Path:
    path = folder / name
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize(("height", "width"), [(37, 61), (61, 37), (40, 40), (75, 113), (9, 30), (113, 75)])
def test_crop_has_the_sizes_and_offsets_of_torchvision(tmp_path: Path, height: int, width: int) -> None:
    # transforms.Resize(int) cuts the long side to an integer; CenterCrop rounds half to even
    path, size, short = write_image(tmp_path, noise(height, width)), 28, 32
    new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (int(round((n - size) / 2.0)) for n in new)  # noqa: RUF046
    expected = np.asarray(Image.open(path).resize(new, Image.Resampling.BICUBIC))[top : top + size, left : left + size]
    decoded, affine = images.decode(path, size, "crop")
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_allclose(affine, [[new[0] / width, 0, -left], [0, new[1] / height, -top]], rtol=1e-15)


def test_resampling_is_torchs_antialiased_bicubic(tmp_path: Path) -> None:
    pixels = noise(50, 70)
    decoded, _ = images.decode(write_image(tmp_path, pixels), 24, "stretch")
    batch = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    expected = (
        torch.nn.functional.interpolate(batch, (24, 24), mode="bicubic", antialias=True, align_corners=False)[0].numpy().transpose(1, 2, 0)
    )
    assert np.abs(decoded.astype(int) - expected).max() <= 1  # both keep 8 bits between the two passes
    aliased = torch.nn.functional.interpolate(batch.float(), (24, 24), mode="bicubic", antialias=False)[0].numpy().transpose(1, 2, 0)
    assert np.abs(decoded - aliased).mean() > 10


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize(("height", "width"), [(120, 191), (191, 120), (37, 30)])
def test_the_affine_map_leads_to_the_same_colour(tmp_path: Path, fit: images.Fit, height: int, width: int) -> None:
    original = smooth(height, width)
    decoded, affine = images.decode(write_image(tmp_path, original), 56, fit)
    y, x = np.mgrid[4 : height - 4 : 3, 4 : width - 4 : 3] + 0.5
    position = np.einsum("ij,j...->i...", affine[:, :2], np.stack([x, y])) + affine[:, 2, None, None]
    inside = ((position > 2) & (position < 54)).all(axis=0)
    if fit == "pad":
        inside &= position[int(width > height)] < 56 * min(height, width) / max(height, width) - 2
    colours = np.stack([map_coordinates(c.astype(float), position[::-1] - 0.5, order=1) for c in decoded.transpose(2, 0, 1)], axis=-1)
    # each colour is converted back to the position in the original that it encodes; rounding to 8 bits averages out
    error = (colours[..., :2] * [width / 255, height / 255] - np.stack([x, y], axis=-1))[inside]
    assert inside.sum() > 50
    assert np.abs(error).max() < 1
    assert np.abs(error.mean(axis=0)).max() < 0.06  # measured: 0.037; half a pixel of the square is 0.2 to 1.7


def test_padding_is_zero_at_the_bottom_or_the_right(tmp_path: Path) -> None:
    wide, _ = images.decode(write_image(tmp_path, np.full((20, 61, 3), 200, np.uint8)), 32, "pad")
    assert (wide[:10] == 200).all()  # 32 * 20 / 61 = 10.49
    assert not wide[10:].any()
    tall, _ = images.decode(write_image(tmp_path, np.full((61, 20, 3), 200, np.uint8)), 32, "pad")
    assert (tall[:, :10] == 200).all()
    assert not tall[:, 10:].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_image(tmp_path, smooth(40, 64), "photo.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(expected))
    assert reading.read_size(path) == expected.size[::-1]


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path) -> None:
    colours = smooth(16, 16)
    grey = colours[..., 0]
    np.testing.assert_array_equal(np.asarray(read_rgb(write_image(tmp_path, grey))), np.stack([grey] * 3, axis=-1))
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(np.asarray(read_rgb(write_image(tmp_path, deep))), np.stack([grey] * 3, axis=-1))

    few = (colours // 64 * 64).astype(np.uint8)
    Image.fromarray(few).quantize(64).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "palette.png")), few)

    Image.fromarray(colours).convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    assert np.abs(np.asarray(read_rgb(tmp_path / "print.jpg")).astype(int) - colours).max() < 8


def test_transparent_pixels_are_blended_over_white(tmp_path: Path) -> None:
    colours = smooth(16, 16)
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 5:10], alpha[:, 10:] = 102, 255
    expected = np.round(colours * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255))
    blended = np.asarray(read_rgb(write_image(tmp_path, np.dstack([colours, alpha])))).astype(int)
    assert np.abs(blended - expected).max() <= 1
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 70, 80, 90])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "keyed.png", transparency=0)
    pixels = np.asarray(read_rgb(tmp_path / "keyed.png"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [70, 80, 90]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    whole = write_image(tmp_path, noise(64, 64), "whole.jpg").read_bytes()
    for name, content in {"cut.jpg": whole[: len(whole) // 2], "text.png": b"hello", "empty.webp": b""}.items():
        (tmp_path / name).write_bytes(content)
        for read in (lambda p: images.decode(p, 16, "crop"), lambda p: images.load([p], 16, "crop", tmp_path / "cache")):
            with pytest.raises(ValueError, match=f"{name}.*cannot be read as an image.*replace the file"):
                read(tmp_path / name)
    with pytest.raises(ValueError, match=r"gone\.png.*cannot be read"):
        images.load([tmp_path / "gone.png"], 16, "crop", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "images").iterdir()), "nothing half-write_image stays"


def test_an_image_with_damaged_exif_data_is_read(tmp_path: Path) -> None:
    path = write_image(tmp_path, noise(8, 8), "photo.jpg", exif=b"Exif\0\0not a TIFF header at all")
    assert read_rgb(path).size == (8, 8)


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path, noise(8, 8))
    with pytest.raises(ValueError, match='unknown fit "cover"; choose one of crop, stretch, pad'):
        images.decode(path, 16, "cover")
    with pytest.raises(ValueError, match="at least 1"):
        images.decode(path, 0, "crop")
    with pytest.raises(ValueError, match="no images to load"):
        images.load([], 16, "crop")


def test_the_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_image(tmp_path, noise(20, 30 + i), f"{i}.png") for i in range(70)]
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))
    pixels, affines = images.load(paths, 16, "pad")
    expected = [images.decode(path, 16, "pad") for path in paths]
    np.testing.assert_array_equal(pixels, np.stack([p for p, _ in expected]))
    np.testing.assert_array_equal(affines, np.stack([a for _, a in expected]))
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2

    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("decoded again"))
    cached_pixels, cached_affines = images.load(paths, 16, "pad")
    assert isinstance(cached_pixels, np.memmap)
    np.testing.assert_array_equal(cached_pixels, pixels)
    np.testing.assert_array_equal(cached_affines, affines)

    monkeypatch.setattr(images, "decode", decode)
    write_image(tmp_path, noise(20, 40)[::-1], "0.png")
    os.utime(paths[0], ns=(1, 1))
    assert (images.load(paths, 16, "pad")[0][0] != pixels[0]).any(), "a file that was changed is decoded again"
    assert images.load(paths[::-1], 16, "pad")[0][-1].tolist() == images.decode(paths[0], 16, "pad")[0].tolist()
    assert images.load(paths, 16, "stretch")[0].tolist() != pixels.tolist()


def test_a_damaged_entry_of_the_cache_is_made_again(tmp_path: Path) -> None:
    paths = [write_image(tmp_path, noise(20, 30))]
    pixels = np.array(images.load(paths, 16, "crop", tmp_path)[0])
    (entry,) = (p for p in (tmp_path / "images").iterdir() if ".affine" not in p.name)
    for damage in (b"", entry.read_bytes()[:200], b"not an array"):
        entry.write_bytes(damage)
        np.testing.assert_array_equal(images.load(paths, 16, "crop", tmp_path)[0], pixels)


def test_without_a_writable_cache_pixels_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_image(tmp_path, noise(20, 30))]
    expected = images.decode(paths[0], 16, "crop")
    file = tmp_path / "file"
    file.touch()
    full = tmp_path / "full"
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IREAD | stat.S_IEXEC)
    for cache in (file, locked, full):
        with monkeypatch.context() as patch:
            if cache == full:
                patch.setattr(images, "require_space", lambda *_: (_ for _ in ()).throw(ValueError("no space left")))
            pixels, affines = images.load(paths, 16, "crop", cache)
        np.testing.assert_array_equal(pixels[0], expected[0])
        np.testing.assert_array_equal(affines[0], expected[1])
    assert not full.exists()

    class Full:
        def __getattr__(self, name: str) -> object:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", lambda file, header: Full().write)
    np.testing.assert_array_equal(images.load(paths, 16, "crop", tmp_path / "fills")[0][0], expected[0])
    assert not list((tmp_path / "fills" / "images").iterdir())


def test_threads_keep_the_order_and_short_work_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(reading.in_threads(lambda n: n * n, range(200), "squaring")) == [n * n for n in range(200)]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(reading, "BAR_DELAY", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    assert list(reading.in_threads(lambda n: n * n, range(200), "squaring")) == [n * n for n in range(200)]
    assert "squaring" in capsys.readouterr().err


def test_real_photographs_are_read(tmp_path: Path) -> None:
    folder = SHARED / "data" / "photos" / "val"
    if not folder.is_dir():
        pytest.skip(f"needs the photographs beside the checkout ({folder})")
    paths = sorted(folder.rglob("*.jpg"))[::10]
    pixels, affines = images.load(paths, 56, "crop", tmp_path)
    for path, image, affine in zip(paths, pixels, affines, strict=True):
        with Image.open(path) as opened:
            rgb = opened.convert("RGB")
        corner = np.round((-affine[:, 2]) + 0).astype(int)
        new = np.round(affine[[0, 1], [0, 1]] * rgb.size).astype(int)
        assert min(new) == 64
        expected = np.asarray(rgb.resize(tuple(new.tolist()), Image.Resampling.BICUBIC))[corner[1] :, corner[0] :][:56, :56]
        np.testing.assert_array_equal(image, expected)
