"""COCO data as real tools write them, compared with pycocotools and a reading by hand."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import read_coco
from autotimm.errors import DataError

Picture = Callable[..., Path]


def sheet(**changes: Any) -> dict[str, Any]:
    """Two images of 20x16, one with two objects; ids have gaps, the first of all is 0."""
    return {
        "images": [
            {"id": 0, "file_name": "a.png", "width": 20, "height": 16},
            {"id": 7, "file_name": "sub/b.png", "width": 20, "height": 16},
        ],
        "categories": [{"id": 5, "name": "zebra"}, {"id": 90, "name": "ant"}],
        "annotations": [
            annotation(id=0, category_id=90),
            annotation(id=4, bbox=[0, 0, 4, 4], segmentation=[[0, 0, 4, 0, 4, 4, 0, 4]], category_id=5),
        ],
    } | changes


def annotation(**changes: Any) -> dict[str, Any]:
    outline = [[2.0, 3.0, 10.0, 3.0, 10.0, 8.0, 2.0, 8.0]]
    given = {"id": 1, "image_id": 0, "category_id": 5, "bbox": [2, 3, 8, 5], "segmentation": outline, "iscrowd": 0}
    return given | changes


@pytest.fixture
def write(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    def written(content: Any = None, name: str = "coco.json", **changes: Any) -> Path:
        picture(tmp_path / "images" / "a.png")
        picture(tmp_path / "images" / "sub" / "b.png")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(sheet(**changes) if content is None else content))
        return tmp_path

    return written


def read(root: Path, **options: Any) -> tuple[dict[str, ObjectTable], list[str]]:
    notices: list[str] = []
    return read_coco(root, notices, **options), notices  # type: ignore[return-value]


# Real data


@pytest.mark.parametrize("name", ["det_inst_tinycoco", "inst_nuts_coco", "inst_cardamage_coco"])
def test_masks_areas_and_boxes_equal_those_of_pycocotools(real: Callable[[str], Path], name: str) -> None:
    root, compared = real(name), 0
    tables, _ = read(root, masks=True)
    by_name = {Path(file).name: (table, row) for table in tables.values() for row, file in enumerate(table.paths)}
    for file in sorted(root.rglob("*.json")):
        with redirect_stdout(StringIO()):
            coco = COCO(str(file))
        for image in coco.dataset["images"]:
            table, row = by_name[Path(image["file_name"]).name]
            target = table.load(row).target
            entries = coco.imgToAnns[image["id"]]
            assert target["masks"].shape == (len(entries), image["height"], image["width"])
            for entry, mask, box, label in zip(
                entries, target["masks"], target["boxes"], target["labels"], strict=True
            ):
                theirs = coco.annToMask(entry)
                assert np.array_equal(mask.numpy(), theirs)
                assert int(mask.sum()) == int(coco_mask.area(coco.annToRLE(entry)))
                x, y, width, height = entry["bbox"]
                by_hand = [max(x, 0), max(y, 0), min(x + width, image["width"]), min(y + height, image["height"])]
                assert box.tolist() == pytest.approx(by_hand, abs=1e-3)
                assert table.class_names[label] == coco.cats[entry["category_id"]]["name"]
                compared += 1
    assert compared == {"det_inst_tinycoco": 93, "inst_nuts_coco": 165, "inst_cardamage_coco": 305}[name]


def test_tinycoco_keeps_all_80_classes_and_images_without_objects(real: Callable[[str], Path]) -> None:
    tables, notices = read(real("det_inst_tinycoco"), masks=True)
    assert {split: len(table) for split, table in tables.items()} == {"train": 11, "val": 2}
    train = tables["train"]
    assert len(train.class_names) == 80
    assert train.class_names[:2] + train.class_names[-1:] == ("person", "bicycle", "toothbrush")
    counts = dict(zip(train.class_names, train.object_counts(), strict=True))
    assert {name: count for name, count in counts.items() if count} == {
        "bottle": 1, "dining table": 1, "person": 18, "knife": 1, "bowl": 4, "toilet": 13, "oven": 2, "sink": 3,
        "umbrella": 1, "handbag": 4, "cup": 3, "traffic light": 1, "broccoli": 3, "spoon": 1, "carrot": 1, "bus": 1,
        "backpack": 1, "car": 2, "bird": 6,
    }  # fmt: skip
    empty = [row for row in range(11) if not train.labels(row)]
    assert len(empty) == 2
    assert [train.strata[row] for row in empty] == [80, 80]
    assert [len(train.load(row).target["boxes"]) for row in empty] == [0, 0]
    assert train.load(empty[0]).target["masks"].shape[0] == 0
    assert notices == []


def test_nuts_are_split_by_their_lists(real: Callable[[str], Path]) -> None:
    tables, notices = read(real("inst_nuts_coco"), masks=True)
    assert {split: len(table) for split, table in tables.items()} == {"train": 14, "val": 4}
    assert tables["train"].class_names == ("date", "fig", "hazelnut")
    total = torch.tensor([table.object_counts() for table in tables.values()]).sum(0)
    assert total.tolist() == [71, 41, 53]
    assert tables["val"].ids == tuple(f"data/images/{number}.jpg" for number in (0, 10, 14, 7))
    assert notices == []


def test_a_parent_category_without_objects_is_not_a_class(real: Callable[[str], Path]) -> None:
    tables, notices = read(real("inst_cardamage_coco"))
    assert {split: len(table) for split, table in tables.items()} == {"train": 84, "val": 24, "test": 12}
    names = ("airbag", "astar", "cam_catlagi", "cizik", "far_hasar", "gocuk", "kaput_hasar", "kirik-kayip")
    assert tables["train"].class_names == tables["test"].class_names == names
    assert tables["train"].object_counts() == (10, 9, 18, 82, 7, 33, 4, 47)
    assert notices == ["Parent categories without objects are not classes: car."]
    assert "masks" not in tables["train"].load(0).target


# Traps


def test_ids_with_gaps_and_from_0(write: Callable[..., Path]) -> None:
    tables, notices = read(write(), masks=True)
    (table,) = tables.values()
    assert table.ids == ("images/a.png", "images/sub/b.png")
    assert table.class_names == ("zebra", "ant")  # by category id, not by name
    target = table.load(0).target
    assert target["labels"].tolist() == [1, 0]
    assert target["boxes"].tolist() == [[2, 3, 10, 8], [0, 0, 4, 4]]
    assert target["masks"].sum((1, 2)).tolist() == [40, 16]
    assert table.load(1).target["boxes"].shape == (0, 4)
    assert notices == []


def test_roboflow_and_official_layouts(tmp_path: Path, picture: Picture) -> None:
    content = sheet(images=[{"id": 0, "file_name": "a.png", "width": 20, "height": 16}])
    for split in ("train", "valid"):
        picture(tmp_path / "r" / split / "a.png")
        (tmp_path / "r" / split / "_annotations.coco.json").write_text(json.dumps(content))
        picture(tmp_path / "o" / "images" / f"{split}2017" / "a.png")
        (tmp_path / "o" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "o" / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        (tmp_path / "o" / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content))
    roboflow, _ = read(tmp_path / "r")
    assert {split: table.ids for split, table in roboflow.items()} == {
        "train": ("train/a.png",),
        "val": ("valid/a.png",),
    }
    official, _ = read(tmp_path / "o")
    ids = {split: table.ids for split, table in official.items()}
    assert ids == {"train": ("images/train2017/a.png",), "val": ("images/valid2017/a.png",)}


def test_a_file_beside_the_images_of_its_data(tmp_path: Path, picture: Picture) -> None:
    """The official layout, of which one file is named: its images are not below the folder that it is in."""
    content = sheet(images=[{"id": 0, "file_name": "a.png", "width": 20, "height": 16}])
    content["annotations"][0]["area"] = 12.5
    for split in ("train", "val"):
        picture(tmp_path / "images" / f"{split}2017" / "a.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    tables, notices = read(tmp_path / "annotations" / "instances_val2017.json")
    assert tables["train"].ids == ("images/val2017/a.png",), notices
    assert 12.5 in tables["train"].load(0).truth["area"].tolist()
    assert tables["train"].category_ids == (5, 90)


def test_crowds_in_both_encodings_of_run_lengths(write: Callable[..., Path]) -> None:
    mask = np.zeros((16, 20), np.uint8)
    mask[4:9, 5:15] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    runs, value = [0], 0
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    plain = {"size": [16, 20], "counts": runs}
    compressed = {"size": [16, 20], "counts": packed["counts"].decode()}
    entries = [
        annotation(id=1, segmentation=plain, iscrowd=1),
        annotation(id=2, segmentation=compressed, iscrowd=1),
        annotation(id=3, segmentation=compressed, bbox=None),
    ]
    tables, notices = read(write(annotations=entries), masks=True)
    target = tables["train"].load(0).target
    assert target["crowd"].tolist() == [True, True, False]
    assert all(np.array_equal(pixels.numpy(), mask) for pixels in target["masks"])
    assert target["boxes"][2].tolist() == [5, 4, 15, 9]  # from the mask
    assert tables["train"].labels(0) == ("zebra",)
    assert tables["train"].object_counts() == (1, 0)
    assert notices == []


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [16, 20], "counts": [400]},
        {"size": [16, 20], "counts": [-3, 323]},
        {"size": [16, 20], "counts": "\x7f\x7f"},
        {"size": [16, 20], "counts": "PPPPPPP"},
        {"size": [16], "counts": [16]},
        {"size": [8, 40], "counts": [0, 320]},
        {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
        {"size": [16, 20], "counts": [float("inf")]},
        [[1, 1, "x", 2, 3, 3]],
        [[1, 1, 2, 2, 3, 3, 4]],
        [[1, 1, 2, 2, float("nan"), 3]],
    ],
)
def test_a_broken_outline_is_neither_learned_nor_counted(write: Callable[..., Path], broken: Any) -> None:
    root = write(annotations=[annotation(), annotation(id=2, segmentation=broken)])
    tables, notices = read(root, masks=True)
    target = tables["train"].load(0).target
    assert target["crowd"].tolist() == [False, True]
    assert target["masks"].sum((1, 2)).tolist() == [40, 40]  # a crowd without an outline fills its box
    assert len(notices) == 1
    assert "neither learned nor counted" in notices[0]
    with pytest.raises(DataError, match=r"outlines .*coco.json #2|outlines of another size than their image: images/a"):
        read(root, masks=True, strict=True)
    assert read(root, strict=True)[1] == []  # boxes are fine


def test_boxes_without_area_are_left_out_and_named(write: Callable[..., Path]) -> None:
    boxes = [
        [2, 3, 0, 5],
        [2, 3, 5, -1],
        [30, 3, 5, 5],
        [2, 3, float("nan"), 5],
        [2, 3, 5],
        [-5, -5, 8, 9],
        [18, 14, 9, 9],
    ]
    boxes += [[2, 3, 8, 5]] * 3
    entries = [annotation(id=number, bbox=box, segmentation=None) for number, box in enumerate(boxes)]
    root = write(annotations=entries)
    tables, notices = read(root)
    assert tables["train"].load(0).target["boxes"].tolist()[:2] == [[0, 0, 3, 4], [18, 14, 20, 16]]
    assert notices == [
        "3 of 6 boxes reach beyond their image: are they x1, y1, x2, y2? They are cut at its border: images/a.png.",
        "5 boxes without area in the image in 1, left out: images/a.png.",
    ]
    with pytest.raises(DataError, match=r"5 boxes without area in the image in 1: images/a\.png\. Correct these"):
        read(root, strict=True)


@pytest.mark.parametrize("bbox", [[0, 0, 0, 0], [2, 3, 8, 0], [2, 3, float("nan"), 5]])
def test_the_outline_counts_where_the_box_has_no_area(write: Callable[..., Path], bbox: list[float]) -> None:
    root = write(annotations=[annotation(bbox=bbox)])
    for masks in (False, True):
        tables, notices = read(root, masks=masks)
        assert tables["train"].load(0).target["boxes"].tolist() == [[2, 3, 10, 8]]
        assert notices == ["1 boxes without area, taken from the outlines of their objects: images/a.png."]
    with pytest.raises(DataError, match=r"1 boxes without area: images/a\.png"):
        read(root, strict=True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_encodings_of_json(write: Callable[..., Path], encoding: str) -> None:
    root = write()
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    (root / "coco.json").write_bytes(mark + json.dumps(sheet()).encode(encoding))
    assert len(read(root)[0]["train"]) == 2


def test_polygons_are_cut_at_the_border(write: Callable[..., Path]) -> None:
    """Whatever is outside does not change what is inside, however far it is."""
    far = [[-8, 4, 30, 4, 30, 12, -8, 12], [1e12, 1e12, 2, 3, 1e12, 1.5e12], [5, -1e9, 15, -1e9, 15, 1e9, 5, 1e9]]
    entries = [annotation(id=number, segmentation=[corners], bbox=None) for number, corners in enumerate(far)]
    target = read(write(annotations=entries), masks=True)[0]["train"].load(0).target
    assert target["masks"].sum((1, 2)).tolist()[::2] == [8 * 20, 10 * 16]
    assert target["masks"][1, 10:, :5].sum() == 0
    assert target["boxes"].tolist() == [[0, 4, 20, 12], [2, 3, 20, 16], [5, 0, 15, 16]]


def test_a_polygon_of_two_corners_is_not_a_box(write: Callable[..., Path]) -> None:
    """pycocotools takes a list of four numbers for x, y, width, height."""
    outline = [[1, 1, 9, 9], [2, 3, 10, 3, 10, 8, 2, 8]]
    table = read(write(annotations=[annotation(segmentation=outline)]), masks=True)[0]["train"]
    assert table.load(0).target["masks"].sum() == 40
    flat = read(write(annotations=[annotation(segmentation=outline[1])]), masks=True)[0]["train"]
    assert flat.load(0).target["masks"].sum() == 40


def test_an_object_without_an_outline_is_not_background(write: Callable[..., Path]) -> None:
    root = write(annotations=[annotation(), annotation(id=2, segmentation=[])])
    tables, notices = read(root, masks=True)
    assert tables["train"].load(0).target["crowd"].tolist() == [False, True]
    assert notices == ["1 objects without an outline, neither learned nor counted: images/a.png."]


def test_boxes_without_outlines_are_refused_for_instances(write: Callable[..., Path]) -> None:
    root = write(annotations=[annotation(segmentation=[])])
    with pytest.raises(DataError, match=r"has boxes and no outlines. Use task='detection'"):
        read(root, masks=True)
    assert len(read(root)[0]["train"]) == 2


def test_missing_images_are_reported(write: Callable[..., Path]) -> None:
    root = write()
    (root / "images" / "sub" / "b.png").unlink()
    tables, notices = read(root)
    assert tables["train"].ids == ("images/a.png",)
    assert notices == ["1 missing images, left out: images/sub/b.png."]
    with pytest.raises(DataError, match=r"1 missing images: images/sub/b.png"):
        read(root, strict=True)
    (root / "images" / "a.png").unlink()
    with pytest.raises(DataError, match="No image to train on is left"):
        read(root)


def frames(picture: Picture, root: Path, gone: str, name: str = "frame_{}.png") -> None:
    """Three pictures for each split, called alike in both, and of one of them ``gone``; official places."""
    for split in ("train", "val"):
        images = [{"id": number, "file_name": name.format(number)} for number in range(3)]
        for seed, image in enumerate(images):
            picture(root / "images" / split / str(image["file_name"]), seed=seed)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(sheet(images=images)))
    (root / "images" / gone).unlink()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_image_is_not_replaced_by_its_namesake_of_another_split(
    tmp_path: Path, picture: Picture, split: str
) -> None:
    frames(picture, tmp_path, f"{split}/frame_2.png")
    tables, notices = read(tmp_path)
    assert {name: table.ids for name, table in tables.items()} == {
        name: tuple(f"images/{name}/frame_{number}.png" for number in range(2 if name == split else 3))
        for name in ("train", "val")
    }
    assert notices == [f"1 missing images, left out: images/{split}/frame_2.png."]
    with pytest.raises(DataError, match=rf"1 missing images: images/{split}/frame_2\.png"):
        read(tmp_path, strict=True)
    for path in (tmp_path / "images" / "train").iterdir():
        path.unlink()  # not one is left: those of val are no better
    with pytest.raises(DataError, match="No image to train on is left"):
        read(tmp_path)


def test_a_name_with_folders_is_not_found_in_others(tmp_path: Path, picture: Picture) -> None:
    """Not in those of another split, nor where the picture is another one's: cat/1.png is not dog/1.png."""
    names = ["train/cat/1.png", "train/dog/1.png", "train/dog/img 3.png", "val/dog/2.png"]
    for name in [*names, "val/dog/img 3.png", "val/cat/1.png"]:
        picture(tmp_path / name)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    (tmp_path / "all.json").write_text(json.dumps(sheet(images=images, annotations=[annotation(image_id=1)])))
    assert read(tmp_path)[0]["train"].ids == tuple(names)
    for name in ("train/cat/1.png", "train/dog/img 3.png"):
        (tmp_path / name).unlink()
    tables, notices = read(tmp_path)
    assert tables["train"].ids == ("train/dog/1.png", "val/dog/2.png")
    assert notices == [
        "1 images are in no annotation file and left out: val/dog/img 3.png.",
        "2 missing images, left out: train/cat/1.png, train/dog/img 3.png.",
    ]


