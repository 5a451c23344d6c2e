"""The protocols by which images are prepared against the image processors of transformers and torch's resize."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.datasets import images
from tests.conftest import SHARED

transformers = pytest.importorskip("transformers", reason="the oracle of these tests is transformers")

SIZES = [(427, 640), (640, 427), (333, 500), (501, 375), (224, 224), (225, 333), (100, 75), (37, 30), (17, 400), (900, 401), (1, 1), (3, 2)]
"""Height and width: landscape and portrait, odd and even, smaller than the crop, thin."""


def processor(name: str, **settings: object) -> object:
    """The image processor that works with Pillow, under its name in transformers 5 or before; pixels stay bytes."""
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return kind(**settings, do_rescale=False, do_normalize=False)


# as in preprocessor_config.json of facebook/dinov2-*, facebook/dinov2-with-registers-* and facebook/dino-*
BIT = processor("BitImageProcessor", size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3)
VIT = processor("ViTImageProcessor", size={"height": 224, "width": 224}, resample=2)


def write_noise(folder: Path, height: int, width: int) -> Path:
    path = folder / f"{height}x{width}.png"
    Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def prepared(path: Path, protocol: str, size: int = 224) -> np.ndarray:
    return images.decode(path, size, images.PROTOCOLS[protocol])[0]


def by_transformers(oracle: object, path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(oracle(image.convert("RGB"))["pixel_values"][0]).transpose(1, 2, 0)


HALF = 0.5 + 1e-4
"""Of a step of 255, which one rounding may err by, and float32 of Pillow."""


def by_torch(path: Path, size: int, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """What DINOv3ViTImageProcessor does with torchvision: rescaled floats, resized with antialias; here in steps of 255. It does so
    in float32, whose weights err by more than Pillow's."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")).transpose(2, 0, 1))
    floats = pixels[None].to(dtype) * (1 / 255)
    resized = torch.nn.functional.interpolate(floats, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return 255 * resized[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_hugging_faces_protocols_are_those_of_its_processors(tmp_path: Path, height: int, width: int) -> None:
    path = write_noise(tmp_path, height, width)
    np.testing.assert_array_equal(prepared(path, "hf_dinov2"), by_transformers(BIT, path))
    np.testing.assert_array_equal(prepared(path, "hf_dino"), by_transformers(VIT, path))
    assert np.abs(prepared(path, "hf_dinov3") - by_torch(path, 224)).max() <= HALF
    assert np.abs(prepared(path, "hf_dinov3") - by_torch(path, 224, torch.float32)).max() <= 0.52  # measured: 0.51


def test_the_processors_differ_from_torchvision(tmp_path: Path) -> None:
    """Where an odd number of columns is left over, Hugging Face cuts one pixel further left; it stretches for the other families."""
    path = write_noise(tmp_path, 427, 640)  # resized to 383 x 256
    whole = np.asarray(Image.open(path).resize((383, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(prepared(path, "torchvision"), whole[16:240, 80:304])
    np.testing.assert_array_equal(prepared(path, "hf_dinov2"), whole[16:240, 79:303])
    affine = images.decode(path, 224, images.PROTOCOLS["hf_dinov2"])[1]
    np.testing.assert_allclose(affine, [[383 / 640, 0, -79], [0, 256 / 427, -16]], rtol=1e-15)


def test_one_rounding_of_floats_is_nearer_than_pillows_two(tmp_path: Path) -> None:
    path = write_noise(tmp_path, 333, 500)
    twice = np.asarray(Image.open(path).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.abs(twice - by_torch(path, 224)).max() > 0.75
    assert np.abs(prepared(path, "hf_dinov3") - by_torch(path, 224)).max() <= HALF


def test_other_sizes_scale_the_short_side(tmp_path: Path) -> None:
    path = write_noise(tmp_path, 427, 640)
    bit = processor("BitImageProcessor", size={"shortest_edge": 592}, crop_size={"height": 518, "width": 518}, resample=3)
    np.testing.assert_array_equal(prepared(path, "hf_dinov2", 518), by_transformers(bit, path))
    assert [protocol.name(518) for protocol in images.PROTOCOLS.values()] == [
        *("crop 518", "hf_dino 518", "hf_dinov2 592/518", "hf_dinov3 518")
    ]


def test_grey_images_and_photographs_are_prepared_alike(tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (301, 402), np.uint8)).save(grey)
    photos = sorted((SHARED / "data" / "photos" / "val").rglob("*.jpg"))[::40]
    for path in (grey, *photos):
        np.testing.assert_array_equal(prepared(path, "hf_dinov2"), by_transformers(BIT, path))
        np.testing.assert_array_equal(prepared(path, "hf_dino"), by_transformers(VIT, path))
        assert np.abs(prepared(path, "hf_dinov3") - by_torch(path, 224)).max() <= HALF


def test_every_protocol_has_an_entry_of_its_own_in_the_cache(tmp_path: Path) -> None:
    paths = [write_noise(tmp_path, 60, 91)]
    for _ in range(2):
        for name, protocol in images.PROTOCOLS.items():
            np.testing.assert_array_equal(images.load(paths, 28, protocol, tmp_path / "cache")[0][0], prepared(paths[0], name, 28))
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2 * len(images.PROTOCOLS)
    images.load(paths, 28, "crop", tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2 * len(images.PROTOCOLS), "crop is torchvision's"
