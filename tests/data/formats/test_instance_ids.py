"""Label images with ids of objects, and masks in folders: never a classifier, and told from masks of classes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from autotimm.data.annotations.object_ids import object_ids
from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import read_folder, read_instance_ids, read_instance_masks, recognize
from autotimm.data.formats.recognize import read_spatial
from autotimm.errors import DataError

Picture = Callable[..., Path]
SIZE = (40, 60)
NUMBERS = (3, 1, 5, 2)
"""The objects in each of four images."""


def label_image(ids: Sequence[int], seed: int = 0) -> NDArray[np.int64]:
    """An image of so many boxes side by side, with the ids."""
    random, mask = np.random.default_rng(seed), np.zeros(SIZE, np.int64)
    for at, id in enumerate(ids):
        top, width = random.integers(2, 20), random.integers(5, 9)
        mask[top : top + random.integers(5, 18), 10 * at + 1 : 10 * at + 1 + width] = id
    return mask


def saved(path: Path, mask: NDArray[np.int64], mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "RGB":
        colors = np.random.default_rng(int(mask.sum())).integers(1, 256, (mask.max() + 1, 3), dtype=np.uint8)
        colors[0] = 0
        Image.fromarray(colors[mask]).save(path)
        return path
    if mode == "P":
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, *np.random.default_rng(0).integers(1, 256, 255 * 3).tolist()])
        image.save(path)
        return path
    Image.fromarray(mask.astype({"L": np.uint8, "I;16": np.uint16, "I": np.int32}[mode])).save(path)
    return path


def layout(
    root: Path, picture: Picture, image: str, mask: str, masks: Sequence[NDArray[np.int64]], mode: str = "L"
) -> Path:
    for number, values in enumerate(masks):
        picture(root / image.format(number), SIZE[::-1], number)
        saved(root / mask.format(number), values, mode)
    return root


def counted(numbers: Sequence[int] = NUMBERS) -> list[NDArray[np.int64]]:
    return [label_image(range(1, number + 1), number) for number in numbers]


def read(root: Path, **options: bool) -> tuple[ObjectTable, list[str]]:
    notices: list[str] = []
    return read_instance_ids(root, notices, **options)["train"], notices  # type: ignore[return-value]


# Recognition


LAYOUTS = {
    "torchvision": ("PNGImages/Fudan{}.png", "PedMasks/Fudan{}_mask.png", "P"),
    "cellpose": ("{}_img.png", "{}_img_cp_masks.png", "I;16"),
    "cellpose's own": ("{:03}_img.png", "{:03}_masks.png", "I;16"),
    "names": ("images/img_{}.png", "masks/mask_{}.png", "L"),
    "numbers": ("frames/img{}.png", "masks/mask{}.png", "L"),
    "stardist": ("images/{}.tif", "masks/{}.tif", "I;16"),
    "suffix": ("{}.png", "{}_labels.png", "L"),
    "annotations": ("Images/{}.png", "cell_annotations/{}.tif", "I"),
    "colors": ("images/{}.png", "labels/{}.png", "RGB"),
    "instances": ("{}.png", "{}_instances.png", "L"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_label_images_of_ids_are_instances(tmp_path: Path, picture: Picture, name: str) -> None:
    image, mask, mode = LAYOUTS[name]
    masks = counted()
    root = layout(tmp_path / "cells", picture, image, mask, masks, mode)
    recognized = recognize(root)
    assert recognized[:2] == ("instance", "ids")
    assert recognized.sentence == (
        "cells has 4 label images whose values are ids of objects: instance segmentation. Also possible: "
        "--task detection. If they are classes, give --task segmentation."
    )
    table, notices = read(root, strict=True)
    assert table.class_names == ("object",)
    assert notices == ["Classes of the ids: object."]
    for row, values in enumerate(masks):
        target = table.load(row).target
        assert len(target["boxes"]) == NUMBERS[row]
        of_ids = {tuple(part.numpy().ravel()) for part in target["masks"]}
        assert of_ids == {tuple((values == id).astype(np.uint8).ravel()) for id in range(1, NUMBERS[row] + 1)}
    assert "masks" not in read(root, masks=False)[0].load(0).target


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"colors"}))
def test_ids_can_be_called_classes(tmp_path: Path, picture: Picture, name: str) -> None:
    image, mask, mode = LAYOUTS[name]
    root = layout(tmp_path, picture, image, mask, counted(), mode)
    assert recognize(root, "segmentation")[:2] == ("segmentation", "masks")
    assert recognize(root, "detection")[:2] == ("detection", "ids")
    with pytest.raises(DataError):
        recognize(root, "classification")


def test_ids_of_other_kinds(tmp_path: Path, picture: Picture) -> None:
    """Ids that go on from image to image, an image without objects, many objects in one image."""
    continued = [label_image(ids, ids[0]) for ids in ((1, 2, 3), (4, 5), (6, 7, 8, 9))]
    empty = [*counted((4, 2)), np.zeros(SIZE, np.int64)]
    many = np.kron(np.arange(150).reshape(10, 15), np.ones((4, 4), np.int64))
    large = label_image((7, 300, 40_000))
    spread = [label_image(range(first, first + 5), first) for first in range(1, 400, 7)]
    for name, masks, mode in (
        ("continued", continued, "L"),
        ("empty", empty, "L"),
        ("many", [many], "I;16"),
        ("spread", spread, "I;16"),
    ):
        root = layout(tmp_path / name, picture, "images/{}.png", "masks/{}.png", masks, mode)
        assert recognize(root)[:2] == ("instance", "ids"), name
    assert len(read(tmp_path / "empty")[0].load(2).target["boxes"]) == 0
    assert len(read(tmp_path / "many")[0].load(0).target["boxes"]) == 149
    saved(tmp_path / "large.png", large, "I;16")
    assert object_ids(tmp_path / "large.png").ids == (7, 300, 40_000)


def scattered(values: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Several boxes of each class."""
    return np.concatenate([label_image(values, seed)[:20], label_image(values[::-1], seed + 1)[:20]])


