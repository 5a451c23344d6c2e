"""What no user means is refused before anything runs: never a perfect score from nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.datasets.arrays import array_data
from experiments.datasets.base import DataSize
from experiments.datasets.folders import Folders
from experiments.datasets.images import load
from experiments.datasets.layouts import any_images
from experiments.datasets.plausibility import refuse_blank
from tests.conftest import SHARED
from tests.experiments.tiny_folders import folder_data

SIZE = DataSize(pairs=2, calibration=2, analysis_images=2, gallery=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))


def photo(path: Path, seed: int = 0, height: int = 20, width: int = 30, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path, **options)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for i in range(24):
        photo(tmp_path / "photos" / ("ant", "bee")[i % 2] / f"{i}.png", i)
    for i in range(10):
        photo(tmp_path / "images" / f"{i}.png", i)
        labels = np.random.default_rng(i).integers(0, 2, (20, 30), np.uint8)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "masks" / f"{i}.png")
    return Folders(tmp_path / "photos", mask_images=tmp_path / "images", masks=tmp_path / "masks")


def read(folders: Folders, **options: object) -> tuple[str, ...]:
    return folder_data(folders, SIZE, 16, 0, **options).notes


def test_plausible_folders_are_read_without_a_word(folders: Folders) -> None:
    assert read(folders) == ()


def test_images_that_show_nothing_are_all_named_and_kept_on_demand(folders: Folders) -> None:
    root = folders.images
    Image.new("RGB", (30, 20), "white").save(root / "ant" / "0.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 16, (20, 30, 3), np.uint8)).save(root / "bee" / "1.png")  # 4 bits in bytes
    Image.new("RGBA", (30, 20), (9, 9, 9, 0)).save(root / "ant" / "2.png")  # transparent everywhere
    with pytest.raises(ValueError, match="3 of 24 files cannot be used: ") as caught:
        read(folders)
    for text in ("ant/0.png", "bee/1.png", "ant/2.png", "one colour (255, 255, 255)", "looks black (no value above "):
        assert text in str(caught.value)
    assert "--keep-blank" in str(caught.value)
    assert read(folders, keep_blank=True) == ()


@pytest.mark.parametrize("labels", [{0: 0, 1: 255}, {0: 1, 1: 255}, {0: 3, 1: 3}])
def test_masks_of_one_label_are_refused(folders: Folders, labels: dict[int, int]) -> None:
    """Masks of 0 and 255 have one class and ignored pixels: every prediction would be right."""
    for path in folders.masks.iterdir():
        pixels = np.asarray(Image.open(path))
        Image.fromarray(np.where(pixels == 0, labels[0], labels[1]).astype(np.uint8)).save(path)
    hint = "255 is ignored: if it is the foreground, save it as" if 255 in labels.values() else "use masks of at least two labels"
    with pytest.raises(ValueError, match=f"have no label but {labels[0]}.*{hint}"):
        read(folders)
    with pytest.raises(ValueError, match=f"have no label but {labels[0]}"):
        read(folders, keep_blank=True)


def test_masks_without_any_label_are_all_named_and_kept_on_demand(folders: Folders) -> None:
    nothing = Image.fromarray(np.full((20, 30), 255, np.uint8))
    for i in (0, 5):
        nothing.save(folders.masks / f"{i}.png")
    with pytest.raises(ValueError, match=r"has no label \(all 255: ignored\).*--keep-blank"):
        read(folders)
    assert read(folders, keep_blank=True) == ()
    for path in folders.masks.iterdir():
        nothing.save(path)
    with pytest.raises(ValueError, match="have no label at all"):
        read(folders, keep_blank=True)


def test_a_mask_has_the_sides_of_its_upright_image(folders: Folders) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(folders.mask_images / "3.png", exif=exif)  # a mask of the pixels as they lie in the file
    Image.new("L", (15, 10)).save(folders.masks / "4.png")
    with pytest.raises(ValueError, match="files cannot be used") as caught:
        read(folders)
    text = str(caught.value)
    assert "has 20 x 30 pixels (height x width), its image 30 x 20 (turned upright by its EXIF orientation)" in text
    assert "has 10 x 15 pixels (height x width), its image 20 x 30" in text
    mask = Image.open(folders.masks / "3.png").copy()
    mask.save(folders.masks / "3.png", exif=exif)  # turned like its image
    Image.fromarray(np.tile(np.arange(2, dtype=np.uint8), (20, 15))).save(folders.masks / "4.png")
    assert read(folders) == ()


def test_images_to_report_on_that_are_also_fitted_on_are_told(folders: Folders, tmp_path: Path) -> None:
    for i in range(24):
        photo(tmp_path / "apart" / ("train", "val")[i % 2] / ("ant", "bee")[i // 2 % 2] / f"{i}.png", i)
    photo(tmp_path / "apart" / "val" / "bee" / "23.bmp", 0)  # the pixels of train/ant/0.png
    (tmp_path / "apart" / "val" / "bee" / "23.png").unlink()
    (note,) = read(Folders(tmp_path / "apart"))
    assert "1 of 12 images of part test are in part train or val too" in note
    assert "23.bmp" in note
    photo(folders.mask_images / "1.png", 0)
    photo(folders.mask_images / "2.png", 0)
    assert all("are in part segmentation_train too" in note for note in read(folders))


def test_arrays_that_look_black_are_refused_and_blank_ones_are_told() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    labels = np.arange(12) % 2
    with pytest.raises(ValueError, match="part test look black: no value is above 1 of 255; scale them"):
        array_data({"train": (images, labels), "test": (images // 128, labels)}, SIZE, 0)
    blank = images[::-1].copy() // 2
    blank[4] = 77
    notes = array_data({"train": (images, labels), "test": (blank, labels)}, SIZE, 0).notes
    assert notes == ("1 images show nothing: test[4] is of one colour (77, 77, 77)",)


def test_real_photographs_show_something(tmp_path: Path) -> None:
    folder = SHARED / "data" / "photos" / "val"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets beside the checkout ({folder})")
    paths = any_images(folder)
    refuse_blank(load(paths, 28, "crop", tmp_path)[0], paths)
