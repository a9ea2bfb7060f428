"""Drawn stand-ins for the real data sets, in the same layouts, so that ``--quick`` needs none of them.

The layouts are those of the folders that `RESULTS.md` names; the images are colored shapes from
``autotimm.data.toy``. They are small and few: a quick run shows that a benchmark runs, not what it measures.
"""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image
from torch import Tensor

from autotimm.data.toy import (
    draw_objects,
    toy_classes,
    toy_scene,
    write_toy_folder,
    write_toy_objects,
    write_toy_segmentation,
)

__all__ = ["draw_classes", "draw_coco", "draw_dense", "draw_photos"]

SIZE = (96, 128)  # height and width in the proportions of the real photographs


def draw_classes(root: Path) -> None:
    """A folder of class folders."""
    write_toy_folder(root, n=64, image_size=64)


def draw_photos(root: Path) -> None:
    """``cls_clothing`` and ``cls_sign_digits``, as ``from_scratch.py`` reads them."""
    for folder, count in {"train": 32, "validation": 16, "test": 16}.items():
        for number in range(count):
            name = toy_classes(4)[number % 4]
            _save(toy_scene((name,), 64, 0, number).image, root / "cls_clothing" / folder / name / f"{number}.jpg")
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(64):
        label = number % 2
        path = f"Dataset/{label}/{number}.jpg"
        _save(toy_scene((toy_classes(2)[label],), 64, 1, number).image, root / "cls_sign_digits" / path)
        lines["val" if number >= 48 else "train"].append(f"{path} {label}")
    for split, listed in lines.items():
        (root / "cls_sign_digits" / f"{split}.txt").write_text("\n".join(listed) + "\n")


def draw_dense(root: Path) -> None:
    """The four sets that ``dense.py`` reads."""
    for draw in (_boxes, _pixels, _masks, _labels):
        draw(root)


def _boxes(root: Path) -> None:
    """``det_bccd_voc``: PASCAL VOC with the classes of the blood cells."""
    folder, names = root / "det_bccd_voc" / "BCCD", dict(zip(toy_classes(3), ("Platelets", "RBC", "WBC"), strict=True))
    for sub in ("Annotations", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True)
    for split, count in {"train": 16, "val": 8, "test": 8}.items():
        listed = [f"{split}_{number:02d}" for number in range(count)]
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(listed) + "\n")
        for name in listed:
            scene = draw_objects(name, SIZE, num_classes=3)
            _save(scene.image, folder / "JPEGImages" / f"{name}.jpg")
            sheet = ElementTree.Element("annotation")
            ElementTree.SubElement(sheet, "filename").text = f"{name}.jpg"
            _numbers(ElementTree.SubElement(sheet, "size"), height=SIZE[0], width=SIZE[1], depth=3)
            for label, (x1, y1, x2, y2) in zip(scene.labels, scene.boxes, strict=True):
                annotated = ElementTree.SubElement(sheet, "object")
                ElementTree.SubElement(annotated, "name").text = names[label]
                # VOC counts pixels from 1, and the last one belongs to the box.
                _numbers(ElementTree.SubElement(annotated, "bndbox"), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
            ElementTree.ElementTree(sheet).write(folder / "Annotations" / f"{name}.xml")


def _numbers(parent: ElementTree.Element, **values: int) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _pixels(root: Path) -> None:
    """``seg_dhcn``: label images of 11 classes; the images are JPEG there."""
    folder = write_toy_segmentation(
        root / "seg_dhcn", splits={"train": 16, "valid": 8, "test": 8}, image_size=128, num_classes=10
    )
    for path in folder.glob("*/*[0-9].png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()


def _masks(root: Path) -> None:
    """``inst_nuts_coco``: one COCO file and two lists of file names."""
    folder = root / "inst_nuts_coco"
    written = write_toy_objects(root / "scratch", splits={"trainval": 12}, image_size=SIZE, num_classes=2)
    (folder / "data").mkdir(parents=True)
    (written / "trainval").rename(folder / "data" / "images")
    sheet = json.loads((written / "annotations" / "instances_trainval.json").read_text())
    (folder / "data" / "trainval.json").write_text(json.dumps(sheet))
    names = [image["file_name"] for image in sheet["images"]]
    for split, listed in {"train": names[:8], "val": names[8:]}.items():
        (folder / f"{split}.txt").write_text("\n".join(listed) + "\n")


def _labels(root: Path) -> None:
    """``multilabel_cards``: a table with a column for each label."""
    folder, names = root / "multilabel_cards", toy_classes(3)
    for split, count in {"train": 20, "test": 8}.items():
        rows: list[list[str | int]] = []
        for number in range(count):
            scene, file = draw_objects(f"{split}/{number}", 128, num_classes=3), f"{number}.jpg"
            _save(scene.image, folder / "images" / split / file)
            rows.append([file, *(int(name in scene.labels) for name in names)])
        with (folder / f"{split}_labels_multihot.csv").open("w", newline="") as table:
            csv.writer(table).writerows([["filename", *names], *rows])


def _save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def draw_coco(root: Path) -> None:
    """``inst_cardamage_coco`` and ``inst_nuts_coco``, as ``coco_figures.py`` reads them."""
    cars = root / "inst_cardamage_coco"
    write_toy_objects(cars, splits={"train": 8, "valid": 4}, image_size=SIZE)
    for split in ("train", "valid"):
        (cars / "annotations" / f"instances_{split}.json").rename(cars / split / "_annotations.coco.json")
    (cars / "annotations").rmdir()
    _masks(root)
