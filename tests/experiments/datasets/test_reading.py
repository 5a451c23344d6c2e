"""Files as users have them against Pillow's own reading, and what is refused with what advice."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from experiments.datasets import images
from experiments.datasets.reading import Refused, in_threads, read_mask, read_rgb, read_size, read_text
from tests.conftest import SHARED

ORIENTATION = 0x0112


def coloured(height: int = 40, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_a_tiff_is_turned_once(tmp_path: Path, orientation: int, compression: str | None) -> None:
    """Pillow turns TIFFs by itself as it reads them; the transposes of a PNG of the same pixels say what is right."""
    path = saved(tmp_path / "photo.tif", coloured(), compression=compression, tiffinfo={ORIENTATION: orientation})
    raw = tmp_path / "raw.tif"  # what the file holds before anything turns it
    saved(raw, coloured(), compression=compression)
    upright = saved(tmp_path / "photo.png", np.asarray(Image.open(raw)), exif=turned(orientation))
    expected = ImageOps.exif_transpose(Image.open(upright))
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(expected))
    assert read_size(path) == read_size(upright) == expected.size[::-1]


def test_the_tiffs_of_a_users_report_are_upright(tmp_path: Path) -> None:
    folder = SHARED / "cases" / "01_tiff_orientation"
    if not folder.is_dir():
        pytest.skip(f"needs the files beside the checkout ({folder})")
    for path in sorted(folder.glob("*.tif")):
        np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")))
    assert read_size(folder / "o6None.tif") == (64, 40)


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    labels = np.arange(15, dtype=np.uint8).reshape(3, 5)
    path = saved(tmp_path / "mask.png", labels, exif=turned(6))
    np.testing.assert_array_equal(read_mask(path), np.asarray(ImageOps.exif_transpose(Image.open(path))))


def test_numbers_of_a_stated_range_become_bytes(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, pixels in {
        "sixteen.png": grey.astype(np.uint16) * 257,
        "sixteen.tif": grey.astype(np.uint16) * 257,
        "unit.tif": grey.astype(np.float32) / 255,
    }.items():
        np.testing.assert_array_equal(np.asarray(read_rgb(saved(tmp_path / name, pixels)))[..., 1], grey, err_msg=name)
    twelve = tmp_path / "twelve.tif"
    _write_twelve_bits(twelve, np.array([[0, 4095], [2048, 16]]))
    np.testing.assert_array_equal(np.asarray(read_rgb(twelve))[..., 0], np.round(np.array([[0, 4095], [2048, 16]]) / 4095 * 255))


def _write_twelve_bits(path: Path, values: np.ndarray) -> None:
    """A TIFF whose samples have 12 bits: two of them in three bytes, rows padded to bytes. Pillow writes no such file."""
    rows = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.tolist())
    height, width = values.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(rows)}
    rows = rows.ljust(-(-len(rows) // 2) * 2, b"\0")
    entries = b"".join(tag.to_bytes(2, "little") + b"\4\0" + (1).to_bytes(4, "little") + n.to_bytes(4, "little") for tag, n in tags.items())
    directory = len(tags).to_bytes(2, "little") + entries + bytes(4)
    path.write_bytes(b"II*\0" + (8 + len(rows)).to_bytes(4, "little") + rows + directory)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            np.linspace(0, 255, 64, dtype=np.float32),
            "floating-point numbers from 0 to 255, not from 0 to 1; divide them by their full range",
        ),
        (np.linspace(-1, 1, 64, dtype=np.float32), "floating-point numbers from -1 to 1, not from 0 to 1"),
        (np.full(64, np.nan, np.float32), "floating-point numbers from nan to nan"),
        (np.arange(64, dtype=np.int32) * 1000, "whole numbers from 0 to 63000 and does not say which is white; save it with 8 bits"),
        (np.arange(64, dtype=np.int32) - 9, "whole numbers from -9 to 54"),
        (np.arange(64, dtype=np.uint16) * 65, "whole numbers from 0 to 4095 in 16 bits, which look black; multiply them"),
    ],
)
def test_numbers_whose_range_nobody_states_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    path = saved(tmp_path / "raw.tif", pixels.reshape(8, 8))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_rgb(path)


def test_an_animation_is_refused_and_a_photo_with_a_preview_is_read(tmp_path: Path) -> None:
    frames = [Image.fromarray(coloured()), Image.fromarray(coloured()[::-1].copy())]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"moving.gif.* has 2 frames; save the one that you mean"):
        read_rgb(tmp_path / "moving.gif")
    frames[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "phone.jpg") as first:
        np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "phone.jpg")), np.asarray(first))


@pytest.mark.parametrize("shape", [(2, 5000), (5000, 2), (1, 30001), (30001, 1)])
def test_a_thin_image_is_cropped_as_if_it_had_been_resized_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    path = saved(tmp_path / "thin.png", coloured(*shape))
    sizes = []
    resize = Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], *arguments: object, **options: object) -> Image.Image:
        sizes.append(size[0] * size[1])
        return resize(self, size, *arguments, **options)

    height, width = shape
    short = round(28 * 256 / 224)
    new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = (round((side - 28) / 2) for side in new)
    whole = Image.open(path).resize(new, Image.Resampling.BICUBIC).crop((left, top, left + 28, top + 28))
    if max(new) <= 2**16:
        np.testing.assert_array_equal(images.decode(path, 28, "crop")[0], np.asarray(whole))
    monkeypatch.setattr(Image.Image, "resize", noted)
    bound = 50_000 if width > height else short * height
    monkeypatch.setattr(images, "_WHOLE", bound)
    decoded, _ = images.decode(path, 28, "crop")
    assert max(sizes) <= bound < min(new) * max(new) / 15
    assert np.abs(decoded.astype(int) - np.asarray(whole)).max() <= 1


def test_a_huge_image_is_refused_until_the_bound_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    Image.new("1", (14000, 14000)).save(path)
    assert path.stat().st_size < 30_000
    for read in (read_rgb, read_size, read_mask, lambda p: images.decode(p, 16, "crop")):
        with pytest.raises(ValueError, match=r"14000 x 14000 = 196,000,000 pixels, more than 178,956,970; raise .*--max-pixels 196000000"):
            read(path)
    assert read_size(path, 196_000_000) == (14000, 14000)
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own bound is left alone"
    Image.new("1", (1000, 500)).save(path)
    with pytest.raises(ValueError, match="--max-pixels 500000"):
        images.load([path], 16, "crop", tmp_path, max_pixels=499_999)
    assert images.load([path], 16, "crop", tmp_path, max_pixels=500_000)[0].shape == (1, 16, 16, 3)


@pytest.mark.parametrize("name", ["scan.tif", "scan.png"])
def test_pillows_own_bound_does_not_count_and_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of a TIFF, Pillow checks it once more as it reads the pixels."""
    path = saved(tmp_path / name, coloured())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    read = list(in_threads(lambda _: np.asarray(read_rgb(path)), range(40), "reading"))
    assert all((pixels == coloured()).all() for pixels in read)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{i}.png", coloured()) for i in range(6)]
    paths[1].write_bytes(paths[1].read_bytes()[:900])
    paths[3].write_bytes(b"")
    paths[4].write_text("<html>")
    with pytest.raises(ValueError, match="3 of 6 files cannot be used: ") as caught:
        images.load(paths, 16, "crop", tmp_path / "cache")
    assert all(f'"{paths[i]}"' in str(caught.value) for i in (1, 3, 4))
    assert str(caught.value).endswith("replace the file or take it out")
    paths[0].unlink()
    paths[5].unlink()
    with pytest.raises(ValueError, match=r"2 of 6 files .*0.png.*No such file.*5.png.*bring it back"):
        images.load(paths, 16, "crop", tmp_path / "cache")


def test_a_long_list_of_refused_files_is_cut(tmp_path: Path) -> None:
    def refuse(number: int) -> None:
        raise Refused(tmp_path / str(number), "is odd", "make it even")

    with pytest.raises(ValueError, match=r"30 of 30 files cannot be used: .*/0\" is odd, .*/19\" is odd: make it even; and 10 more$"):
        list(in_threads(refuse, range(30), "trying"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_with_any_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_text("ä\nß", encoding=encoding)
    assert read_text(tmp_path / "list.txt") == "ä\nß"


def test_text_of_another_encoding_is_refused_by_name_and_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a\nb\nMülleimer".encode("latin-1"))
    with pytest.raises(ValueError, match=r'list.txt" is not text in UTF-8 \(byte 0xfc in line 3\); save it in UTF-8'):
        read_text(tmp_path / "list.txt")