def test_one_file_for_all_finds_the_images_of_all_splits(tmp_path: Path, picture: Picture) -> None:
    """By name alone, unless some names are there twice: then only in the folder that has most of them."""
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        picture(tmp_path / name)
    images = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate("abc")]
    (tmp_path / "all.json").write_text(json.dumps(sheet(images=images)))
    assert read(tmp_path)[0]["train"].ids == ("train/a.png", "train/b.png", "val/c.png")
    picture(tmp_path / "val" / "a.png")
    assert read(tmp_path)[0]["train"].ids == ("train/a.png", "train/b.png")


def test_an_image_of_another_size_is_left_out(write: Callable[..., Path], picture: Picture) -> None:
    root = write(annotations=[annotation(), annotation(image_id=7)])
    picture(root / "images" / "a.png", size=(16, 20))
    tables, notices = read(root)
    assert tables["train"].ids == ("images/sub/b.png",)
    assert "images/a.png (16x20, annotated as 20x16)" in notices[0]


def test_file_names_cannot_leave_the_data_folder(write: Callable[..., Path], tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path.parent / "secret.png")
    names = ["../../secret.png", "C:\\photos\\a.png", "/home/somebody/a.png", str(tmp_path.parent / "secret.png")]
    for name in names:
        image = {"id": 0, "file_name": name, "width": 20, "height": 16}
        root = write(images=[image, {"id": 1, "file_name": "sub\\b.png"}], annotations=[annotation(image_id=1)])
        assert set(read(root)[0]["train"].ids) <= {"images/a.png", "images/sub/b.png"}


