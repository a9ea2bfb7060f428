"""CVAT for images, with XML written by hand."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import recognize
from autotimm.data.formats.recognize import read_spatial
from autotimm.errors import DataError

Picture = Callable[..., Path]
LABELS = ("dog", "any"), ("cat", "rectangle"), ("sunny", "tag"), ("pose", "skeleton")
BOX = '<box label="dog" source="manual" occluded="0" xtl="1.5" ytl="2" xbr="9" ybr="8" z_order="0"></box>'
MASK = '<mask label="dog" rle="{}" left="{}" top="4" width="{}" height="{}"/>'


def image(name: str, *shapes: str, subset: str = "", size: tuple[int, int] = (20, 16)) -> str:
    more = f' subset="{subset}" task_id="3"' if subset else ""
    return f'<image id="0" name="{name}"{more} width="{size[0]}" height="{size[1]}">{"".join(shapes)}</image>'


def write(path: Path, *images: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = "".join(f"<label><name>{name}</name><type>{type}</type></label>" for name, type in LABELS)
    labels += "<label><name>elbow</name><type>any</type><parent>pose</parent></label>"
    meta = f"<meta><task><name>t</name><labels>{labels}</labels></task></meta>"
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    path.write_text(f"{head}<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>")


def read(root: Path, kind: str = "boxes", **options: bool) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_spatial(root, "cvat", kind, notices, **options), notices  # type: ignore[return-value]


def test_boxes_polygons_and_images_without_objects(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / "images" / f"{name}.png")
    polygon = '<polygon label="bird" points="2.0,3.0;8.0,3.0;8.0,9.0;2.0,9.0" z_order="0"></polygon>'
    crowd = BOX.replace("></box>", '><attribute name="is_crowd">true</attribute></box>')
    write(tmp_path / "annotations.xml", image("b.png", BOX, crowd), image("a.png", polygon), image("c.png"))
    tables, notices = read(tmp_path, strict=True)
    table = tables["train"]
    assert (table.ids, notices) == (("images/b.png", "images/a.png", "images/c.png"), [])
    assert table.class_names == ("dog", "cat", "bird")  # in the order of the task, then others
    boxes = [table.load(row).target["boxes"].tolist() for row in range(3)]
    assert boxes == [[[1.5, 2, 9, 8]] * 2, [[2, 3, 8, 9]], []]
    assert table.load(0).target["crowd"].tolist() == [False, True]
    masks = read(tmp_path, "instances")[0]["train"].load(1).target["masks"].numpy()
    expected = np.zeros((16, 20), int)
    expected[3:9, 2:8] = 1
    assert np.array_equal(masks[0], expected)


def test_ellipses_masks_turned_boxes_and_groups(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    part = '<polygon label="cat" points="{}" group_id="{}"/>'
    shapes = [
        '<ellipse label="dog" cx="10" cy="8" rx="6" ry="3" rotation="90"/>',
        '<mask label="dog" rle="1, 2, 1, 2" left="17" top="4" width="3" height="2"/>',
        '<box label="dog" xtl="4" ytl="7" xbr="12" ybr="9" rotation="90.0"/>',
        part.format("0,0;2,0;2,2;0,2", 1),
        part.format("6,0;8,0;8,2;6,2", 1),
        part.format("6,0;8,0;8,2;6,2", 10),
        part.format("0,4;2,4;2,6;0,6", 0),
        part.format("0,8;2,8;2,10;0,10", 0),
    ]
    write(tmp_path / "annotations.xml", image("a.png", *shapes))
    target = read(tmp_path, "instances", strict=True)[0]["train"].load(0).target
    assert np.allclose(
        target["boxes"].numpy(),
        [
            [7, 2, 13, 14], [18, 4, 20, 6], [7, 4, 9, 12], [0, 0, 8, 2], [6, 0, 8, 2], [0, 4, 2, 6], [0, 8, 2, 10],
        ],
    )  # fmt: skip
    masks = target["masks"].numpy()
    assert masks[1][4:6, 17:20].tolist() == [[0, 1, 1], [0, 1, 1]]
    assert masks[1].sum() == 4
    assert (masks[2].sum(), masks[3].sum()) == (16, 8)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('<points label="dog" points="1,2;3,4"/>', "a shape of type points"),
        ('<polyline label="dog" points="1,2;3,4"/>', "a shape of type polyline"),
        ('<skeleton label="dog"/>', "a shape of type skeleton"),
        ('<box xtl="1" ytl="1" xbr="2" ybr="2"/>', "a box without a label"),
        ('<box label="dog" xtl="1,5" ytl="1" xbr="2" ybr="2"/>', "xtl of a box is '1,5', and no number"),
        ('<box label="dog" xtl="1" ytl="1" xbr="2"/>', "ybr of a box is '', and no number"),
        ('<polygon label="dog" points="1,2;3,4"/>', "a polygon of 2 points"),
        ('<polygon label="dog" points="1,2;3;4,5"/>', "points of a polygon that are no list of x,y;x,y"),
        ('<polygon label="dog" points="1,2;3,x;4,5"/>', "a coordinate of a polygon is 'x', and no number"),
        ('<ellipse label="dog" cx="nan" cy="8" rx="6" ry="3"/>', "cx of an ellipse is 'nan', and no number"),
        (MASK.format("1, 2", 1, 3, 2), "a mask whose runs do not fill its box"),
        (MASK.format("", 1, 3, 2), "a run of a mask is '', and no number"),
        (MASK.format("0,6", 18, 3, 2), "a mask that reaches beyond its image"),
        (MASK.format("0,9", 0, "1e9", "1e9"), "a mask that reaches beyond its image"),
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_used_is_left_out_and_not_its_image(
    tmp_path: Path, picture: Picture, broken: str, reason: str
) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "annotations.xml", image("a.png", BOX, broken))
    tables, notices = read(tmp_path)
    assert tables["train"].object_counts() == (1, 0)
    assert notices == [f"1 shapes that cannot be used, left out: annotations.xml, a.png ({reason})."]
    with pytest.raises(DataError, match=re.escape(f"1 shapes that cannot be used: annotations.xml, a.png ({reason})")):
        read(tmp_path, strict=True)


def test_missing_ambiguous_unlisted_and_differing_images(tmp_path: Path, picture: Picture) -> None:
    for name in ("images/a", "images/rest", "images/x y", "one/twice", "two/twice"):
        picture(tmp_path / f"{name}.png")
    names = ("a.png", "gone.png", "x%20y.png", "twice.png", "C:\\photos\\a.png")
    write(tmp_path / "annotations.xml", *(image(name, BOX) for name in names), '<image id="9" width="1" height="1"/>')
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("images/a.png", "images/x y.png")
    assert sorted(notices) == [
        "1 CVAT images without a name, left out: annotations.xml #6.",
        "1 file names that several images have, ambiguous and left out: twice.png (one/twice.png, two/twice.png).",
        "1 file names that their images write differently, used all the same: x%20y.png (images/x y.png).",
        "1 images are in no annotation file and left out: images/rest.png.",
        "1 images that are listed twice, whose objects are merged: images/a.png.",
        "1 missing images, left out: images/gone.png.",
    ]


def test_splits_are_subsets_folders_files_or_lists(tmp_path: Path, picture: Picture) -> None:
    root = tmp_path / "subsets"
    for split in ("Train", "Validation"):
        picture(root / "images" / split / "1.png")
    write(root / "annotations.xml", image("1.png", BOX, subset="Train"), image("1.png", BOX, BOX, subset="Validation"))
    tables, notices = read(root)
    assert {split: (table.ids, table.object_counts()) for split, table in tables.items()} == {
        "train": (("images/Train/1.png",), (1, 0)), "val": (("images/Validation/1.png",), (2, 0)),
    }  # fmt: skip
    assert notices == []
    write(root / "annotations.xml", image("Train/1.png", BOX), image("Validation/1.png", BOX))
    assert read(root)[0].keys() == {"train", "val"}
    files = tmp_path / "files"
    for task, name in (("train_1", "a"), ("train_2", "b"), ("val", "c")):
        picture(files / task / "images" / f"{name}.png")
        write(files / task / "annotations.xml", image(f"{name}.png", BOX))
    tables, _ = read(files)
    assert {split: len(table) for split, table in tables.items()} == {"train": 2, "val": 1}
    lists = tmp_path / "lists"
    for name in "ab":
        picture(lists / "images" / f"{name}.png")
    write(lists / "annotations.xml", image("a.png", BOX), image("b.png", BOX))
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    assert read(lists)[0]["val"].ids == ("images/b.png",)


def test_broken_xml_videos_and_tags(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "annotations.xml", image("a.png", BOX, '<tag label="sunny"/>'))
    assert read(tmp_path, strict=True)[1] == ["1 tags of whole images in CVAT files are not read."]
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text().replace("</image>", ""))
    with pytest.raises(DataError, match=r"annotations\.xml cannot be read as XML: mismatched tag.* Export it again"):
        read(tmp_path)
    path.write_text(
        '<annotations><version>1.1</version><track id="0" label="dog"><box frame="0"/></track></annotations>'
    )
    for data, task in ((tmp_path, None), (path, "detection"), (tmp_path, "instance")):
        with pytest.raises(DataError, match=r"of CVAT's format for videos: export as CVAT for images"):
            recognize(data, task)
    with pytest.raises(DataError, match="tracks of a video: export as CVAT for images"):
        read(tmp_path)


@pytest.mark.parametrize(
    "document",
    [
        "".join(f'<!ENTITY a{number} "{f"&a{number - 1};" * 10}">' for number in range(1, 12)),
        '<!ENTITY a0 SYSTEM "file:///etc/hostname">',
    ],
)
def test_entities_are_not_expanded(tmp_path: Path, picture: Picture, document: str) -> None:
    picture(tmp_path / "a.png")
    first = '<!ENTITY a0 "lol">' if "a0 SYSTEM" not in document else ""
    last = "a11" if first else "a0"
    content = f"<annotations>{image('a.png', BOX)}<note>&{last};</note></annotations>"
    (tmp_path / "annotations.xml").write_text(f"<!DOCTYPE d [{first}{document}]>{content}")
    with pytest.raises(DataError, match=r"annotations\.xml cannot be read as XML"):
        read(tmp_path)


def test_a_mask_of_a_huge_image_takes_no_memory(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    mask = MASK.format("0, 100000000", 0, 10_000, 10_000)
    write(tmp_path / "annotations.xml", image("a.png", BOX), image("b.png", mask, size=(100_000, 100_000)))
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("a.png",)
    assert "a mask of 10000x10000 pixels" in " ".join(notices)


def test_recognized(tmp_path: Path, picture: Picture) -> None:
    root = tmp_path / "set"
    picture(root / "images" / "a.png")
    write(root / "annotations.xml", image("a.png", BOX))
    assert recognize(root)[:3] == ("detection", "cvat", "set has 1 CVAT file with boxes: object detection.")
    assert recognize(root / "annotations.xml")[:2] == ("detection", "cvat")
    with pytest.raises(DataError, match="boxes and no outlines"):
        read(root, "instances")
    write(root / "annotations.xml", image("a.png", BOX, '<polygon label="dog" points="0,0;2,0;2,2"/>'))
    assert recognize(root)[:2] == ("instance", "cvat")
    (root / "annotations.xml").unlink()
    with pytest.raises(DataError, match="There is no CVAT file"):
        read(root)
