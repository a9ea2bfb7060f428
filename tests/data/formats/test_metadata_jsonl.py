"""metadata.jsonl of image folders, with labels and with boxes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from autotimm import ImageDataModule
from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import Listing, recognize
from autotimm.data.formats.recognize import read_classes, read_spatial
from autotimm.data.relabelled import read_labelled
from autotimm.data.table import ImageTable
from autotimm.errors import DataError

Picture = Callable[..., Path]


def write(folder: Path, *lines: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(written) + "\n", encoding="utf-8")


def boxes(name: str, boxes: object, categories: object, **more: object) -> dict[str, object]:
    return {"file_name": name, "objects": {"bbox": boxes, "categories": categories} | more}


def label(name: str, value: object) -> dict[str, object]:
    return {"file_name": name, "label": value}


def read(root: Path, **options: bool) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_spatial(root, "jsonl", "boxes", notices, **options), notices  # type: ignore[return-value]


def classes(root: Path, **options: bool) -> tuple[dict[str, ImageTable], list[str]]:
    notices: list[str] = []
    return dict(read_classes(Listing(root), notices, **options)), notices


def test_boxes_classes_and_images_without_objects(tmp_path: Path, picture: Picture) -> None:
    root = tmp_path / "set"
    for name in ("train/a", "train/b", "train/c", "test/a"):
        picture(root / f"{name}.png")
    objects = [{"bbox": [1, 1, 2, 2], "category": "10"}]
    write(
        root / "train",
        boxes("a.png", [[2.0, 3.0, 6.0, 5.5], [0, 0, 4, 4]], [10, 2], id=[7, 8], area=[30, 9], iscrowd=[0, 1]),
        boxes("b.png", [], []),
        "",
        {"file_name": "c.png", "width": 20, "objects": objects},
    )
    write(root / "test", boxes("a.png", [[1, 1, 2, 2]], [2.0]))
    sentence = "set has 2 metadata.jsonl files with boxes: object detection."
    assert recognize(root)[:3] == ("detection", "jsonl", sentence)
    tables, notices = read(root, strict=True)
    train = tables["train"]
    assert (train.ids, tables["test"].ids) == (("train/a.png", "train/b.png", "train/c.png"), ("test/a.png",))
    assert (train.class_names, notices) == (("10", "2"), [])  # one class is text: in byte order
    assert [train.load(row).target["boxes"].tolist() for row in range(3)] == [
        [[2, 3, 8, 8.5], [0, 0, 4, 4]], [], [[1, 1, 3, 3]],
    ]  # fmt: skip
    assert train.load(0).target["crowd"].tolist() == [False, True]
    objects[0]["category"] = 10
    write(root / "train", boxes("a.png", [[2, 3, 6, 5]], [2]), {"file_name": "c.png", "objects": objects})
    assert read(root)[0]["train"].class_names == ("2", "10")


def test_flags_as_text_and_hostile_names(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    places = [[1, 1, 2, 2], [4, 4, 2, 2], [8, 8, 2, 2]]
    write(tmp_path, boxes("a.png", places, ["dog", "\ud800", "dog"], iscrowd=["0", "0", "1"]))
    table = read(tmp_path)[0]["train"]
    assert table.class_names == ("dog", "\ud800")
    assert table.load(0).target["crowd"].tolist() == [False, False, True]


def test_one_file_for_all_splits(tmp_path: Path, picture: Picture) -> None:
    for name in ("train/1", "validation/1"):
        picture(tmp_path / f"{name}.png")
    names = ("train/1.png", "validation/1.png")
    write(tmp_path, *(boxes(name, [[1, 1, 2, 2]], ["dog"]) for name in names))
    assert {split: table.ids for split, table in read(tmp_path, strict=True)[0].items()} == {
        "train": names[:1], "val": names[1:],
    }  # fmt: skip
    write(tmp_path, *(label(name, "dog") for name in names))
    assert {split: table.ids for split, table in classes(tmp_path, strict=True)[0].items()} == {
        "train": names[:1], "val": names[1:],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"file_name": "b.png"', "line 1: Expecting ',' delimiter"),
        ("[1]", "no object of JSON"),
        ('{"image": "b.png"}', "no file_name"),
        ({"file_name": "b.png"}, "no objects with a list bbox"),
        (boxes("b.png", [[1, 1, 2, 2], [1, 1, 3, 3]], [1]), "2 boxes and 1 categories"),
        (boxes("b.png", [[1, 1, 2, 2]], [None]), "no label"),
        (boxes("b.png", [[1, 1, 2, 2]], [[1]]), "the label [1]"),
    ],
)
def test_a_line_that_cannot_be_used_is_left_out_with_its_image(
    tmp_path: Path, picture: Picture, broken: object, reason: str
) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    write(tmp_path, boxes("a.png", [[1, 1, 2, 2]], ["dog"]), broken)
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("a.png",)
    line = f"1 lines that cannot be used, left out with their images: metadata.jsonl, line 2 ({reason})."
    assert line in notices
    with pytest.raises(DataError, match=re.escape(f"lines that cannot be used: metadata.jsonl, line 2 ({reason})")):
        read(tmp_path, strict=True)


def test_missing_ambiguous_unlisted_images_and_doubtful_boxes(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "rest", "one/twice", "two/twice"):
        picture(tmp_path / f"{name}.png")
    good = [[1, 1, 2, 2]] * 3
    lines = [boxes("a.png", [*good, [1, 1, 90, 2], [1, 1, 0, 2], [1, "x", 3, 2]], ["dog"] * 6)]
    lines += [boxes(name, good, ["dog"] * 3) for name in ("gone.png", "twice.png")]
    write(tmp_path, *lines)
    tables, notices = read(tmp_path)
    assert (tables["train"].ids, tables["train"].object_counts()) == (("a.png",), (4,))
    assert sorted(notices) == [
        "1 file names that several images have, ambiguous and left out: twice.png (one/twice.png, two/twice.png).",
        "1 images are in no annotation file and left out: rest.png.",
        "1 missing images, left out: gone.png.",
        "1 of 4 boxes reach beyond their image: are they x1, y1, x2, y2? They are cut at its border: a.png.",
        "2 boxes without area in the image in 1, left out: a.png.",
    ]
    write(tmp_path, boxes("a.png", [[0.1, 0.1, 0.5, 0.5]], ["dog"]))
    with pytest.raises(DataError, match="they are normalised, and pixels are expected"):
        read(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"There is no metadata\.jsonl in"):
        read(tmp_path)


def test_labels_of_images(tmp_path: Path, picture: Picture) -> None:
    root = tmp_path / "set"
    for name in ("a", "b", "sub/c", "rest"):
        picture(root / f"{name}.png")
    write(root, label("a.png", 10), label("b.png", 9), label("sub/c.png", 10.0), label("b.png", 9))
    sentence = "set has 1 metadata.jsonl with labels: classification."
    assert recognize(root)[:3] == ("classification", "jsonl", sentence)
    tables, notices = classes(root)
    assert (tables["train"].ids, tables["train"].class_names) == (("a.png", "b.png", "sub/c.png"), ("9", "10"))
    assert [tables["train"].labels(row) for row in range(3)] == [("10",), ("9",), ("10",)]
    assert notices == ["1 images are in no annotation file and left out: rest.png."]
    data = ImageDataModule(root, image_size=32, val_split=0, num_workers=0)
    data.setup("fit")
    assert (data.class_names, len(data.tables["train"])) == (("9", "10"), 3)
    assert recognize(root / "metadata.jsonl").task == "classification"
    assert classes(root / "metadata.jsonl")[0]["train"].ids == tables["train"].ids
    write(root, label("a.png", ["sea", "sun"]), label("b.png", []), label("sub/c.png", ["sun"]))
    train = classes(root)[0]["train"]
    assert (train.multi_label, train.targets.tolist()) == (True, [[1, 1], [0, 0], [0, 1]])  # type: ignore[union-attr]
    picture(root / "test" / "d.png")
    write(root, label("a.png", "sea"), label("b.png", "sun"), label("test/d.png", ["sun", "sea"]))
    tables, _ = classes(root)
    assert (tables["train"].multi_label, tables["test"].labels(0)) == (True, ("sea", "sun"))


def test_labels_that_cannot_be_used(tmp_path: Path, picture: Picture) -> None:
    for name in ("train/a", "train/b", "val/a"):
        picture(tmp_path / f"{name}.png")
    missing = label("gone.png", "cat")
    write(tmp_path / "train", label("a.png", "cat"), label("b.png", None), label("b.png", " "), missing)
    write(tmp_path / "val", label("a.png", "cat"))
    tables, notices = classes(tmp_path)
    assert tables["train"].ids == ("train/a.png",)
    assert notices == [
        "2 lines that cannot be used, left out with their images: train/metadata.jsonl, line 2 (no label), "
        "train/metadata.jsonl, line 3 (the label ' ').",
        "1 missing images, left out: train/gone.png.",
    ]
    with pytest.raises(DataError, match="2 lines that cannot be used"):
        classes(tmp_path, strict=True)
    write(tmp_path / "val", label("a.png", "bird"))
    with pytest.raises(DataError, match=r"val/metadata\.jsonl has labels that the training images do not have: bird"):
        classes(tmp_path)
    write(tmp_path / "train", label("a.png", "cat"), label("a.png", "dog"))
    with pytest.raises(DataError, match=r"line 2 gives train/a\.png another label than a line before"):
        classes(tmp_path)
    write(tmp_path / "train", missing)
    write(tmp_path / "val", missing)
    with pytest.raises(DataError, match=r"No image to train on is left\. 2 missing images"):
        classes(tmp_path)


def test_images_without_any_label_are_refused(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path, label("a.png", []))
    with pytest.raises(DataError, match="There is no class: no training image has a label"):
        classes(tmp_path)


def test_captions_leave_class_folders_as_they_are(tmp_path: Path, picture: Picture) -> None:
    for name in ("cat/a", "dog/b"):
        picture(tmp_path / f"{name}.png")
    write(tmp_path, {"file_name": "cat/a.png", "text": "a cat"}, {"file_name": "dog/b.png", "text": "a dog"})
    assert recognize(tmp_path)[:2] == ("classification", "folder")
    assert classes(tmp_path)[0]["train"].class_names == ("cat", "dog")
    write(tmp_path, label("cat/a.png", "tabby"), label("dog/b.png", "poodle"))
    assert recognize(tmp_path)[:2] == ("classification", "jsonl")
    assert classes(tmp_path)[0]["train"].class_names == ("poodle", "tabby")
    with pytest.raises(DataError, match="no data for object detection"):
        recognize(tmp_path, "detection")


def test_evaluation_reads_the_labels_too(tmp_path: Path, picture: Picture) -> None:
    for name in ("train/a", "train/b", "test/c"):
        picture(tmp_path / f"{name}.png")
    data = ImageDataModule(tmp_path, image_size=32, val_split=0, num_workers=0)
    write(tmp_path, label("train/a.png", "cat"), label("train/b.png", "dog"), label("test/c.png", "dog"))
    data.setup("fit")
    for split_files in (False, True):
        if split_files:
            write(tmp_path / "test", label("c.png", "dog"))
            (tmp_path / "metadata.jsonl").unlink()
        table = read_labelled(tmp_path, data.spec, "test", [])
        assert ([Path(id).name for id in table.ids], table.labels(0)) == (["c.png"], ("dog",))