def test_parent_categories_are_not_classes_and_splits_share_classes_by_name(write: Callable[..., Path]) -> None:
    heads = [
        {"id": 0, "name": "animal", "supercategory": "none"},
        {"id": 5, "name": "zebra", "supercategory": "animal"},
        {"id": 6, "name": "unused", "supercategory": "animal"},
        {"id": 90, "name": "ant", "supercategory": "animal"},
    ]
    write(name="train.json", categories=heads)
    other = [{"id": 1, "name": "ant", "supercategory": "animal"}, {"id": 0, "name": "animal"}]
    root = write(name="val.json", categories=other, annotations=[annotation(category_id=1)])
    tables, notices = read(root)
    assert tables["val"].class_names == tables["train"].class_names == ("zebra", "unused", "ant")
    assert tables["val"].load(0).target["labels"].tolist() == [2]
    assert notices[0] == "Parent categories without objects are not classes: animal."
    assert "in both train and val" in notices[1]


def test_ten_thousand_categories(write: Callable[..., Path]) -> None:
    """As iNaturalist has them, each with a parent: comparing all with all would take half a minute."""
    many = [{"id": number, "name": f"kind {number}", "supercategory": "Birds"} for number in range(10_000)]
    tables, notices = read(write(categories=[*many, {"id": 20_000, "name": "Birds", "supercategory": "Birds"}]))
    assert tables["train"].class_names == tuple(category["name"] for category in many)
    assert notices == ["Parent categories without objects are not classes: Birds."]


