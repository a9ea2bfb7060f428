"""What all formats of objects check alike: boxes that cannot be what their format says."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.dense import DetectionDataModule
from autotimm.data.formats import read_boxes_csv, read_coco, read_voc, read_yolo
from autotimm.errors import DataError

Picture = Callable[..., Path]
Box = tuple[float, float, float, float]
SIZE = (100, 80)  # width and height of every image


def write_coco(root: Path, boxes: Sequence[Box]) -> None:
    entries = [
        {"id": number, "image_id": 0, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for number, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    images = [{"id": 0, "file_name": "a.png", "width": SIZE[0], "height": SIZE[1]}]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    (root / "coco.json").write_text(json.dumps(content))


def write_voc(root: Path, boxes: Sequence[Box]) -> None:
    objects = ""
    for x1, y1, x2, y2 in boxes:
        sides = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        objects += f"<object><name>cat</name><bndbox>{sides}</bndbox></object>"
    (root / "a.xml").write_text(f"<annotation>{objects}</annotation>")


def write_yolo(root: Path, boxes: Sequence[Box]) -> None:
    width, height = SIZE
    lines = [
        f"0 {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
        for x1, y1, x2, y2 in boxes
    ]
    (root / "a.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("names: [cat]\ntrain: .\n")


def write_csv(root: Path, boxes: Sequence[Box]) -> None:
    rows = [",".join(["a.png", "cat", *map(str, box)]) for box in boxes]
    (root / "boxes.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]))


FORMATS: dict[str, tuple[Callable[[Path, Sequence[Box]], None], Callable[..., Any]]] = {
    "coco": (write_coco, read_coco),
    "voc": (write_voc, read_voc),
    "yolo": (write_yolo, read_yolo),
    "csv": (write_csv, read_boxes_csv),
}
CORNERS = "are they x1, y1, x2, y2?"
OTHER_SIZE = "were they drawn on images of another size?"
DOUBTS = {"coco": CORNERS, "yolo": CORNERS, "voc": OTHER_SIZE, "csv": OTHER_SIZE}


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def read(tmp_path: Path, picture: Picture, format: str) -> Callable[..., tuple[ObjectTable, list[str]]]:
    """Write boxes of one image in a format, and read them."""

    def read_boxes(boxes: Sequence[Box], **options: Any) -> tuple[ObjectTable, list[str]]:
        picture(tmp_path / "a.png", SIZE)
        notices: list[str] = []
        write, reader = FORMATS[format]
        write(tmp_path, boxes)
        return reader(tmp_path, notices, **options)["train"], notices

    return read_boxes


INSIDE: Box = (10, 10, 30, 30)
BEYOND: list[Box] = [(60, 40, 120, 70), (10, 10, 30, 83), (-5, 10, 30, 30), (10, -1.5, 30, 30)]


@pytest.mark.parametrize("box", BEYOND)
def test_boxes_beyond_their_image_are_counted_and_cut(read: Callable[..., Any], format: str, box: Box) -> None:
    table, notices = read([INSIDE, box])
    x1, y1, x2, y2 = table.load(0).target["boxes"][1].tolist()
    assert (x1, y1, x2, y2) == pytest.approx((max(box[0], 0), max(box[1], 0), min(box[2], 100), min(box[3], 80)))
    assert notices == [f"1 of 2 boxes reach beyond their image: {DOUBTS[format]} They are cut at its border: a.png."]
    with pytest.raises(DataError, match=r"^1 of 2 boxes reach beyond their image.* In a\.png\. Correct these, or"):
        read([INSIDE, box], strict=True)


def test_if_most_boxes_reach_beyond_their_image_it_is_an_error(read: Callable[..., Any], format: str) -> None:
    inside: list[Box] = [(10 + shift, 10, 30, 30) for shift in range(12)]  # YOLO's equal lines are one object
    beyond: list[Box] = [(60 + shift, 40, 120, 70) for shift in range(13)]
    assert read(inside + beyond[:12])[1][0].startswith("12 of 24 boxes reach beyond their image")
    with pytest.raises(DataError, match=r"^13 of 24 boxes reach beyond their image") as caught:
        read(inside[:11] + beyond)
    assert DOUBTS[format] in str(caught.value)
    assert "a.png" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("box", [(0, 0, 100, 80), (-1, -0.9, 30, 30), (60, 40, 101, 80.7)])
def test_rounding_is_no_reason_to_doubt(read: Callable[..., Any], box: Box) -> None:
    table, notices = read([box], strict=True)
    assert notices == []
    assert table.load(0).target["boxes"].tolist() == [
        pytest.approx([max(box[0], 0), max(box[1], 0), min(box[2], 100), min(box[3], 80)])
    ]


@pytest.mark.parametrize("name", ["voc", "csv"])  # of two corners
@pytest.mark.parametrize("box", [(30, 10, 10, 30), (10, 30, 30, 10), (30, 30, 10, 10)])
def test_corners_in_another_order_are_sorted(tmp_path: Path, picture: Picture, name: str, box: Box) -> None:
    picture(tmp_path / "a.png", SIZE)
    write, read = FORMATS[name]
    plain = name == "csv"
    x1, y1, x2, y2 = box
    written = (x1 - (x1 > x2 and not plain), y1 - (y1 > y2 and not plain), x2, y2)  # VOC counts the last pixel
    written = (written[0], written[1], x2 + (x1 > x2 and not plain), y2 + (y1 > y2 and not plain))
    write(tmp_path, [INSIDE, written])
    notices: list[str] = []
    table = read(tmp_path, notices)["train"]
    assert table.load(0).target["boxes"].tolist() == [[10, 10, 30, 30]] * 2
    assert notices == [
        "1 of 2 boxes end before they begin: are they x, y, width, height? Their ends are sorted: a.png."
    ]
    with pytest.raises(DataError, match="1 of 2 boxes end before they begin"):
        read(tmp_path, [], strict=True)
    write(tmp_path, [written])
    with pytest.raises(DataError, match=r"^1 of 1 boxes end before they begin: are they x, y, width, height\?"):
        read(tmp_path, [])


def test_corners_written_as_sizes(tmp_path: Path, picture: Picture) -> None:
    """COCO's boxes are x, y, width, height; many write x1, y1, x2, y2."""
    corners: list[Box] = [(x, y, x + 20, y + 20) for x in (20, 45, 70) for y in (20, 40)]
    picture(tmp_path / "a.png", SIZE)
    write_coco(tmp_path, [(x1, y1, x1 + x2, y1 + y2) for x1, y1, x2, y2 in corners])
    with pytest.raises(DataError, match=r"5 of 6 boxes reach beyond their image: are they x1, y1, x2, y2\?"):
        read_coco(tmp_path, [])


