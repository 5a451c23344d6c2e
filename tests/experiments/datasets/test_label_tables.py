"""Tables of labels as people and Kaggle write them; and one line for each thing that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.datasets.labels import ImageList
from experiments.datasets.splits import images_by_split
from tests.experiments.tiny_folders import write_picture

WORDS = ("dog", "cat", "dog", "cat", "dog", "cat")


def lines(pattern: str, labels: tuple[str, ...] = WORDS) -> str:
    return "".join(pattern.format(i=i, label=label) + "\n" for i, label in enumerate(labels))


@pytest.fixture
def write(tmp_path):
    """Six images and a table; returns the folder."""

    def write(text: str, table: str = "labels.csv", encoding: str = "utf-8", image: str = "im{i}.png") -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for i in range(6):
            write_picture(folder / image.format(i=i), i)
        (folder / table).write_text(text, encoding=encoding)
        return folder

    return write


def listed(folder: Path, label: str = "") -> ImageList:
    return images_by_split(folder, label)["train"]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("filename,label\n" + lines("im{i}.png,{label}"), {}),
        (lines("im{i}.png,{label}"), {}),
        (lines("{label},im{i}.png"), {}),
        ("file;class\n" + lines("im{i}.png;{label}"), {"encoding": "utf-8-sig"}),
        ("Image\tCategory\n" + lines("im{i}.png\t{label}"), {"encoding": "utf-16", "table": "images.tsv"}),
        ("id,breed\n" + lines("im{i},{label}"), {}),
        ("id,whatever\n" + lines("im{i},{label}"), {}),
        (",label,image,width\n" + lines('{i},"{label}",im{i}.png,40'), {"table": "train.csv"}),
        ("ImageId,PredictionString\n" + lines("im{i},{label} 111 108 431 202 {label} 1 2 3 4 "), {"table": "LOC_val_solution.csv"}),
        ("path,label\n" + lines("images/im{i}.png,{label}"), {"image": "images/im{i}.png"}),
        ("path,label\n" + lines("im{i}.png,{label}"), {"image": "images/im{i}.png"}),
        ("path,label\n" + lines("C:\\data\\IM{i}.PNG,{label}"), {}),
    ],
)
def test_a_table_is_read_as_people_write_it(write, text, options):
    members = listed(write(text, **options))
    assert (members.classes, members.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    assert [path.name for path in members.paths] == [f"im{i}.png" for i in (1, 3, 5, 0, 2, 4)]
    assert members.notes == ()


def test_numbers_are_classes_by_number_or_have_names(write):
    folder = write("file,label\n" + lines("im{i}.png,{label}", ("10", "2", "10", "2", "1", "1")))
    assert listed(folder).classes == ("1", "2", "10")
    (folder / "labels.txt").write_text("\n".join("abcdefghijk"))
    assert listed(folder).classes == ("b", "c", "k")


def test_what_is_left_out_is_told(write):
    folder = write("file,label\n" + lines("im{i}.png,{label}", ("dog", "cat", "", "-1")))
    assert listed(folder).notes == (
        f"2 images of folder {folder.name} are not in labels.csv and were left out: im4.png, im5.png",
        "2 of 4 images of labels.csv have no class and were left out: im2.png, im3.png",
    )


def test_a_column_of_splits_divides_the_images(write):
    text = "file,label,split\n" + "".join(f"im{i}.png,{label},{'train' if i < 4 else 'test'}\n" for i, label in enumerate(WORDS))
    parts = images_by_split(write(text))
    assert {part: [path.name for path in members.paths] for part, members in parts.items()} == {
        "train": ["im1.png", "im3.png", "im0.png", "im2.png"],
        "test": ["im5.png", "im4.png"],
    }
    with pytest.raises(ValueError, match=r"has the splits a, b, c: which is meant\? leave the other lines out"):
        images_by_split(write("file,label,split\nim0.png,x,a\nim1.png,y,b\nim2.png,y,c\n"))


WHOLE = "file,label\n" + lines("im{i}.png,{label}")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (WHOLE + "im9.png,dog\nim8.png,cat\n", r"names 2 files that are not below its folder: im9.png, im8.png; bring them, or take out"),
        (WHOLE + "im0.png,cat\n", "names 1 files twice: im0.png in lines 2 and 8; an image has one line and one class"),
        (WHOLE + "im0.png\n", "has 1 columns in line 8, 2 in the first one; mend these lines"),
        ("a,b,c\nim0.png,1,2\n", "has the columns a, b, c: none is known for files or for classes; name them file and label"),
        ("file,width,kind\nim0.png,1,x\n", "has the columns file, width, kind: none is known for classes; .* by --folders.label"),
        ("label,class_id,width\nim0.png,1,x\n", "several columns of classes, label, class_id; name one: --folders.label label"),
        ("width,height,label\n1,2,x\n", "has the columns width, height, label: none is known for files"),
        ("file_name,text\n" + lines("im{i}.png,caption {i}"), "has the columns file_name, text: none is known for classes"),
        (lines("im{i}.png,caption {i}"), "has the columns im0.png, caption 0: none is known for files or for classes"),
        ("file\nim0.png\n", "none is known for classes"),
        ("", "is empty; write a file and its class a line"),
        ("file,label\n", "has a header and no line below it"),
        ('file,label\nim0.png,"dog\n', r"cannot be read in line 2 \(unexpected end of data\)"),
        ("file,label\nim0.png,a\nim1.png,a\n", "are of class a: a probe of one class is always right"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(write, text, match):
    with pytest.raises(ValueError, match=match) as error:
        listed(write(text))
    assert "\n" not in str(error.value)


def test_of_several_tables_one_is_named(write):
    folder = write(WHOLE, table="a.csv")
    (folder / "b.csv").write_text(WHOLE.replace("dog", "emu"))
    with pytest.raises(ValueError, match=r'several tables, a.csv, b.csv; name that of the labels: --folders.images ".*a.csv"'):
        listed(folder)
    assert listed(folder / "b.csv").classes == ("cat", "emu")
    (folder / "labels.csv").write_text(WHOLE.replace("dog", "yak"))
    assert listed(folder).classes == ("cat", "yak")


def test_a_name_that_two_images_share_needs_its_folder(write):
    folder = write("file,label\nim0.png,dog\nim1.png,cat\n")
    write_picture(folder / "more" / "deep" / "im0.png", 9)
    assert listed(folder).labels.tolist() == [0, 1], "one lies right where the table says"
    (folder / "labels.csv").write_text("file,label\nx/im0.png,dog\nim1.png,cat\n")
    with pytest.raises(ValueError, match=r'several images may be meant by "x/im0.png": im0.png, more/deep/im0.png; write their folders'):
        listed(folder)
    (folder / "labels.csv").write_text("file,label\ndeep/im0.png,dog\nim1.png,cat\n")
    assert [path.parent.name for path in listed(folder).paths][1] == "deep"
