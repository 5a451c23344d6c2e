"""Studies on folders of images that users have: classes, masks and keypoints in their own layouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxvit
from experiments import ablation_table, figures, reproduce
from experiments.cost import Cost
from experiments.data import DataSize
from experiments.folders import Folders, folder_data
from experiments.measures import Readouts
from tests.conftest import SHARED

SIZE = DataSize(bank=12, choose=4, test=6, pairs=4, segmentation=3, segmentation_test=2, keypoints=2, calibration=8, flow=4, gallery=4)


def picture(path: Path, seed: int, width: int = 40, height: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    """Four classes, five images with masks and three with keypoints."""
    root = tmp_path_factory.mktemp("folders")
    for split, count in (("train", 5), ("val", 2)):
        for c, name in enumerate(("ant", "bee", "cat", "dog")):
            for i in range(count):
                picture(root / "images" / split / name / f"{i}.png", 100 * c + 10 * i + len(split))
    voc = root / "voc"
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (voc / "labels.txt").write_text("sky\nroad\n")
    for split, names in (("train", "abc"), ("val", "de")):
        (voc / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            picture(voc / "JPEGImages" / f"{name}.jpg", ord(name))
            mask = np.repeat([0, 1], 16)[:, None].repeat(40, axis=1).astype(np.uint8)
            mask[:2] = 255
            image = Image.fromarray(mask, "L").convert("P")
            image.putdata(mask.ravel().tolist())
            image.save(voc / "SegmentationClass" / f"{name}.png")
    spair = root / "spair"
    for folder in ("Layout/large", "PairAnnotation/test"):
        (spair / folder).mkdir(parents=True)
    for name in "xyz":
        picture(spair / "JPEGImages" / "bee" / f"{name}.jpg", ord(name))
    pairs = [f"{number:06}-{a}-{b}:bee" for number, (a, b) in enumerate(("xy", "yz"))]
    (spair / "Layout/large/test.txt").write_text("\n".join(pairs) + "\n")
    for pair in pairs:
        a, b = pair.split(":")[0].split("-")[1:]
        told = {"src_imname": f"{a}.jpg", "trg_imname": f"{b}.jpg", "src_imsize": [40, 32, 3], "trg_imsize": [40, 32, 3]}
        told |= {"src_bndbox": [2, 2, 38, 30], "trg_bndbox": [4, 2, 24, 30], "category": "bee"}
        told |= {"src_kps": [[5.0, 8.0], [20.0, 16.0]], "trg_kps": [[10.0, 8.0], [30.0, 16.0]]}
        (spair / "PairAnnotation/test" / f"{pair}.json").write_text(json.dumps(told))
    return Folders(root / "images", voc=voc, spair=spair)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIT_CACHE", str(tmp_path / "cache"))


def test_folders_become_the_parts_of_a_study(folders):
    data = folder_data(folders, SIZE, 16, seed=0)
    assert {name: len(part.images) for name, part in data.parts.items()} == {
        **{"bank": 12, "choose": 4, "test": 6, "first": 4, "second": 4},
        **{"segmentation_bank": 3, "segmentation_test": 2, "keypoints": 3},
    }
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert np.bincount(data.labels["bank"]).tolist() == [3, 3, 3, 3], "classes are even"
    assert data.masks.test.shape == (2, 32, 40), "test masks keep their own resolution"
    assert set(np.unique(data.masks.bank)) == {0, 1, 255}
    assert data.masks.bank.shape == (3, 16, 16)
    # stretched from 40 x 32 to 16 x 16
    np.testing.assert_allclose(data.keypoints.source_points[0], [[2, 4], [8, 8]])
    np.testing.assert_allclose(data.keypoints.target_points[0], [[4, 4], [12, 8]])
    np.testing.assert_allclose(data.keypoints.scale, [[2.5, 2], [2.5, 2]])
    assert data.keypoints.box.tolist() == [28, 28]
    assert data.keypoints.size.tolist() == [40, 40]


def test_the_key_follows_content_and_not_place(folders, tmp_path):
    import shutil

    key = folder_data(folders, SIZE, 16, seed=0).key
    moved = tmp_path / "moved"
    shutil.copytree(folders.images, moved)
    there = dataclasses.replace(folders, images=moved)
    assert folder_data(there, SIZE, 16, seed=0).key == key
    assert folder_data(there, SIZE, 16, seed=1).key != key
    told = json.loads((folders.spair / "PairAnnotation/test/000000-x-y:bee.json").read_text())
    again = tmp_path / "spair"
    shutil.copytree(folders.spair, again)
    told["trg_kps"][0][0] += 1
    (again / "PairAnnotation/test/000000-x-y:bee.json").write_text(json.dumps(told))
    assert folder_data(dataclasses.replace(there, spair=again), SIZE, 16, seed=0).key != key, "a keypoint was corrected"
    picture(moved / "val" / "ant" / "0.png", 12345)
    picture(moved / "val" / "ant" / "1.png", 12346)
    assert folder_data(there, SIZE, 16, seed=0).key != key


def test_every_part_has_its_share_of_uneven_classes(tmp_path):
    for name, count in (("few", 10), ("many", 50)):
        for i in range(count):
            picture(tmp_path / "images" / name / f"{i}.png", i + len(name), 8, 8)
    data = folder_data(Folders(tmp_path / "images"), DataSize(pairs=2, calibration=2, flow=2, gallery=2), 8, seed=0)
    for part, few in (("test", 2), ("choose", 1), ("bank", 7)):
        counts = np.bincount(data.labels[part], minlength=2)
        assert abs(counts[0] - few) <= 1, f"{part}: {counts}"
        assert counts[0] > 0
    with pytest.raises(ValueError, match=r"none of the 2 images of bank is of few; raise --data\.bank"):
        folder_data(Folders(tmp_path / "images"), DataSize(bank=2, pairs=2, calibration=2, flow=2, gallery=2), 8, seed=0)


def test_masks_in_plain_folders_and_pairs_of_any_images(folders, tmp_path):
    for name in "abcdefghij":
        picture(tmp_path / "shown" / f"{name}.jpg", ord(name))
        Image.fromarray(np.full((32, 40), ord(name) % 2, np.uint8)).save(picture(tmp_path / "labels" / f"{name}.png", 0))
    where = Folders(folders.images, views=tmp_path / "shown", mask_images=tmp_path / "shown", masks=tmp_path / "labels")
    data = folder_data(where, dataclasses.replace(SIZE, segmentation=99, segmentation_test=99, pairs=9), 16, seed=0)
    assert (len(data.masks.bank), len(data.masks.test)) == (8, 2)
    assert len(data.views.warp) == 9, "more than there are test images"
    with pytest.raises(ValueError, match=r"name both: --folders\.mask-images"):
        folder_data(dataclasses.replace(where, mask_images=None), SIZE, 16, seed=0)


def test_one_folder_is_split_so_that_no_image_is_in_two_parts(folders):
    data = folder_data(Folders(folders.images / "train"), DataSize(calibration=4, flow=2, gallery=2, pairs=2), 16, seed=3)
    assert [len(data.parts[part].images) for part in ("bank", "choose", "test")] == [14, 2, 4]
    seen = [image.tobytes() for part in ("bank", "choose", "test") for image in data.parts[part].images]
    assert len(set(seen)) == len(seen) == 20
    assert sorted(data.labels["test"]) == [0, 1, 2, 3]
    assert data.masks is None
    assert data.keypoints is None


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="bank is 1; use at least 2"):
        DataSize(bank=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folders": Folders()}, r"no images are given.*--folders\.images"),
        ({"data": DataSize(test=99)}, r"test is 99, but the folder has 8 images.*lower --data\.test"),
        ({"data": dataclasses.replace(SIZE, flow=7)}, r"flow \(7\) is more than test \(6\)"),
    ],
)
def test_what_is_not_there_is_said(folders, change, message):
    wanted = {"folders": folders, "data": SIZE} | change
    with pytest.raises(ValueError, match=message):
        folder_data(wanted["folders"], wanted["data"], 16, seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    jaxvit.save(jaxvit.create(jaxvit.ViTConfig(8, 16, 1, 2, 32, registers=0, position="antialias", image_size=16), 0), folder)
    return str(folder)


def test_a_study_of_folders_runs_every_task(folders, model, tmp_path):
    readouts = Readouts(features=("cls",), solvers=("ridge",), lambdas=(0.1, 1.0), neighbours=(5,), shots=(1,), memory=8)
    study = reproduce.Reproduce("parodi2026", tmp_path / "out", (model,), folders, SIZE, 16, readouts, seeds=1, batch_size=4, resamples=50)
    reproduce.reproduce(dataclasses.replace(study, dry_run=True), [ablation_table])
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"
    page = reproduce.reproduce(study, [ablation_table]).read_text()
    assert "Parodi" in page
    rows = figures.read(tmp_path / "out").rows
    assert {r["task"] for r in rows} == {
        *("linear_probe", "few_shot", "knn", "retrieval", "correspondence", "spair", "segmentation"),
        *("effective_rank", "patch_norms"),
    }
    pck = figures.select(rows, condition="full", task="spair", metric="pck_0.1")
    assert [r["feature"] for r in pck] == ["patches", "patches: bee"]
    assert pck[0]["n"] == 2, "units are source images"
    per_class = figures.select(rows, condition="full", metric="iou")
    assert [r["feature"] for r in per_class] == ["patches: sky", "patches: road"]
    miou = figures.select(rows, condition="full", metric="miou")[0]["value"]
    assert np.mean([r["value"] for r in per_class]) == pytest.approx(miou)


def test_a_study_that_does_not_fit_says_so_before_it_starts():
    gib = 2**30
    cost = Cost(1, 1, None, memory=gib, memory_there=20 * gib, device=8 * gib, device_there=gib, disk=0, disk_there=gib)
    with pytest.raises(ValueError, match=r"needs about 8\.0 GiB of memory of the device, 1\.0 GiB are free; lower --batch-size"):
        cost.check()
    with pytest.raises(ValueError, match=r"needs about 9\.0 GiB of memory, 5\.0 GiB are free"):
        dataclasses.replace(cost, memory_there=5 * gib, device_there=None).check()
    with pytest.raises(ValueError, match=r"needs about 2\.0 GiB of disk, 1\.0 GiB are free; choose another --out"):
        dataclasses.replace(cost, device=0, disk=2 * gib).check()
    dataclasses.replace(cost, device=0).check()


def test_real_folders_are_read():
    """Class folders, masks and keypoints of real images, where they lie beside the checkout."""
    root = SHARED / "data"
    if not root.exists():
        pytest.skip(f"needs the images beside the checkout ({root})")
    size = DataSize(
        bank=20, choose=20, test=20, pairs=3, segmentation=3, segmentation_test=3, keypoints=4, calibration=4, flow=4, gallery=4
    )
    data = folder_data(Folders(root / "photos", voc=root / "street_voc", spair=root / "keypoints_spair"), size, 32, seed=0)
    assert np.bincount(data.labels["bank"]).tolist() == [1] * 20
    assert len(data.masks.classes) == 11
    assert data.masks.test.shape == (3, 360, 480)
    assert data.keypoints.categories == ("car", "winebottle")
    inside = data.keypoints.source_points[data.keypoints.valid]
    assert ((inside >= 0) & (inside <= 32)).all()