@pytest.mark.parametrize("name", ["coco", "voc"])  # of pixels; the others have fractions, or tell them from pixels
@pytest.mark.parametrize("boxes", [[(0.1, 0.2, 0.5, 0.6)], [(0, 0, 1, 1), (0.25, 0.5, 0.75, 0.875)]])
def test_normalised_boxes_are_named(tmp_path: Path, picture: Picture, name: str, boxes: list[Box]) -> None:
    picture(tmp_path / "a.png", SIZE)
    write, read = FORMATS[name]
    write(tmp_path, [(x1 - (name == "voc"), y1 - (name == "voc"), x2, y2) for x1, y1, x2, y2 in boxes])
    with pytest.raises(DataError, match=rf"^All {len(boxes)} boxes of train lie within 0 to 1: they are normalised"):
        read(tmp_path, [])


def test_one_box_of_a_pixel_is_not_normalised(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png", SIZE)
    write_coco(tmp_path, [(0, 0, 1, 1), INSIDE])
    notices: list[str] = []
    read_coco(tmp_path, notices)
    assert notices == []


def test_tables_may_have_fractions(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png", SIZE)
    write_csv(tmp_path, [(0.1, 0.25, 0.5, 0.5)])
    boxes = read_boxes_csv(tmp_path, [])["train"].load(0).target["boxes"]
    assert boxes.tolist() == [[10, 20, 50, 40]]


def test_the_data_module_is_as_strict_as_it_is_told(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png", SIZE)
    write_coco(tmp_path, [INSIDE, BEYOND[0]])
    data = DetectionDataModule(tmp_path, image_size=64, val_split=0, num_workers=0)
    data.setup()
    assert any(line.startswith("1 of 2 boxes reach beyond their image") for line in data.notices)
    with pytest.raises(DataError, match="1 of 2 boxes reach beyond their image"):
        DetectionDataModule(tmp_path, image_size=64, val_split=0, num_workers=0, strict=True).setup()


def test_validation_without_an_object_is_named(tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "a.png", size=SIZE)
        write_coco(tmp_path / split, [(1, 2, 9, 8)] if split == "train" else [])
    notices: list[str] = []
    read_coco(tmp_path, notices)
    assert notices == ["No image of val has an object that counts: its average precision will be 0."]
