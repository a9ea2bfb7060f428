"""PASCAL VOC, compared with a reading by hand."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import read_voc
from autotimm.errors import DataError

Picture = Callable[..., Path]


def thing(name: str, box: Sequence[object], extra: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def write(path: Path, *things: str, filename: str = "", size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    head = f"<folder>elsewhere</folder><filename>{filename or path.stem + '.png'}</filename>"
    path.write_text(f"<annotation>{head}{sides}{''.join(things)}</annotation>")


def read(root: Path, **options: bool) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_voc(root, notices, **options), notices  # type: ignore[return-value]


# Real data


def test_blood_cells(real: Callable[[str], Path]) -> None:
    root = real("det_bccd_voc")
    tables, notices = read(root)
    assert {split: len(table) for split, table in tables.items()} == {"train": 205, "val": 87, "test": 72}
    train = tables["train"]
    assert train.class_names == ("Platelets", "RBC", "WBC")
    total = [sum(counts) for counts in zip(*(table.object_counts() for table in tables.values()), strict=True)]
    assert total == [361, 4155 - 2, 372]
    names = [f"JPEGImages/BloodImage_00{number}.jpg" for number in (338, 343)]
    assert len(notices) == 1
    assert notices[0].startswith("2 boxes without area in the image, left out: ")
    assert sorted(re.findall(r"JPEG\S+jpg", notices[0])) == names
    with pytest.raises(DataError, match=r"2 boxes without area in the image: .*BloodImage_00338"):
        read(root, strict=True)


def test_boxes_equal_those_read_by_hand(real: Callable[[str], Path]) -> None:
    root = real("det_bccd_voc") / "BCCD"
    compared = 0
    for table in read(root)[0].values():
        for row, path in enumerate(table.paths):
            text = (root / "Annotations" / f"{Path(path).stem}.xml").read_text()
            by_hand = []
            for element in re.findall(r"<object>.*?</object>", text, flags=re.DOTALL):
                x1, y1, x2, y2 = (
                    int(re.search(rf"<{side}>(\d+)", element)[1]) for side in ("xmin", "ymin", "xmax", "ymax")
                )  # type: ignore[index]
                if x2 > x1 and y2 > y1:
                    name = re.search("<name>(.*)</name>", element)[1]  # type: ignore[index]
                    by_hand.append((name, [max(x1 - 1, 0), max(y1 - 1, 0), min(x2, 640), min(y2, 480)]))
            boxes = table._boxes[table._of(row)].tolist()
            labels = [table.class_names[label] for label in table._labels[table._of(row)]]
            assert list(zip(labels, boxes, strict=True)) == by_hand
            compared += len(boxes)
    assert compared == 4886


def test_cards_have_their_xml_beside_the_images(real: Callable[[str], Path]) -> None:
    tables, notices = read(real("multilabel_cards"))
    assert {split: len(table) for split, table in tables.items()} == {"train": 74, "test": 26}
    total = [sum(counts) for counts in zip(*(table.object_counts() for table in tables.values()), strict=True)]
    assert dict(zip(tables["train"].class_names, total, strict=True)) == {
        "ace": 35, "jack": 42, "king": 42, "nine": 39, "queen": 40, "ten": 34,
    }  # fmt: skip
    # The README counts images per class.
    assert tables["test"].counts() == (11, 6, 11, 8, 9, 7)
    assert notices == []


# Traps


def test_pixels_count_from_1_and_difficult_objects_are_crowds(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "JPEGImages" / "a.png")
    part = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></part>"
    things = [
        thing("dog", (1, 1, 20, 16)),
        thing("cat", (3.5, 4, 8, 9), "<difficult>1</difficult>" + part),
        thing("cat", (0, -2, 40, 9), "<difficult>0</difficult>"),
    ]
    write(tmp_path / "Annotations" / "a.xml", *things)
    tables, notices = read(tmp_path)
    sample = tables["train"].load(0)
    assert sample.target["boxes"].tolist() == [[0, 0, 20, 16], [2.5, 3, 8, 9], [0, 0, 20, 9]]
    assert sample.target["crowd"].tolist() == [False, True, False]
    assert tables["train"].class_names == ("cat", "dog")
    assert notices == [
        "1 of 3 boxes reach beyond their image: were they drawn on images of another size? They are cut at its border: "
        "JPEGImages/a.png."
    ]


@pytest.mark.parametrize("written", ["0", "0.0", "False", "Unspecified", "", "1", "True"])
def test_difficult_may_be_a_word(tmp_path: Path, picture: Picture, written: str) -> None:
    picture(tmp_path / "a.png")
    flag = f"<difficult>{written}</difficult>"
    write(tmp_path / "a.xml", thing("dog", (1, 1, 9, 9), flag), thing("dog", (1, 1, 9, 9)))
    assert read(tmp_path)[0]["train"].load(0).target["crowd"].tolist() == [written in ("1", "True"), False]


def test_split_lists(tmp_path: Path, picture: Picture) -> None:
    for name in "abcd":
        picture(tmp_path / "V" / "JPEGImages" / f"{name}.png")
        write(tmp_path / "V" / "Annotations" / f"{name}.xml", thing("dog", (1, 1, 5, 5)))
    lists = tmp_path / "V" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, content in {
        "train": "b\na 1\n",
        "val": "c\nzz\n",
        "dog_train": "a -1\n",
        "trainval": "a\nb\nc\n",
    }.items():
        (lists / f"{name}.txt").write_text(content)
    tables, notices = read(tmp_path)
    ids = {split: table.ids for split, table in tables.items()}
    assert ids == {"train": ("JPEGImages/b.png", "JPEGImages/a.png"), "val": ("JPEGImages/c.png",)}
    assert notices == [
        "1 images are in no split list and left out: JPEGImages/d.png.",
        "1 split-list entries that match no file, left out: zz.",
    ]
    with pytest.raises(DataError, match="1 split-list entries that match no file: zz"):
        read(tmp_path, strict=True)
    (lists / "val.txt").write_text("c\n")
    assert read(tmp_path, strict=True)[1] == ["1 images are in no split list and left out: JPEGImages/d.png."]


def test_masks_of_other_tasks_are_not_images(tmp_path: Path, picture: Picture) -> None:
    for name in "ab":
        for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "SegmentationClassPNG"):
            picture(tmp_path / folder / f"{name}.png")
        write(tmp_path / "Annotations" / f"{name}.xml", thing("dog", (1, 1, 5, 5)))
    tables, notices = read(tmp_path, strict=True)
    assert (tables["train"].ids, notices) == (("JPEGImages/a.png", "JPEGImages/b.png"), [])
    (tmp_path / "JPEGImages" / "a.png").unlink()
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("JPEGImages/b.png",)
    assert notices == ["1 XML files without an image, left out: Annotations/a.xml."]


def test_images_are_found_by_stem_whatever_the_file_states(tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "same.name.png")
        write(tmp_path / split / "same.name.xml", thing(split, (1, 1, 5, 5)), filename="wrong.jpg")
    picture(tmp_path / "train" / "other.png")
    write(tmp_path / "train" / "renamed.xml", filename="C:\\photos\\other.jpg")
    write(tmp_path / "train" / "gone.xml")
    picture(tmp_path / "train" / "bare.png")
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("train/other.png", "train/same.name.png")
    assert tables["test"].labels(0) == ("test",)
    assert notices == [
        "1 XML files without an image, left out: train/gone.xml.",
        "1 images without an XML file, left out: train/bare.png.",
    ]
    (tmp_path / "train" / "gone.xml").unlink()
    with pytest.raises(DataError, match=r"1 images without an XML file: train/bare\.png"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize("inside", ["", "labels/"])
def test_a_folder_for_each_image(tmp_path: Path, picture: Picture, inside: str) -> None:
    """All with the same names: each XML file has the image of its own folder, and no two are compared."""
    for number in range(12):
        place = tmp_path / ("train" if number < 9 else "val") / f"scene_{number}"
        picture(place / "frame.png")
        write(place / inside / "frame.xml", thing(f"dog {number:02}", (1, 1, 9, 9)))
    (tmp_path / "train" / "scene_3" / "frame.png").unlink()
    tables, notices = read(tmp_path)
    named = {id: table.labels(row) for table in tables.values() for row, id in enumerate(table.ids)}
    assert named == {
        f"{'train' if number < 9 else 'val'}/scene_{number}/frame.png": (f"dog {number:02}",)
        for number in range(12) if number != 3
    }  # fmt: skip
    start = f"1 XML files of several images, ambiguous and left out: train/scene_3/{inside}frame.xml (train/scene_0/"
    assert any(line.startswith(start) for line in notices)


def test_a_missing_image_is_not_replaced_by_its_namesake_of_another_split(tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "valid"):
        for number in range(3):
            picture(tmp_path / split / f"frame_{number}.png")
            write(tmp_path / split / f"frame_{number}.xml", thing("dog", (1, 1, 5, 5)))
    (tmp_path / "train" / "frame_2.png").unlink()
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("train/frame_0.png", "train/frame_1.png")
    assert len(tables["val"].ids) == 3
    assert notices == ["1 XML files without an image, left out: train/frame_2.xml."]
    with pytest.raises(DataError, match=r"1 XML files without an image: train/frame_2\.xml"):
        read(tmp_path, strict=True)


def test_the_folder_of_the_xml_file_names_the_split_where_that_of_the_image_does_not(
    tmp_path: Path, picture: Picture
) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        picture(tmp_path / "JPEGImages" / f"{name}.png")
        write(tmp_path / "Annotations" / split / f"{name}.xml", thing("dog", (1, 1, 5, 5)))
    tables, notices = read(tmp_path)
    assert {split: table.ids for split, table in tables.items()} == {
        "train": ("JPEGImages/a.png",),
        "val": ("JPEGImages/b.png",),
    }
    assert notices == []


def test_broken_xml_is_reported(tmp_path: Path, picture: Picture) -> None:
    for number, content in enumerate(["<object>", thing("cat & dog", (1, 1, 5, 5))]):
        picture(tmp_path / f"{number}.png")
        write(tmp_path / f"{number}.xml", content)
    (tmp_path / "2.xml").write_bytes("<annotation><object><name>Käse</name></object></annotation>".encode("latin-1"))
    picture(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"^No image to train on is left.*3 XML files that cannot be read.*0\.xml"):
        read(tmp_path)
    picture(tmp_path / "good.png")
    write(tmp_path / "good.xml", thing("dog", (1, 1, 5, 5)), size=(0, 0))
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("good.png",)
    assert len(notices) == 1  # their images are not without an XML file
    assert "3 XML files that cannot be read, left out with their images: 0.xml (mismatched tag" in notices[0]
    assert "1.xml (not well-formed (invalid token)" in notices[0]
    with pytest.raises(DataError, match="3 XML files that cannot be read"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (thing("", (1, 1, 5, 5)), "an object without a name"),
        (thing("dog", ("3,5", 1, 5, 5)), "xmin is '3,5', and no number"),
        (thing("dog", (1, 1, "", 5)), "a box without xmax"),
        ("<object><name>dog</name></object>", "a box without xmin"),
    ],
)
def test_an_object_that_cannot_be_used_is_left_out_and_not_its_image(
    tmp_path: Path, picture: Picture, broken: str, reason: str
) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.xml", broken)
    with pytest.raises(DataError, match=re.escape(f"1 objects that cannot be used, left out: a.xml ({reason}).")):
        read(tmp_path)
    write(tmp_path / "a.xml", broken, thing("cat", (1, 1, 5, 5)))
    tables, notices = read(tmp_path)
    assert tables["train"].object_counts() == (1,)
    assert notices == [f"1 objects that cannot be used, left out: a.xml ({reason})."]
    with pytest.raises(DataError, match=r"1 objects that cannot be used: a\.xml"):
        read(tmp_path, strict=True)


def test_files_of_cvat_are_not_of_voc(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(DataError, match="no VOC annotation"):
        read(tmp_path)


def test_boxes_are_refused_for_instances(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"boxes without outlines. Use task='detection'"):
        read(tmp_path, masks=True)
    with pytest.raises(DataError, match="no VOC annotation"):
        read(tmp_path)
