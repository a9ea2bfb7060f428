"""Detecting task and format of a folder, and the sentence or error about it."""

import json
import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotimm import DetectionDataModule, SegmentationDataModule, fit
from autotimm.config import options
from autotimm.data.annotations.objects import Annotation, ObjectTable
from autotimm.data.formats import FORMATS, Format, Listing, ReadOptions, Sighting, read_yolo, recognize
from autotimm.data.formats.recognize import format_names
from autotimm.data.toy import write_toy_objects, write_toy_segmentation
from autotimm.errors import DataError, UsageError

Picture = Callable[..., Path]
MODULE = import_module("autotimm.data.formats.recognize")  # the package has a function of that name
FEW = {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("name", "task", "format"),
    [
        ("cls_clothing", "classification", "folder"),
        ("cls_sign_digits", "classification", "folder"),
        ("det_bccd_voc", "detection", "voc"),
        ("det_inst_tinycoco", "instance", "coco"),
        ("inst_cardamage_coco", "instance", "coco"),
        ("inst_nuts_coco", "instance", "coco"),
        ("inst_nuts_coco/data/trainval.json", "instance", "coco"),
        ("multilabel_cards", "detection", "voc"),
        ("multilabel_cards/train_labels.csv", "detection", "csv"),
        ("multilabel_cards/train_labels_multihot.csv", "classification", "csv"),
        ("seg_dhcn", "segmentation", "masks"),
    ],
)
def test_real_data(real: Callable[[str], Path], name: str, task: str, format: str) -> None:
    root, *rest = name.split("/", 1)
    assert recognize(real(root).joinpath(*rest))[:2] == (task, format)


def test_a_table_of_labels_is_hinted_at(real: Callable[[str], Path]) -> None:
    root = real("multilabel_cards")
    sentence = recognize(root).sentence
    assert sentence == (
        "multilabel_cards has 100 VOC files with boxes: object detection. For classification give a table of labels, "
        "such as train_labels_multihot.csv."
    )
    with pytest.raises(DataError, match=r"give a table of labels, such as train_labels_multihot.csv"):
        recognize(root, "classification")
    with pytest.raises(DataError, match="no data for instance segmentation; it has 100 VOC files with boxes"):
        recognize(root, "instance")


def test_toy_data_and_another_task(tmp_path: Path) -> None:
    objects = write_toy_objects(tmp_path / "objects", splits=FEW, image_size=32)
    assert recognize(objects)[:3] == (
        "instance", "coco",
        "objects has 2 COCO files with outlines: instance segmentation. Also possible: --task detection.",
    )  # fmt: skip
    assert recognize(objects, "detection")[:2] == ("detection", "coco")
    pixels = write_toy_segmentation(tmp_path / "pixels", splits=FEW, image_size=32)
    assert recognize(pixels)[:2] == ("segmentation", "masks")
    with pytest.raises(UsageError, match="Did you mean 'segmentation'"):
        recognize(pixels, "segmentaton")


