"""Tables with a line per box."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import read_boxes_csv, read_voc, recognize
from autotimm.errors import DataError

Picture = Callable[..., Path]


def read(root: Path, **options: bool) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_boxes_csv(root, notices, **options), notices  # type: ignore[return-value]


def test_boxes_of_cards_equal_those_of_the_xml_files(real: Callable[[str], Path]) -> None:
    """The tables were made from the XML files, whose pixels count from 1."""
    root = real("multilabel_cards")
    tables, notices = read(root)
    voc = read_voc(root, [])
    assert notices == []
    assert {split: len(table) for split, table in tables.items()} == {"train": 74, "test": 26}
    for split, table in tables.items():
        other = voc[split]
        assert isinstance(other, ObjectTable)
        assert sorted(table.ids) == sorted(other.ids)
        assert table.object_counts() == other.object_counts()
        for row, name in enumerate(table.ids):
            boxes = other._boxes[other._of(other.ids.index(name))] + np.array([1, 1, 0, 0])
            assert np.array_equal(np.sort(table._boxes[table._of(row)], 0), np.sort(boxes, 0))


@pytest.mark.parametrize(
    "header",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        "Image;image_width;image_height;Label;x1;y1;x2;y2",
        "path\timg_width\timg_height\tcategory\tleft\ttop\tright\tbottom",
    ],
)
def test_usual_headers(tmp_path: Path, picture: Picture, header: str) -> None:
    delimiter = header.strip("abcdefghijklmnopqrstuvwxyz_IL")[0]
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "photos" / "b.png")
    rows = ["a.png,20,16,dog,1,2,9,8", "a.png,20,16,cat,-1,2,90,8.5", "b.png,20,16,,,,,"]
    content = "\n".join([header, *(row.replace(",", delimiter) for row in rows)])
    (tmp_path / "boxes.csv").write_text(content, encoding="utf-8-sig")
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("photos/a.png", "photos/b.png")
    assert tables["train"].class_names == ("cat", "dog")
    assert tables["train"].load(0).target["boxes"].tolist() == [[1, 2, 9, 8], [0, 2, 20, 8.5]]
    assert tables["train"].load(1).target["boxes"].shape == (0, 4)
    assert notices == [
        "1 of 2 boxes reach beyond their image: were they drawn on images of another size? They are cut at its border: "
        "photos/a.png."
    ]
    with pytest.raises(DataError, match="without outlines"):
        read(tmp_path, masks=True)


def test_coordinates_as_fractions_of_the_image(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("ImageID,LabelName,XMin,XMax,YMin,YMax\na.png,dog,0.1,0.5,0.25,1\n")
    assert read(tmp_path)[0]["train"].load(0).target["boxes"].tolist() == [[2, 4, 10, 16]]


def test_problems_are_reported(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    head = "filename,width,height,class,xmin,ymin,xmax,ymax"
    rows = ["a.png,20,16,dog,1,2,1,8", "a.png,20,16,dog,1,2,,8", "a.png,20,16,,1,2,3,4", "a.png,20,16,dog,x,2,3,4"]
    rows += ["b.png,99,16,dog,1,2,3,4", "c.png,20,16,dog,1,2,3,4", "a.png,20,16,dog,1,2,3,4"]
    (tmp_path / "train.csv").write_text("\n".join([head, *rows]))
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("a.png",)
    assert sorted(notices) == [
        "1 images of another size than their annotations state, left out: b.png (20x16, annotated as 99x16).",
        "1 missing images, left out: c.png.",
        "2 boxes without area in the image in 1, left out: a.png.",
        "2 lines that cannot be used, left out: train.csv, row 4 (no class), "
        "train.csv, row 5 (could not convert string to float: 'x').",
    ]
    with pytest.raises(DataError, match="Correct these"):
        read(tmp_path, strict=True)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "train.csv").write_text(head + "\n")
    with pytest.raises(DataError, match="two tables of boxes for train"):
        read(tmp_path)


def test_a_missing_image_is_not_replaced_by_its_namesake_of_another_split(tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "val"):
        for number in range(3):
            picture(tmp_path / "images" / split / f"frame_{number}.png")
        rows = [f"frame_{number}.png,dog,1,2,9,8" for number in range(3)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]))
    (tmp_path / "images" / "train" / "frame_0.png").unlink()
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("images/train/frame_1.png", "images/train/frame_2.png")
    assert notices == ["1 missing images, left out: images/train/frame_0.png."]
    with pytest.raises(DataError, match="1 missing images"):
        read(tmp_path, strict=True)
    (tmp_path / "val.csv").unlink()  # alone it is read whole, and still is about train/
    assert read(tmp_path)[0]["train"].ids == tables["train"].ids


def test_a_name_with_a_nul_byte_is_a_missing_image(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    rows = ["filename,class,xmin,ymin,xmax,ymax", "a.png,dog,1,2,3,4", "a\x00.png,dog,1,2,3,4"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    assert read(tmp_path)[0]["train"].ids == ("a.png",)


@pytest.mark.parametrize("rows", [1, 2000])  # more than is read with the header
def test_classes_that_are_not_utf8_are_refused(tmp_path: Path, picture: Picture, rows: int) -> None:
    picture(tmp_path / "a.png")
    head = "filename,class,xmin,ymin,xmax,ymax\n" + (rows - 1) * "a.png,dog,1,2,9,8\n"
    (tmp_path / "a.csv").write_bytes((head + "a.png,café,1,2,9,8\n").encode("latin-1"))
    with pytest.raises(DataError, match=rf"a.csv, row {rows + 1}: the class caf.xe9 is not UTF-8. Save"):
        read(tmp_path)


def test_a_size_that_is_no_number_is_not_compared(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("filename,width,height,class,xmin,ymin,xmax,ymax\na.png,²,16,dog,1,2,9,8\n")
    assert read(tmp_path)[0]["train"].ids == ("a.png",)


def test_files_without_boxes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("filename,class\na.png,dog\n")
    with pytest.raises(DataError, match="no table of boxes"):
        read(tmp_path)
    with pytest.raises(DataError, match="no column for xmin, ymin, xmax, ymax"):
        read(tmp_path / "labels.csv")


# OpenImages

OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"


def open_row(image: str, label: str, box: str, group: int = 0) -> str:
    return f"{image},xclick,{label},1,{box},0,0,{group},0"


def test_open_images(tmp_path: Path, picture: Picture) -> None:
    root = tmp_path / "oi"
    for name in ("train/data/ab0.jpg", "train/data/ab1.JPG", "validation/data/ab0.png"):
        picture(root / name)
    rows = [open_row("ab0", "/m/01g317", "0.1,0.5,0.25,1"), open_row("ab1", "/m/0k4j", "0,0.5,0,0.5", 1)]
    rows.append(open_row("ab1", "/m/01g317", "0.5,1,0.5,1"))
    for split, lines in (("train", rows), ("validation", [open_row("ab0", "/m/0k4j", "0,1,0,1")])):
        (root / split / "labels").mkdir()
        (root / split / "labels" / "detections.csv").write_text("\n".join([OPEN_IMAGES, *lines]))
    (root / "class-descriptions-boxable.csv").write_text('/m/01g317,Person\n/m/0k4j,"Car"\n/m/011k07,Tortoise\n')
    assert recognize(root)[:3] == ("detection", "csv", "oi has 2 tables of boxes: object detection.")
    tables, notices = read(root, strict=True)
    assert {split: table.ids for split, table in tables.items()} == {
        "train": ("train/data/ab0.jpg", "train/data/ab1.JPG"), "val": ("validation/data/ab0.png",),
    }  # fmt: skip
    assert (tables["train"].class_names, notices) == (("Car", "Person"), [])
    assert tables["train"].load(0).target["boxes"].tolist() == [[2, 4, 10, 16]]
    assert tables["train"].load(1).target["crowd"].tolist() == [True, False]
    (root / "class-descriptions-boxable.csv").write_text("/m/01g317,Person\n")
    tables, notices = read(root)
    assert tables["train"].class_names == ("/m/0k4j", "Person")
    assert notices == [
        "1 classes have a code and no name: /m/0k4j. OpenImages' file class-descriptions-boxable.csv gives the names: "
        "add it to the folder."
    ]


def test_names_without_an_extension(tmp_path: Path, picture: Picture) -> None:
    """Missing, ambiguous, differently written ones, and those of masks."""
    for name in ("ab0.jpg", "two.jpg", "two.png", "x/dup.jpg", "y/dup.jpg", "Case.png", "v.1.png", "masks/ab0.png"):
        picture(tmp_path / "images" / name)
    names = ("ab0", "two", "dup", "case", "v.1", "gone", "x/dup")
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax"
    (tmp_path / "a.csv").write_text("\n".join([header, *(f"{name},dog,0,1,0,1" for name in names)]))
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("images/ab0.jpg", "images/Case.png", "images/v.1.png", "images/x/dup.jpg")
    assert sorted(notices)[:3] == [
        "1 file names that their images write differently, used all the same: case.png (images/Case.png).",
        "1 missing images, left out: images/gone.",
        "2 file names that several images have, ambiguous and left out: two (two.jpg, two.png), dup.jpg "
        "(images/x/dup.jpg, images/y/dup.jpg).",
    ]