def test_annotations_of_unknown_images_or_categories_are_reported(write: Callable[..., Path]) -> None:
    root = write(annotations=[annotation(), annotation(id=8, image_id=99), annotation(id=9, category_id=99)])
    _, notices = read(root)
    assert len(notices) == 1
    assert "coco.json #8, coco.json #9" in notices[0]


def test_images_that_share_an_id_do_not_share_their_objects(write: Callable[..., Path], picture: Picture) -> None:
    """As where files of two tools were put together without numbering them anew."""
    names = ["a.png", "sub/b.png", "c.png", "c.png"]
    images = [{"id": id, "file_name": name} for id, name in zip((0, 0, 1, 1), names, strict=True)]
    root = write(images=images, annotations=[annotation(image_id=0), annotation(image_id=1)])
    picture(root / "images" / "c.png")
    tables, notices = read(root)
    assert tables["train"].ids == ("images/c.png",)
    assert tables["train"].object_counts() == (1, 0)
    assert notices == [
        "1 images that are listed twice with the same id, used once: c.png.",
        "2 images that share their id with others, left out: a.png (id 0), sub/b.png (id 0).",
    ]
    with pytest.raises(DataError, match=r"2 images that share their id with others: a\.png \(id 0\)"):
        read(root, strict=True)


NOWHERE = annotation(bbox=[1] * 5, segmentation=[[30, 30, 40, 30, 40, 40]])