def nested(levels: int) -> NDArray[np.int64]:
    """Classes that are one in the other."""
    mask = np.zeros(SIZE, np.int64)
    for level in range(levels):
        mask[2 + 7 * level : 38 - 7 * level, 2 + 13 * level : 58 - 13 * level] = level + 1
    return mask


CLASSES = {
    "several pieces": [scattered(values, len(values)) for values in ((1, 2, 3), (1, 2), (1, 2, 3, 4))],
    "missing ones": [label_image(values) for values in ((1, 2, 3), (2,), (3, 4), (1, 4))],
    "the same in all": [label_image((1, 2, 3), seed) for seed in range(4)],
    "one object": [label_image((1,), seed) for seed in range(4)],
    "black and white": [label_image((255,), seed) for seed in range(4)],
    "two classes": [label_image(values, seed) for seed, values in enumerate(((1, 2), (1,), (1, 2)))],
    "a tumor in a liver": [label_image(values, seed) for seed, values in enumerate([(1, 2), (1,), (1, 2)] * 4)],
    "nested classes": [nested(number % 3 + 1) for number in range(12)],
    "with void": [label_image(values, seed) for seed, values in enumerate(((1, 255), (2, 255), (1, 2, 255)))],
}


@pytest.mark.parametrize("name", CLASSES)
def test_masks_of_classes_stay_classes(tmp_path: Path, picture: Picture, name: str) -> None:
    root = layout(tmp_path, picture, "images/{}.png", "masks/{}.png", CLASSES[name])
    assert recognize(root)[:2] == ("segmentation", "masks")


def test_images_of_one_object_are_read_as_ids_where_the_task_is_known(tmp_path: Path, picture: Picture) -> None:
    """As a small set to test on."""
    root = layout(tmp_path / "pets", picture, "images/{}.png", "masks/{}.png", CLASSES["one object"])
    assert recognize(root).sentence == "pets has 4 masks in folders of their own: semantic segmentation."
    assert recognize(root, "instance")[:2] == ("instance", "ids")


