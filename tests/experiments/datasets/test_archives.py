"""Parquet files of the Hugging Face hub, written by pyarrow, and tar files of WebDataset, written by tarfile: labels, order, damage."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.datasets import images, stored
from experiments.datasets.archives import parquet_images, tar_images
from experiments.datasets.labels import ImageList
from tests.experiments.datasets.other_layouts import add, write_class_folders, write_parquet, write_tars
from tests.experiments.tiny_folders import write_picture

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[bytes]:
    root = tmp_path_factory.mktemp("pictures")
    return [write_picture(root / f"{i}.png", i, 20 + i, 20).read_bytes() for i in range(6)]


def table(folder: Path, columns: dict[str, object], features: dict[str, object] | None = None, group: int = 2) -> Path:
    written = pa.table(columns)
    if features:
        written = written.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(written, folder / "train-00000-of-00001.parquet", row_group_size=group)
    return folder / "train-00000-of-00001.parquet"


def structs(pictures: list[bytes], names: list[str] | None = None) -> pa.Array:
    return pa.array([{"bytes": content, "path": names and names[i]} for i, content in enumerate(pictures)], STRUCT)


def read(path: Path, label: str = "") -> ImageList:
    listing = parquet_images if path.suffix == ".parquet" else tar_images
    return listing([path], f'"{path}"', "set", label)


def refused(match: str, path: Path, label: str = "") -> None:
    def load() -> None:
        images.load(read(path, label).paths, 16, "crop", path.parent / "cache")

    with pytest.raises(ValueError, match=match) as error:
        load()
    assert "\n" not in str(error.value)


def test_images_are_those_of_the_rows_whatever_the_row_groups_and_the_order(pictures, tmp_path):
    """PIL says what each row holds."""
    expected = [np.asarray(Image.open(_written(tmp_path / f"{i}.png", content)).resize((16, 16), 3)) for i, content in enumerate(pictures)]
    for group in (1, 4, 100):
        listed = read(table(tmp_path / str(group), {"img": structs(pictures), "label": [1, 0, 1, 0, 1, 0]}, group=group))
        rows = [source.place for source in listed.paths]
        assert rows == [1, 3, 5, 0, 2, 4], "by class, then by row, as they have no names"
        for order in (range(6), (5, 0, 3)):
            pixels, _ = images.load([listed.paths[i] for i in order], 16, "stretch", tmp_path / "cache" / str(group))
            np.testing.assert_array_equal(pixels, np.stack([expected[rows[i]] for i in order]))
        np.testing.assert_array_equal(images.decode(listed.paths[0], 16, "stretch")[0], expected[1])


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_row_group_is_read_in_pieces_and_once(pictures, tmp_path, monkeypatch):
    """Some writers put a file into one group: it would not fit into memory, and to read it for every image would take for ever."""
    listed = read(table(tmp_path, {"img": structs(pictures), "label": [1, 0] * 3}, group=100))
    monkeypatch.setattr(stored, "_ROWS", 2)
    read_rows = []
    contents = stored._contents
    monkeypatch.setattr(stored, "_contents", lambda path, column, rows: (read_rows.append(list(rows)), contents(path, column, rows))[1])
    in_order = list(stored.in_reading_order(listed.paths))
    assert [number for number, _ in in_order] == [3, 0, 4, 1, 5, 2]
    assert [source.read() for _, source in in_order] == pictures
    assert read_rows == [[0, 1, 2, 3, 4, 5]]


def test_labels_are_found_by_metadata_by_name_or_are_named(pictures, tmp_path):
    image = structs(pictures, [f"{i}.png" for i in range(6)])
    names = {"image": {"_type": "Image"}, "animal": {"_type": "ClassLabel", "names": ["wolf", "ant", "bee"]}}
    listed = read(table(tmp_path / "a", {"image": image, "animal": [2, 0, 2, 0, 2, 0]}, names))
    assert (listed.classes, listed.labels.tolist()) == (("wolf", "bee"), [0, 0, 0, 1, 1, 1]), "in the order of the data set, not of letters"
    assert listed.notes == ("1 of 3 classes of set have no image and were left out: ant",)
    two = table(tmp_path / "b", {"img": image, "fine_label": list(range(6)), "coarse_label": [0, 1] * 3})
    refused("several columns of classes, fine_label, coarse_label; name one: --folders.label fine_label", two)
    refused("has no column kind of classes; it has fine_label, coarse_label: --folders.label NAME", two, "kind")
    assert read(two, "coarse_label").labels.tolist() == [0, 0, 0, 1, 1, 1]
    words = pa.array(["dog", "cat"] * 3).dictionary_encode()
    assert read(table(tmp_path / "c", {"jpg": pa.array(pictures, pa.binary()), "class": words})).classes == ("cat", "dog")
    numbers = read(table(tmp_path / "d", {"image": image, "label": [10, 9, 2, 10, 9, 2]}))
    assert numbers.classes == ("2", "9", "10"), "as numbers, not as words"


def test_images_without_labels_have_no_classes_or_are_left_out(pictures, tmp_path):
    image = structs(pictures, [f"{5 - i}.png" for i in range(6)])
    test = read(table(tmp_path / "a", {"image": image, "label": [-1] * 6}))
    assert test.classes == ()
    assert [source.name for source in test.paths] == [f"{i}.png" for i in range(6)]
    some = read(table(tmp_path / "b", {"image": image, "label": pa.array([float("nan"), None, 1.0, 0.0, 1.0, -1.0])}))
    assert (some.classes, some.labels.tolist()) == (("0", "1"), [0, 1, 1])
    assert some.notes == ("3 of 6 images of set have no class and were left out: 5.png, 4.png, 0.png",)
    assert read(table(tmp_path / "c", {"image": image})).notes == ("set has no column of classes: its images have none",)


def test_names_of_the_hub_are_sorted_as_the_files_of_imagenet_are(pictures, tmp_path):
    """There, n01440764_1002.JPEG is n01440764_1002_n01440764.JPEG, which would come after 10026."""
    names = [f"n01440764_{i}_n01440764.JPEG" for i in (10026, 1002, 9, 10027)] + ["a.JPEG", "b.JPEG"]
    listed = read(table(tmp_path, {"image": structs(pictures, names), "label": [0, 0, 0, 0, 1, 1]}))
    files = [source.name.replace("_n01440764.", ".") for source in listed.paths[:4]]
    assert files == sorted(files) == [f"n01440764_{i}.JPEG" for i in (1002, 10026, 10027, 9)]


def test_parquet_files_that_cannot_be_used_say_what_to_do(pictures, tmp_path):
    image = structs(pictures)
    refused("has no column of images .its columns are text, label.", table(tmp_path / "a", {"text": ["x"] * 6, "label": [0] * 6}))
    refused("several columns of images, left, right", table(tmp_path / "b", {"left": image, "right": image, "label": [0, 1, 2, 3, 4, 5]}))
    refused(
        "all images of .* are of class 0: a probe of one class is always right", table(tmp_path / "c", {"image": image, "label": [0] * 6})
    )
    refused("labels that count no classes .0.5.", table(tmp_path / "d", {"image": image, "label": [0.5, 1, 2, 3, 4, 5]}))
    refused("has several classes an image", table(tmp_path / "e", {"image": image, "labels": [[0, 1]] * 6}))
    names = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    refused("has the label 5, but 2 classes have names", table(tmp_path / "f", {"image": image, "label": list(range(6))}, names))
    broken = [*structs([b"text", *pictures[1:5]], list("abcde")).to_pylist(), {"bytes": None, "path": "f"}]
    path = table(tmp_path / "g", {"image": pa.array(broken, STRUCT), "label": [0, 1] * 3})
    refused(r'2 of 6 files cannot be used: ".*parquet/a" cannot be read as an image.*parquet/f" .*its row has no bytes', path)
    whole = table(tmp_path / "h", {"image": image, "label": [0, 1] * 3})
    content = whole.read_bytes()
    for name, damaged, match in (
        ("cut", content[:-50], "cannot be read as a parquet file .*; get the file again"),
        ("empty", b"", "cannot be read as a parquet file .it is empty."),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS.*git lfs pull"),
        ("page", content[:30] + bytes(300) + content[330:], "cannot be read .*; get the file again"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / whole.name).write_bytes(damaged)
        refused(match, tmp_path / name / whole.name)


def shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            add(archive, name, content)
    return path


def examples(pictures: list[bytes]) -> list[tuple[str, bytes]]:
    labels = (b"1", b"0\n") * 3
    return [member for i in range(6) for member in ((f"{5 - i:03}.png", pictures[i]), (f"{5 - i:03}.cls", labels[i]))]


def test_members_of_one_name_are_an_example(pictures, tmp_path):
    members = [("._junk.png", b""), *examples(pictures), ("000.txt", b"caption"), ("README.md", b"hello")]
    listed = read(shard(tmp_path / "s-0.tar", members))
    assert [source.name for source in listed.paths] == ["000.png", "002.png", "004.png", "001.png", "003.png", "005.png"]
    assert listed.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [source.read() for source in listed.paths] == [pictures[i] for i in (5, 3, 1, 4, 2, 0)]
    assert listed.notes == ("1 members of set belong to no image and were left out: README.md",)
    (tmp_path / "labels.txt").write_text("bird\nant\n")
    assert read(tmp_path / "s-0.tar").classes == ("bird", "ant"), "names of 0 and 1"


def test_nothing_of_a_tar_file_is_written_wherever_its_names_lead(pictures, tmp_path):
    names = ["../../evil", f"{tmp_path}/absolute", "a/b/c"]
    path = shard(
        tmp_path / "in" / "s-0.tar", [m for i, n in enumerate(names) for m in ((f"{n}.png", pictures[i]), (f"{n}.cls", b"%d" % i))]
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    pixels, _ = images.load(read(path).paths, 16, "crop", tmp_path / "cache")
    assert len(pixels) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "in"]


def test_labels_in_json_are_found_by_name_or_are_named(pictures, tmp_path):
    fields = [{"label": i % 2, "class": "ab"[i % 2], "width": 3} for i in range(6)]
    members = [m for i in range(6) for m in ((f"{i}.png", pictures[i]), (f"{i}.json", json.dumps(fields[i]).encode()))]
    path = shard(tmp_path / "s-0.tar", members)
    refused("has several columns of classes, label, class; name one", path)
    assert read(path, "class").classes == ("a", "b")
    refused("has no column zip of classes; it has label, class, width", path, "zip")
    refused('has the member "0.json" that is no JSON object', shard(tmp_path / "t-0.tar", [("0.png", pictures[0]), ("0.json", b"{")]))
    bare = read(shard(tmp_path / "u-0.tar", [("0.png", pictures[0]), ("1.png", pictures[1])]))
    assert (bare.classes, bare.notes) == ((), ("set has no .cls and no class in .json: its images have none",))


def test_damaged_tar_files_are_refused_wherever_they_end(pictures, tmp_path):
    whole = shard(tmp_path / "s-0.tar", examples(pictures))
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        header = archive.getmembers()[4].offset
    last = len(content.rstrip(b"\0")) // 512 * 512 + 512
    for number, damaged in enumerate(
        (
            content[:header],
            content[: header + 100],
            content[: header + 700],
            content[:last],
            content[:header] + os.urandom(512) + content[header + 512 :],
        )
    ):
        refused("cannot be read as a tar file .*; get the file again", _written(tmp_path / f"cut{number}-0.tar", damaged))
    refused("it is empty", _written(tmp_path / "empty-0.tar", b""))
    refused('is compressed; unpack it to a plain tar file: gunzip ".*z-0.tar"', shard(tmp_path / "z-0.tar", examples(pictures), "w:gz"))
    refused("has two images of a, .png and .jpg", shard(tmp_path / "two-0.tar", [("a.png", pictures[0]), ("a.jpg", pictures[0])]))
    refused("has no images .but a.b.png.; members are named key.jpg", shard(tmp_path / "dots-0.tar", [("a.b.png", pictures[0])]))
    refused('has the member "a.png" twice', shard(tmp_path / "again-0.tar", [("a.png", pictures[0]), ("a.png", pictures[1])]))


def test_the_cache_follows_the_content_of_archives(tmp_path):
    folders = write_class_folders(tmp_path / "folders", {"": 3})

    def written(kind: str) -> ImageList:
        if kind == "parquet":
            return read(write_parquet(folders, tmp_path / kind, "train", 1) / "train-00000-of-00001.parquet")
        return read(write_tars(folders, tmp_path / kind, "s-{}.tar", 1) / "s-0.tar")

    before = {kind: np.array(images.load(written(kind).paths, 16, "crop", tmp_path / "cache")[0]) for kind in ("parquet", "tar")}
    np.testing.assert_array_equal(before["parquet"], before["tar"])
    for seed, picture in enumerate(sorted(folders.rglob("*.png"))):
        write_picture(picture, seed + 7, 30, 30)
    for kind, pixels in before.items():
        assert (images.load(written(kind).paths, 16, "crop", tmp_path / "cache")[0] != pixels).any(axis=(1, 2, 3)).all()