@pytest.mark.parametrize("entries", [[], [annotation(image_id=7)], [annotation(iscrowd=1)], [NOWHERE]])
@pytest.mark.parametrize("masks", [False, True])
def test_data_without_objects_to_learn_is_refused(write: Callable[..., Path], entries: list[Any], masks: bool) -> None:
    """The loss of a model that finds nothing would fall to 0, and nothing would look wrong."""
    root = write(annotations=entries)
    (root / "images" / "sub" / "b.png").unlink()
    with pytest.raises(DataError, match="None of the 1 training images has an object to learn from"):
        read(root, masks=masks)


def test_categories_that_share_an_id_are_refused(write: Callable[..., Path]) -> None:
    ants = [{"id": 5, "name": "zebra"}, {"id": 90, "name": "ant"}, {"id": 90, "name": "ant"}]
    tables, notices = read(write(categories=ants))  # the same one again is no harm
    assert (tables["train"].class_names, notices) == (("zebra", "ant"), [])
    with pytest.raises(DataError, match="the categories zebra and bee share the id 5"):
        read(write(categories=[*ants, {"id": 5, "name": "bee"}]))


def test_ids_may_be_whole_numbers_as_floats(write: Callable[..., Path]) -> None:
    images = [{"id": 0.0, "file_name": "a.png"}, {"id": 7, "file_name": "sub/b.png"}]
    categories = [{"id": 5, "name": "zebra"}, {"id": 90.0, "name": "ant"}]
    entries = [annotation(image_id=0, category_id=90), annotation(image_id=7.0, category_id=5.0)]
    table = read(write(images=images, categories=categories, annotations=entries))[0]["train"]
    assert (table.labels(0), table.labels(1)) == (("ant",), ("zebra",))
    for broken in (0.5, float("nan"), float("inf")):
        with pytest.raises(DataError, match="entry 0 of 'annotations' has no 'image_id'"):
            read(write(annotations=[annotation(image_id=broken)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": []}, "no list 'categories'"),
        ([1], "no list 'images'"),
        ({"images": [{"id": 1}], "annotations": [], "categories": []}, "entry 0 of 'images' has no 'file_name'"),
        (sheet(categories=[{"id": [1], "name": "a"}]), "entry 0 of 'categories' has no 'id'"),
        (sheet(categories=[], annotations=[]), "There is no class"),
    ],
)
def test_files_that_are_not_coco_are_refused(write: Callable[..., Path], content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(content) / "coco.json")


def test_invalid_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": [')
    with pytest.raises(DataError, match="is not valid JSON"):
        read(tmp_path)


def test_ambiguous_files_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    write(name="one.json")
    root = write(name="two.json")
    with pytest.raises(DataError, match="several COCO files, and none is named after train, val or test"):
        read(root)
    assert len(read(root / "one.json")[0]["train"]) == 2
    write(name="train.json")
    _, notices = read(root)
    assert notices == ["COCO files that are not named after a split are not read: one.json, two.json."]
    write(name="more/train.json")
    with pytest.raises(DataError, match="two COCO files for train"):
        read(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no COCO file"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="There is no folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("changes", [{"bbox": [2, 3, 1e300, 5]}, {"area": 1e300}])
def test_numbers_beyond_32_bits_are_not_used(write: Callable[..., Path], changes: Any) -> None:
    tables, notices = read(write(annotations=[annotation(**changes), annotation(id=2)]))
    truth = tables["train"].load(0).truth
    assert torch.isfinite(truth["boxes"]).all()
    assert torch.isfinite(truth["area"]).all()
    assert len(notices) == ("bbox" in changes)


@pytest.mark.parametrize(
    ("written", "crowd"), [("0", False), ("1", True), (0.0, False), (None, False), ("false", False)]
)
def test_iscrowd_may_be_text(write: Callable[..., Path], written: Any, crowd: bool) -> None:
    tables, _ = read(write(annotations=[annotation(iscrowd=written), annotation(id=2)]))
    assert tables["train"].load(0).target["crowd"].tolist() == [crowd, False]


HOSTILE = ["../../etc/passwd", "/etc/passwd", "C:\\x.png", "a\0b.png", "x" * 300 + ".png", "", ".", "..", "\x1b[2J.png",
           "\ud800", " ", "p/" * 3000 + "x.png", "\n"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_of_images_are_missing_images(write: Callable[..., Path], name: str) -> None:
    images = sheet()["images"]
    images[1]["file_name"] = name
    tables, notices = read(write(images=images))
    assert len(tables["train"]) == 1
    (line,) = [notice for notice in notices if "are not there" in notice or "missing" in notice]
    assert not [character for character in line if ord(character) < 32]


@pytest.mark.parametrize("name", ["\x1b[2J", "=cmd()", "a\0b", "\ud800", "x" * 5000, "[red]x[/red]"])
def test_hostile_names_of_classes_are_names(write: Callable[..., Path], name: str) -> None:
    tables, _ = read(write(categories=[{"id": 5, "name": name}, {"id": 90, "name": "ant"}]))
    assert tables["train"].class_names == (name, "ant")


def test_file_names_without_an_extension(tmp_path: Path, picture: Picture) -> None:
    for name in ("train/images/1.jpg", "train/masks/1.png", "val/images/1.jpg"):
        picture(tmp_path / name)
    content = {
        "images": [{"id": 1, "file_name": "1"}, {"id": 2, "file_name": "2"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
    }
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    notices: list[str] = []
    tables = read_coco(tmp_path, notices)
    assert (tables["train"].ids, tables["val"].ids) == (("train/images/1.jpg",), ("val/images/1.jpg",))
    assert notices == ["2 missing images, left out: train/images/2, val/images/2."]