def test_classes_can_be_called_ids(tmp_path: Path, picture: Picture) -> None:
    """Where they could be, recognition says how; where not, the format can be named."""
    root = layout(tmp_path / "pets", picture, "images/{}.png", "masks/{}.png", CLASSES["two classes"])
    assert recognize(root).sentence == (
        "pets has 3 masks in folders of their own: semantic segmentation. If the values of the masks are ids of "
        "objects, give --task instance."
    )
    assert recognize(root, "instance")[:2] == ("instance", "ids")
    root = layout(tmp_path / "parts", picture, "images/{}.png", "masks/{}.png", CLASSES["missing ones"])
    with pytest.raises(DataError, match="no data for instance segmentation"):
        recognize(root, "instance")
    table: Any = read_spatial(root, "ids", "instances", [])["train"]
    assert len(table.load(0).target["masks"]) == 3


# Classes


def test_the_class_of_a_table(tmp_path: Path, picture: Picture) -> None:
    root = layout(tmp_path, picture, "images/{}.png", "masks/{}.png", counted())
    (root / "_classes.csv").write_text("value,name\n0,background\n1,cell\n")
    assert recognize(root)[:2] == ("instance", "ids")
    assert read(root)[0].class_names == ("cell",)
    (root / "_classes.csv").write_text("value,name\n0,background\n1,road\n2,car\n3,sky\n4,tree\n5,sea\n")
    assert recognize(root)[:2] == ("segmentation", "masks")


def test_ids_with_a_class_each(tmp_path: Path, picture: Picture) -> None:
    masks = [label_image(ids, ids[0]) for ids in ((1001, 1002, 2001), (2001,), (2001, 2002, 1001, 7001))]
    root = layout(tmp_path, picture, "images/{}.png", "masks/{}.png", masks[:2], "I;16")
    (root / "classes.json").write_text(json.dumps({"background": 0, "cat": 1, "dog": 2}))
    assert recognize(root)[:2] == ("instance", "ids")
    table, _ = read(root, strict=True)
    assert table.class_names == ("cat", "dog")
    assert table.load(0).target["labels"].tolist() == [0, 0, 1]
    layout(root, picture, "images/{}.png", "masks/{}.png", masks, "I;16")
    table, notices = read(root)
    assert table.load(2).target["labels"].tolist() == [0, 1, 1]
    assert "1 objects without a class, left out: masks/2.png (7001)." in notices


# PASCAL VOC


def voc(root: Path, picture: Picture, mode: str, classes: bool = True) -> Path:
    """Three images with objects of the classes 1 and 2 in turns; borders of 255 in the masks of classes."""
    for number, ids in enumerate(((1, 2, 3), (1, 2), (1, 2, 3, 4))):
        picture(root / "JPEGImages" / f"2007_{number}.jpg", SIZE[::-1])
        mask = label_image(ids, number)
        (root / "SegmentationObject").mkdir(exist_ok=True)
        (root / "SegmentationClass").mkdir(exist_ok=True)
        painted = np.where(mask > 0, (mask + 1) % 2 + 1, 0)
        border = painted.copy()
        border[:, :-1][mask[:, :-1] != mask[:, 1:]] = 255
        palette = np.zeros((256, 3), np.uint8)
        palette[1:5], palette[255] = [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)], (224, 224, 192)
        for folder, values in {"SegmentationObject": mask, "SegmentationClass": border}.items():
            image = Image.fromarray(values.astype(np.uint8), "P")
            image.putpalette(palette.ravel().tolist())
            (image if mode == "P" else image.convert("RGB")).save(root / folder / f"2007_{number}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_2\n")
    (lists / "val.txt").write_text("2007_1\n")
    if mode == "RGB":
        (root / "labelmap.txt").write_text("background:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n")
    return root


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_voc_objects_have_the_class_of_most_of_their_pixels(tmp_path: Path, picture: Picture, mode: str) -> None:
    root = voc(tmp_path / "voc", picture, mode)
    assert recognize(root)[:3] == (
        "segmentation", "masks",
        "voc has 3 masks in folders of their own: semantic segmentation. For the objects in SegmentationObject/ give "
        "--task instance.",
    )  # fmt: skip
    assert recognize(root, "instance")[:2] == ("instance", "ids")
    notices: list[str] = []
    tables: Any = read_instance_ids(root, notices, strict=True)
    names = ("1", "2") if mode == "P" else ("cat", "dog")
    assert {split: table.class_names for split, table in tables.items()} == {"train": names, "val": names}
    assert tables["train"].ids == ("JPEGImages/2007_0.jpg", "JPEGImages/2007_2.jpg")
    for row, (number, ids) in enumerate(((0, (1, 2, 3)), (2, (1, 2, 3, 4)))):
        values, target = label_image(ids, number), tables["train"].load(row).target
        found = zip(target["masks"].numpy(), target["labels"].tolist(), strict=True)
        expected = {((values == id).astype(np.uint8).tobytes(), (id + 1) % 2) for id in ids}
        assert {(mask.tobytes(), label) for mask, label in found} == expected