def test_coco_with_boxes_alone(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "segmentation": []}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": [box]}))
    assert recognize(tmp_path)[:2] == recognize(tmp_path / "a.json")[:2] == ("detection", "coco")
    box["segmentation"] = [[1, 1, 2, 2, 3, 3]]
    (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": [box]}, indent=2))
    assert recognize(tmp_path).task == "instance"
    box["segmentation"] = {"counts": [1, 2], "size": [1, 3]}  # type: ignore[assignment]
    (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": [box]}))
    assert recognize(tmp_path).task == "instance"


def test_yolo(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "train" / "images" / "a.png")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: train/images\n")
    label = tmp_path / "train" / "labels" / "a.txt"
    label.write_text("0 0.5 0.5 0.1 0.1\n")
    assert recognize(tmp_path)[:2] == recognize(tmp_path / "data.yaml")[:2] == ("detection", "yolo")
    label.write_text("0 0.5 0.5 0.1 0.1 0.2 0.2\n")
    assert recognize(tmp_path)[:2] == ("instance", "yolo")


@pytest.mark.parametrize(
    ("image", "label", "classes", "train"),
    [
        ("images/a.png", "labels/a.txt", "classes.txt", "images"),  # Label Studio
        ("obj_train_data/a.png", "obj_train_data/a.txt", "obj.names", "train.txt"),  # CVAT
    ],
)
def test_yolo_labels_without_a_yaml_file(
    tmp_path: Path, picture: Picture, image: str, label: str, classes: str, train: str
) -> None:
    picture(tmp_path / image)
    (tmp_path / label).parent.mkdir(exist_ok=True)
    (tmp_path / label).write_text("1 0.5 0.5 0.1 0.1\n")
    (tmp_path / classes).write_text("car\nbus\n")
    if train.endswith(".txt"):
        (tmp_path / train).write_text(f"data/{image}\n")
    lines = f"names: [car, bus]` and `train: {train}"
    for read in (recognize, partial(recognize, task="detection"), partial(read_yolo, notices=[])):
        with pytest.raises(DataError, match=rf"no YAML file names the classes .* `{re.escape(lines)}`"):
            read(tmp_path)
    (tmp_path / "data.yaml").write_text(lines.replace("` and `", "\n"))
    assert recognize(tmp_path)[:2] == ("detection", "yolo")
    assert read_yolo(tmp_path, [])["train"].labels(0) == ("bus",)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / label).write_text("a photo of a bus\n")
    with pytest.raises(DataError, match="has no data for object detection"):
        recognize(tmp_path, "detection")


def test_cityscapes(tmp_path: Path, picture: Picture) -> None:
    for name in ("leftImg8bit/train/x/a_leftImg8bit", "gtFine/train/x/a_gtFine_labelIds"):
        picture(tmp_path / f"{name}.png")
    assert recognize(tmp_path)[:2] == ("segmentation", "cityscapes")


def test_class_folders(toy: Path) -> None:
    assert recognize(toy)[:3] == (
        "classification", "folder", "toy has images in 3 folders and no annotations: classification."
    )  # fmt: skip


def test_several_formats_are_refused(tmp_path: Path) -> None:
    root = write_toy_objects(tmp_path, splits=FEW, image_size=32)
    (root / "data.yaml").write_text("names: [a]\ntrain: train\n")
    (root / "train" / "00000.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="Choose one with task='instance' or 'detection'"):
        recognize(root)
    assert recognize(root, "instance").format == "coco"
    (root / "train" / "00000.txt").write_text("0 0.5 0.5 0.1 0.1 0.2 0.2\n")
    with pytest.raises(DataError, match="Choose one with format='coco' or 'yolo'"):
        recognize(root)


def test_boxes_and_masks_are_refused(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "JPEGImages" / "a.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation></annotation>")
    (tmp_path / "SegmentationClass").mkdir()
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(DataError, match="Choose one with task='detection' or 'segmentation'"):
        recognize(tmp_path)
    assert recognize(tmp_path, "segmentation").format == "masks"


def test_unknown_data_are_refused(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(DataError, match=r"not recognized. There are no images. Make a folder per class"):
        recognize(tmp_path)
    picture(tmp_path / "images" / "train" / "a.png")
    with pytest.raises(DataError, match="There are images, but no class folders or annotations"):
        recognize(tmp_path)
    (tmp_path / "note.md").write_text("")
    with pytest.raises(DataError, match=r"note\.md is not data of a known format"):
        recognize(tmp_path / "note.md")
    with pytest.raises(DataError, match="There is no folder"):
        recognize(tmp_path / "nowhere")


class Points(Format):
    """A new format: `points.txt` with file, class and center of each object, which is 16 pixels wide."""

    name = "points"
    tasks = ("detection",)

    def see(self, listing: Listing) -> Sighting | None:
        files = [path for path in listing.files_below((".txt",)) if path.name == "points.txt"]
        return Sighting(f"{len(files)} files of points", self.tasks) if files else None

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, ObjectTable]:
        objects: dict[str, list[Annotation]] = {}
        for line in (listing.root / "points.txt").read_text().splitlines():
            name, label, x, y = line.split()
            box = (float(x) - 8, float(y) - 8, float(x) + 8, float(y) + 8)
            objects.setdefault(name, []).append(Annotation(label, box))
        paths = [listing.root / name for name in objects]
        return {"train": ObjectTable(paths, list(objects), ["cat", "dog"], list(objects.values()))}


@pytest.fixture
def points(tmp_path: Path, picture: Picture) -> Path:
    for number in range(8):
        picture(tmp_path / "points" / "shots" / f"{number}.png", (48, 40), number)
    lines = [f"shots/{number}.png {'cat' if number % 2 else 'dog'} 20 20" for number in range(8)]
    (tmp_path / "points" / "points.txt").write_text("\n".join(lines))
    return tmp_path / "points"


def test_a_new_format_needs_a_class_and_an_entry_in_the_tuple(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recognize(points).task == "classification"  # a guess by the folders of the images
    monkeypatch.setattr(MODULE, "FORMATS", (*FORMATS, Points()))
    assert recognize(points)[:3] == ("detection", "points", "points has 1 files of points: object detection.")
    with pytest.raises(DataError, match="no data for instance segmentation; it has 1 files of points"):
        recognize(points, "instance")
    for name in ("auto", "points"):
        data = DetectionDataModule(points, format=name, image_size=32, val_split=0)
        assert (data.class_names, len(data.tables["train"])) == (("cat", "dog"), 8)
    run = fit(points, backbone="test_resnet", pretrained=False, image_size=32, width=64, batch_size=4, epochs=1,
              num_workers=0, threads=1, accelerator="cpu", progress=False, out=str(points.parent))  # fmt: skip
    assert run.config["task"] == "detection"


def test_a_covered_format_is_not_seen(points: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(points / "shots" / "0_mask.png")

    class Covering(Points):
        covers = (type(next(known for known in FORMATS if known.name == "masks" and "segmentation" in known.tasks)),)

    monkeypatch.setattr(MODULE, "FORMATS", (*FORMATS, Points()))
    with pytest.raises(DataError, match="task='segmentation' or 'detection'"):
        recognize(points)
    monkeypatch.setattr(MODULE, "FORMATS", (*FORMATS, Covering()))
    assert recognize(points).format == "points"


def test_help_and_error_name_all_formats(points: Path) -> None:
    names = dict.fromkeys(name for task in ("detection", "instance", "segmentation") for name in format_names(task))
    assert options()["format"].help.endswith(f": {', '.join(names)}")
    with pytest.raises(UsageError, match=rf"must be one of {', '.join(format_names('detection'))}\. Got 'cocoa'"):
        DetectionDataModule(points, format="cocoa").setup()


def test_cityscapes_refuses_colors(tmp_path: Path, picture: Picture) -> None:
    for name in ("leftImg8bit/train/x/a_leftImg8bit", "gtFine/train/x/a_gtFine_labelIds"):
        picture(tmp_path / f"{name}.png")
    with pytest.raises(UsageError, match="`colors` have no effect on Cityscapes"):
        SegmentationDataModule(tmp_path, colors={"road": 7}).setup()
