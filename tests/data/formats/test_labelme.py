"""labelme's JSON files, with shapes written by hand."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import recognize
from autotimm.data.formats.recognize import read_spatial
from autotimm.errors import DataError

Picture = Callable[..., Path]


def shape(label: object, points: object, kind: str | None = "polygon", **more: object) -> dict[str, object]:
    return {"label": label, "points": points, "flags": {}} | ({"shape_type": kind} if kind else {}) | more


def write(path: Path, *shapes: object, size: tuple[int, int] = (20, 16), image: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "5.2.1", "flags": {}, "shapes": list(shapes), "imagePath": image or f"{path.stem}.png",
        "imageData": None, "imageHeight": size[1], "imageWidth": size[0],
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=2))


def read(root: Path, kind: str = "boxes", **options: bool) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_spatial(root, "labelme", kind, notices, **options), notices  # type: ignore[return-value]


def png(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_boxes_polygons_and_images_without_objects(tmp_path: Path, picture: Picture) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    square = [[2, 3], [8, 3], [8, 9], [2, 9]]
    write(tmp_path / "a.json", shape("dog", square), shape("cat", [[12, 9], [4, 1]], "rectangle"))
    write(tmp_path / "b.json", shape("dog", [[1, 1], [5, 1], [5, 4], [1, 4]], "rectangle"))
    write(tmp_path / "c.json")
    tables, notices = read(tmp_path)
    table = tables["train"]
    assert (table.ids, table.class_names, notices) == (("a.png", "b.png", "c.png"), ("cat", "dog"), [])
    assert [table.load(row).target["boxes"].tolist() for row in range(3)] == [
        [[2, 3, 8, 9], [4, 1, 12, 9]], [[1, 1, 5, 4]], [],
    ]  # fmt: skip
    assert table.load(0).target["labels"].tolist() == [1, 0]
    tables, notices = read(tmp_path, "instances")
    expected = np.zeros((16, 20), bool)
    expected[3:9, 2:8] = True
    sample = tables["train"].load(0)
    assert np.array_equal(sample.target["masks"][0].numpy().astype(bool), expected)
    assert sample.target["crowd"].tolist() == [False, True]
    assert notices == ["2 objects without an outline, neither learned nor counted: a.png, b.png."]


def test_circles_masks_groups_and_old_files_without_a_type(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    dot = np.array([[1, 0, 1], [1, 1, 0]])
    shapes = [
        shape("sun", [[10, 8], [10, 12]], "circle"),
        shape("dot", [[17, 4], [19, 5]], "mask", mask=png(dot)),
        shape("car", [[0, 0], [2, 0], [2, 2], [0, 2]], None, group_id=1),
        shape("car", [[6, 0], [8, 0], [8, 2], [6, 2]], "polygon", group_id=1),
        shape("bus", [[6, 0], [8, 0], [8, 2], [6, 2]], "polygon", group_id=1, difficult=True),
    ]
    write(tmp_path / "a.json", *shapes)
    tables, notices = read(tmp_path, "instances", strict=True)
    target = tables["train"].load(0).target
    assert tables["train"].class_names == ("bus", "car", "dot", "sun")
    assert target["boxes"].tolist() == [[6, 4, 14, 12], [17, 4, 20, 6], [0, 0, 8, 2], [6, 0, 8, 2]]
    assert target["crowd"].tolist() == [False, False, False, True]
    masks = target["masks"].numpy()
    assert abs(masks[0].sum() - np.pi * 16) < 3
    expected = np.zeros((16, 20), int)
    expected[4:6, 17:20] = dot
    assert np.array_equal(masks[1], expected)
    assert (masks[2].sum(), masks[2][:2, 2:6].sum(), notices) == (8, 0, [])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (shape("dog", [[1, 1]], "point"), "a shape of type point"),
        (shape("dog", [[1, 1], [3, 3]], "line"), "a shape of type line"),
        (shape("dog", [[1, 1], [3, 3]]), "a polygon of 2 points"),
        (shape("dog", [[1, 1], [3, 3], [4, 4]], "rectangle"), "a rectangle of 3 points"),
        (shape("dog", [[1, 1]], "circle"), "a circle of 1 points"),
        (shape("dog", [[1, None], [3, 3]], "rectangle"), "points that are no list of x and y"),
        (shape("dog", [1, 2, 3]), "points that are no list of x and y"),
        (shape("dog", [["1,5", 2], [3, 4]]), "points that are no numbers"),
        (shape(" ", [[1, 1], [3, 3]], "rectangle"), "a shape without a label"),
        (shape("__ignore__", [[1, 1], [3, 3]], "rectangle"), "__ignore__ is no class"),
        (shape("dog", [[1, 1], [3, 3]], "mask"), "a mask without pixels or place"),
        (shape("dog", [[1, 1], [3, 3]], "mask", mask="AAAA"), "a mask that cannot be read: "),
        (shape("dog", [[18, 1], [20, 2]], "mask", mask=png([[1, 1, 1]])), "a mask that reaches beyond its image"),
        (shape("dog", [[0, 0], [40, 0]], "mask", mask=png([[1] * 40])), "a mask that reaches beyond its image"),
        (shape("dog", [[1e300, 0], [1e300, 0]], "mask", mask=png([[1]])), "a mask that reaches beyond its image"),
        ("dog", "no shape"),
        (shape("dog", [[1, 1], [3, 3]]) | {"shape_type": ["polygon"]}, "a shape of type ['polygon']"),
    ],
)
def test_a_shape_that_cannot_be_used_is_left_out_and_not_its_image(
    tmp_path: Path, picture: Picture, broken: object, reason: str
) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", shape("cat", [[1, 1], [5, 5]], "rectangle"), broken)
    tables, notices = read(tmp_path)
    assert tables["train"].object_counts() == (1,)
    assert len(notices) == 1
    assert notices[0].startswith(f"1 shapes that cannot be used, left out: a.json #2 ({reason}")
    with pytest.raises(DataError, match=re.escape(f"1 shapes that cannot be used: a.json #2 ({reason}")):
        read(tmp_path, strict=True)


def test_damaged_files_and_boxes_beyond_the_image(tmp_path: Path, picture: Picture) -> None:
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    write(tmp_path / "a.json", *[shape("cat", [[1, 1], [5, 5]], "rectangle")] * 2)
    write(
        tmp_path / "b.json", shape("cat", [[1, 1], [50, 5]], "rectangle"), shape("cat", [[3, 3], [3, 9]], "rectangle")
    )
    write(tmp_path / "c.json", shape("cat", [[1, 1], [5, 5]], "rectangle"), size=(99, 16))
    (tmp_path / "d.json").write_text('{"shapes": [], "imagePath": "d.png"')
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("a.png", "b.png")
    assert tables["train"].load(1).target["boxes"].tolist() == [[1, 1, 20, 5]]
    assert sorted(notices) == [
        "1 boxes without area in the image, left out: b.png.",
        "1 images of another size than their annotations state, left out: c.png (20x16, annotated as 99x16).",
        "1 labelme files that cannot be read, left out with their images: d.json (Expecting ',' delimiter: line 1 "
        "column 36 (char 35)).",
        "1 of 3 boxes reach beyond their image: were they drawn on images of another size? They are cut at its border: "
        "b.png.",
    ]


def test_a_name_that_is_no_text_is_a_class(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.json", shape("\ud800", [[2, 3], [8, 3], [8, 9]]), shape("dog", [[2, 3], [8, 3], [8, 9]]))
    assert read(tmp_path)[0]["train"].class_names == ("dog", "\ud800")


def test_images_are_found_by_name_then_by_their_path(tmp_path: Path, picture: Picture) -> None:
    box = shape("cat", [[1, 1], [5, 5]], "rectangle")
    for name in ("images/1", "images/x y", "images/bare", "other/twice", "more/twice"):
        picture(tmp_path / f"{name}.png")
    write(tmp_path / "labels" / "1.json", box, image="..\\images\\1.png")
    write(tmp_path / "labels" / "renamed.json", box, image="../images/x%20y.png")
    write(tmp_path / "labels" / "gone.json", box)
    write(tmp_path / "labels" / "twice.json", box)
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("images/1.png", "images/x y.png")
    assert notices == [
        "1 labelme files without an image, left out: labels/gone.json.",
        "1 labelme files that their images write differently, used all the same: labels/renamed.json (images/x y.png).",
        "1 labelme files of several images, ambiguous and left out: labels/twice.json (more/twice.png, "
        "other/twice.png).",
        "1 images without a labelme file, left out: images/bare.png.",
    ]
    write(tmp_path / "labels" / "twice.json", box, image="../other/twice.png")
    assert read(tmp_path)[0]["train"].ids == ("images/1.png", "images/x y.png", "other/twice.png")


def test_splits_by_folders_of_images_or_of_files_and_by_lists(tmp_path: Path, picture: Picture) -> None:
    box = shape("cat", [[1, 1], [5, 5]], "rectangle")
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "annotations" / split / f"{name}.json", box)
    tables, _ = read(tmp_path)
    assert {split: len(table) for split, table in tables.items()} == {"train": 2, "val": 1}
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b.png\nc\n")
    tables, _ = read(tmp_path)
    assert tables["val"].ids == ("images/b.png", "images/c.png")


def test_recognized(tmp_path: Path, picture: Picture) -> None:
    root = tmp_path / "set"
    for name in "ab":
        picture(root / f"{name}.png")
        write(root / f"{name}.json", shape("cat", [[1, 1], [5, 5]], "rectangle"))
    assert recognize(root)[:3] == ("detection", "labelme", "set has 2 labelme files with boxes: object detection.")
    with pytest.raises(DataError, match="boxes and no outlines"):
        read(root, "instances")
    write(root / "b.json", shape("cat", [[1, 1], [5, 5], [1, 5]], None))
    assert recognize(root)[:2] == ("instance", "labelme")
    assert recognize(root, "detection")[:2] == recognize(root / "a.json", "detection")[:2] == ("detection", "labelme")
    with pytest.raises(DataError, match="no data for semantic segmentation; it has 2 labelme files with outlines"):
        recognize(root, "segmentation")
    with pytest.raises(DataError, match="There is no labelme file"):
        read(tmp_path / "set" / "a.png")
