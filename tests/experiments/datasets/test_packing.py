"""Packs: the images of a study in one folder, whole or refused, whatever ends the process that writes them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from experiments.datasets import images, packing
from experiments.datasets.base import DataSize
from experiments.datasets.folders import Folders, prepared_folders
from experiments.datasets.packing import Packing, PackOptions
from experiments.datasets.packs import verify_pack
from experiments.datasets.splits import images_by_split
from tests.experiments.datasets.other_layouts import CLASSES, add, write_class_folders, write_flat, write_parquet, write_tars
from tests.experiments.tiny_folders import folder_data, write_picture

SMALL = DataSize(pairs=4, calibration=4, analysis_images=4, gallery=4)
FEW = DataSize(pairs=2, calibration=2, analysis_images=2, gallery=2)
OPTIONS = PackOptions(size=16)


@pytest.fixture(autouse=True)
def setting(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "_CHUNK", 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("folders") / "images", {"train": 8, "val": 5})


def pack(root: Path, out: Path, options: PackOptions = OPTIONS) -> Path:
    made = Packing(root, out, options)
    for _ in made.write():
        pass
    made.finish()
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_study_opens_a_pack_in_place_of_its_folder(folders, tmp_path):
    made = pack(folders, tmp_path / "made")
    moved = made.rename(tmp_path / "elsewhere")
    expected, data = (folder_data(Folders(root), SMALL, 16, seed=0) for root in (folders, moved))
    assert data.classes == CLASSES
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(data.parts[part].images, expected.parts[part].images)
        np.testing.assert_array_equal(data.labels[part], expected.labels[part])
    assert data.protocols == {**expected.protocols, "views": expected.protocols["views"] + " of squares"}
    assert data.notes == (
        "elsewhere is a pack: pairs of views are cut out of its squares of 16 pixels, unless other images are named (--folders.views)",
    )
    views = folders / "val"
    expected, data = (folder_data(Folders(root, views=views), SMALL, 16, seed=0) for root in (folders, moved))
    assert data.key == expected.key, "with the same views it is the same study"
    again = shutil.copytree(moved, tmp_path / "copy")
    assert folder_data(Folders(again), SMALL, 16, seed=0).files == folder_data(Folders(moved), SMALL, 16, seed=0).files


def test_a_pack_has_the_bytes_of_the_decoder_from_whatever_layout(folders, tmp_path):
    write_parquet(folders / "val", tmp_path / "parquet", "train")
    write_tars(folders / "val", tmp_path / "tar", "s-{:04}.tar")
    write_flat(folders / "val", tmp_path / "flat")
    roots = (folders / "val", tmp_path / "parquet", tmp_path / "tar", tmp_path / "flat")
    packs = [pack(root, tmp_path / "packs" / str(i)) for i, root in enumerate(roots)]
    paths = images_by_split(folders / "val")["train"].paths
    decoded, affines = zip(*(images.decode(path, 16, "crop") for path in paths), strict=True)
    for made in packs:
        np.testing.assert_array_equal(np.load(made / "images.npy"), np.stack(decoded))
        np.testing.assert_array_equal(np.load(made / "affines.npy"), np.stack(affines))
        assert np.load(made / "labels.npy").tolist() == [0] * 5 + [1] * 5 + [2] * 5
        manifest = verify_pack(made)
        assert (manifest["count"], manifest["protocol"], manifest["classes"]) == (15, "crop 16", list(CLASSES))
        assert str(tmp_path) not in (made / "pack.json").read_text() + (made / "names.json").read_text(), "no path of this machine"


def test_a_pack_is_of_one_size_and_one_protocol(folders, tmp_path):
    made = pack(folders / "val", tmp_path / "made", dataclasses.replace(OPTIONS, preprocess="hf_dinov2"))

    def study(names: list[str], size: int = 16) -> dict:
        return prepared_folders(Folders(made), names, FEW, size, 0)

    expected = prepared_folders(Folders(folders / "val"), ["hf_dinov2"], FEW, 16, 0)["hf_dinov2"]
    np.testing.assert_array_equal(study(["hf_dinov2"])["hf_dinov2"].parts["test"].images, expected.parts["test"].images)
    with pytest.raises(
        ValueError, match=r'made" is a pack of "hf_dinov2 18/16", and "hf_dinov2 27/24" is asked for; .*--image-size 16.*--size 24'
    ):
        study(["hf_dinov2"], 24)
    with pytest.raises(ValueError, match=r'"crop 16" is asked for; .*\(--preprocess hf_dinov2\), or .*\(--preprocess torchvision\)'):
        study(["hf_dinov2", "torchvision"])


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.datasets import packing
packing._CHUNK = 4
made = packing.Packing(Path(sys.argv[1]), Path(sys.argv[2]), packing.PackOptions(size=16))
for number, _ in enumerate(made.write()):
    if number == 21:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_pack_that_was_killed_goes_on_to_the_same_bytes(folders, tmp_path, monkeypatch):
    expected = content(pack(folders, tmp_path / "whole"))
    half = tmp_path / "half"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folders), str(half)], cwd=Path(__file__).parents[3], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match=r'half" is a pack that is not finished; run the same python -m experiments.pack again'):
        folder_data(Folders(half), SMALL, 16, seed=0)
    with pytest.raises(ValueError, match=r'half" holds an unfinished pack that differs in size, protocol; choose another --out'):
        Packing(folders, half, PackOptions(size=24))
    decoded = []
    decode = packing.decode
    monkeypatch.setattr(packing, "decode", lambda source, *options: (decoded.append(source), decode(source, *options))[1])
    made = Packing(folders, half, OPTIONS)
    assert made.left == 39 - 20
    assert content(pack(folders, half)) == expected
    assert len(decoded) == 39 - 20, "five chunks of four were on disk"
    assert Packing(folders, half, OPTIONS).left == 0
    pack(folders, half)
    assert len(decoded) == 39 - 20


def test_lines_that_were_cut_and_files_that_were_changed_are_packed_again(folders, tmp_path):
    root = shutil.copytree(folders / "val", tmp_path / "images")
    half = tmp_path / "half"
    for number, _ in enumerate(Packing(root, half, OPTIONS).write()):
        if number == 12:
            break
    with (half / "done.txt").open("a") as file:
        file.write("3 0123")  # as a machine that loses power leaves it
    assert Packing(root, half, OPTIONS).left == 15 - 12
    write_picture(sorted((root / "ant").iterdir())[0], 77)
    assert Packing(root, half, OPTIONS).left == 15 - 8, "the chunk of the changed file"
    (half / "images.npy").write_bytes((half / "images.npy").read_bytes()[:2000])
    assert Packing(root, half, OPTIONS).left == 15, "what the file no longer holds"
    assert content(pack(root, half)) == content(pack(root, tmp_path / "whole"))


def test_images_that_cannot_be_used_are_named_and_the_others_are_kept(folders, tmp_path):
    root = shutil.copytree(folders / "val", tmp_path / "images")
    broken, blank = sorted((root / "ant").iterdir())[1], sorted((root / "cat").iterdir())[4]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    images.Image.new("RGB", (30, 30), "red").save(blank)
    with pytest.raises(ValueError, match=r"2 of 15 files cannot be used: .*is of one colour"):
        pack(root, tmp_path / "made")
    broken.write_bytes(whole)
    assert Packing(root, tmp_path / "made", dataclasses.replace(OPTIONS)).left == 7, "the chunks of these two"
    with pytest.raises(ValueError, match=r"cat.*is of one colour \(255, 0, 0\)"):
        pack(root, tmp_path / "made")
    with pytest.raises(ValueError, match="differs in keep_blank"):
        Packing(root, tmp_path / "made", dataclasses.replace(OPTIONS, keep_blank=True))
    pack(root, tmp_path / "other", dataclasses.replace(OPTIONS, keep_blank=True))


def test_a_pack_that_does_not_fit_is_refused_with_the_number_that_does(folders, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: usage(0, 0, 2**24 + 25_000))
    with pytest.raises(
        ValueError, match=r'made" needs 0.0 MB for 39 images, free are 0.0 MB; --limit (\d+) fits, or choose another --out'
    ) as error:
        Packing(folders, tmp_path / "made", OPTIONS)
    assert not (tmp_path / "made").exists()
    fits = int(str(error.value).split("--limit ")[1].split()[0])
    assert fits == 25_000 // (3 * 16 * 16 + 48 + 200)
    limited = dataclasses.replace(OPTIONS, limit=fits)
    made = pack(folders, tmp_path / "made", limited)
    assert sum(path.stat().st_size for path in made.iterdir()) < 2**24 + 25_000
    listed = images_by_split(made)
    assert {part: len(members.paths) for part, members in listed.items()} == {"train": fits * 24 // 39, "test": fits - fits * 24 // 39}
    for members in listed.values():
        counts = np.bincount(members.labels, minlength=3)
        assert counts.max() - counts.min() <= 1, "every class has its share"
    assert listed["train"].notes[0] == f"{fits} of 39 images were packed (--limit), drawn by class with seed 0"
    with pytest.raises(ValueError, match=r"--limit 4 leaves 1 of 3 classes of .* no image; raise it"):
        Packing(folders, tmp_path / "few", dataclasses.replace(OPTIONS, limit=4))


def test_a_disk_that_fills_is_told_with_the_file_and_what_was_written_is_kept(folders, tmp_path, monkeypatch):
    made = Packing(folders, tmp_path / "made", OPTIONS)
    sync = packing.os.fsync
    synced = []

    def full(file: int) -> None:
        synced.append(file)
        if len(synced) > 4:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(packing.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*made/images.npy'"):
        list(made.write())
    monkeypatch.undo()
    monkeypatch.setattr(packing, "_CHUNK", 4)
    assert Packing(folders, tmp_path / "made", OPTIONS).left == 39 - 8
    assert content(pack(folders, tmp_path / "made")) == content(pack(folders, tmp_path / "whole"))


def test_a_pack_that_is_not_whole_or_not_as_it_was_is_refused(folders, tmp_path):
    made = pack(folders / "val", tmp_path / "made")
    part = shutil.copytree(made, tmp_path / "part")
    (part / "images.npy").write_bytes((part / "images.npy").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r'part" is not whole: images.npy has 5,000 bytes of 11,648; copy it again'):
        images_by_split(part)
    (part / "images.npy").unlink()
    with pytest.raises(ValueError, match=r"images.npy has 0 bytes of 11,648; copy it again"):
        images_by_split(part)
    pixels = bytearray((made / "images.npy").read_bytes())
    pixels[9000] ^= 1
    (made / "images.npy").write_bytes(pixels)
    with pytest.raises(ValueError, match=r'images.npy" is damaged: its content is not the one that was packed; copy it again'):
        verify_pack(made)
    manifest = json.loads((made / "pack.json").read_text())
    (made / "pack.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match=r"packed by another version \(format 99, this one reads 1\); pack the images again"):
        images_by_split(made)


def test_folders_that_are_no_place_for_a_pack_are_refused(folders, tmp_path):
    made = pack(folders / "val", tmp_path / "made")
    for root, out, match in (
        (made, tmp_path / "again", "is a pack already; name the folder of the original images"),
        (folders, folders / "made", "lies in the folder of the images; choose an --out outside it"),
        (folders, folders.parent, "exists and holds no pack; choose another --out"),
        (folders, made, "holds a pack that differs in source, count, splits, images; choose another --out"),
    ):
        with pytest.raises(ValueError, match=match):
            Packing(root, out, OPTIONS)


def test_names_that_are_no_text_are_packed(folders, tmp_path):
    """Of tar files and file systems that were written in another encoding."""
    picture = next(folders.rglob("*.png")).read_bytes()
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "s-0.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        for number, name in enumerate(("Bär", "Käfer")):
            add(archive, f"{name}.png", picture)
            add(archive, f"{name}.cls", b"%d" % number)
    made = pack(tmp_path / "tar", tmp_path / "made")
    assert [source.name for source in images_by_split(made)["train"].paths] == ["s-0.tar/B\udce4r.png", "s-0.tar/K\udce4fer.png"]
    (made / "pack.json").unlink()
    (made / "unfinished.json").write_text("")
    with pytest.raises(ValueError, match=r'unfinished.json" cannot be read .*; remove the folder, and pack again'):
        Packing(tmp_path / "tar", made, OPTIONS)


@pytest.mark.parametrize(("option", "number"), [("size", 0), ("limit", 1), ("seed", -1), ("max_pixels", 0)])
def test_impossible_numbers_are_refused(option, number):
    with pytest.raises(ValueError, match=rf"--{option.replace('_', '-')} is {number}; give at least {number + 1}"):
        PackOptions(**{option: number})