def test_voc_objects_without_masks_of_classes(tmp_path: Path, picture: Picture) -> None:
    root = voc(tmp_path, picture, "P")
    for path in (root / "SegmentationClass").iterdir():
        path.unlink()
    assert recognize(root)[:2] == ("instance", "ids")
    assert read_instance_ids(root, [])["train"].class_names == ("object",)  # type: ignore[attr-defined]


def test_a_voc_mask_of_classes_that_cannot_be_read(tmp_path: Path, picture: Picture) -> None:
    root = voc(tmp_path, picture, "P")
    (root / "SegmentationClass" / "2007_2.png").write_bytes(b"broken")
    notices: list[str] = []
    read_instance_ids(root, notices)
    assert (
        "4 objects without a class, left out: SegmentationObject/2007_2.png (1), SegmentationObject/2007_2.png (2), "
        "SegmentationObject/2007_2.png (3), SegmentationObject/2007_2.png (4)."
    ) in notices


# Reading


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "P", "RGB"])
def test_outlines_equal_those_of_pycocotools(tmp_path: Path, mode: str) -> None:
    values = np.random.default_rng(3).integers(0, 4, (11, 13)).repeat(3, 0).repeat(2, 1)
    objects = object_ids(saved(tmp_path / ("a.tif" if mode == "I" else "a.png"), values, mode))
    assert (objects.width, objects.height, len(objects.ids)) == (26, 33, 3)
    masks = {id: np.asfortranarray((values == id).astype(np.uint8)) for id in (1, 2, 3)}
    encoded = {coco_mask.encode(mask)["counts"].decode("ascii") for mask in masks.values()}
    assert set(objects.runs) == encoded
    box = objects.outline(0).box()
    assert box == (0, 0, 26, 33)


def test_what_is_no_object(tmp_path: Path) -> None:
    """VOC's border in a palette, and negative values; 255 is an object elsewhere."""
    values = label_image((1, 2, 255))
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[7] * 252 * 3, 224, 224, 192])
    image.save(tmp_path / "p.png")
    assert object_ids(tmp_path / "p.png").ids == (1, 2)
    assert object_ids(saved(tmp_path / "l.png", values)).ids == (1, 2, 255)
    assert object_ids(saved(tmp_path / "i.tif", np.where(values == 1, -1, values), "I")).ids == (2, 255)


def test_problems_are_reported_with_file_names(tmp_path: Path, picture: Picture) -> None:
    root = layout(tmp_path, picture, "images/{}.png", "masks/{}.png", counted((3, 1, 5, 2, 4)))
    (root / "masks" / "0.png").write_bytes(b"broken")
    saved(root / "masks" / "1.png", label_image((1,))[:-1])
    (root / "masks" / "2.png").unlink()
    (root / "images" / "3.png").unlink()
    table, notices = read(root)
    assert table.ids == ("images/4.png",)
    assert notices[1:] == [
        "1 images without a mask, left out: images/2.png.",
        "1 masks without an image, left out: masks/3.png.",
        "1 masks that cannot be read, left out with their images: masks/0.png (not an image).",
        "1 masks of another size than their image, left out with it: masks/1.png (60x39, the image 60x40).",
    ]
    with pytest.raises(DataError, match=r"1 images without a mask: images/2\.png"):
        read(root, strict=True)


def test_splits(tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "val"):
        layout(tmp_path, picture, f"{split}/images/{{}}.png", f"{split}/masks/{{}}.png", counted())
    tables = read_instance_ids(tmp_path, [])
    assert {split: len(table) for split, table in tables.items()} == {"train": 4, "val": 4}


# Folders of masks


FOLDERS = {
    "masks": ("images/{}.png", "masks/{}/{}.png"),
    "labels": ("images/{}.png", "labels/{}/{}.png"),
    "annotations": ("{}.png", "annotations/{}/{}.png"),
    "words": ("PNGImages/{}.png", "PedMasks/{}/{}.png"),
    "suffix": ("images/{}.png", "masks/{}_mask/{}.png"),
    "beside": ("{}.png", "{}_masks/{}.png"),
    "sample": ("{}/image.png", "{}/masks/{}.png"),
    "bowl": ("{}/images/x.png", "{}/masks/{}.png"),
}


@pytest.mark.parametrize("numbers", [(2, 3, 1), (1, 1, 1)], ids=["several", "single"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_masks_for_each_image(
    tmp_path: Path, picture: Picture, name: str, numbers: tuple[int, ...]
) -> None:
    image, mask = FOLDERS[name]
    for at, number in enumerate(numbers):
        picture(tmp_path / image.format(f"im{at}"), SIZE[::-1])
        for id in range(number):
            saved(tmp_path / mask.format(f"im{at}", id), label_image((255,), id))
    assert recognize(tmp_path)[:2] == ("instance", "masks")
    table: Any = read_instance_masks(tmp_path, [], strict=True)["train"]
    assert [len(table.load(row).target["boxes"]) for row in range(3)] == list(numbers)


@pytest.mark.parametrize("name", ["masks", "labels", "annotations", "PedMasks", "Annotations"])
def test_folders_of_masks_are_no_classes(tmp_path: Path, picture: Picture, name: str) -> None:
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.png")
        picture(tmp_path / name / f"of{number + 7}.png")
    with pytest.raises(DataError, match=rf"masks in {name}/, but no mask has the name of an image"):
        recognize(tmp_path)
    with pytest.raises(
        DataError, match=rf"holds images/, {name}/: images and masks|holds images/.*{name}/.* no classes"
    ):
        read_folder(tmp_path, [])


def test_folders_of_masks_beside_classes_are_left_out(tmp_path: Path, picture: Picture) -> None:
    for name in ("cat", "dog", "masks"):
        for number in range(2):
            picture(tmp_path / name / f"{number}{name}.png")
    notices: list[str] = []
    assert read_folder(tmp_path, notices)["train"].class_names == ("cat", "dog")
    assert any("left out masks/, since folders of masks or annotations are no classes" in notice for notice in notices)


@pytest.mark.parametrize("names", [("with_mask", "without_mask"), ("mask", "no mask"), ("WithMask", "WithoutMask")])
def test_people_with_masks_are_classes(tmp_path: Path, picture: Picture, names: tuple[str, str]) -> None:
    for at, name in enumerate(names):
        for number in range(3):
            picture(tmp_path / name / f"{at}{number}.png")
    assert recognize(tmp_path)[:2] == ("classification", "folder")
    assert set(read_folder(tmp_path, [])["train"].class_names) == set(names)
