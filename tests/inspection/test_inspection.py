"""What an inspection finds: one planted fault of each kind, and nothing in clean data."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torchvision import tv_tensors

from autotimm import inspect_data
from autotimm.cli.main import main
from autotimm.data.image import ImageDataModule
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.data.toy import toy_classes, write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import UsageError
from autotimm.inspection.class_checks import mirror_name
from autotimm.inspection.duplicates import near_pairs
from autotimm.inspection.looks import LOOK, look_at
from autotimm.types import Sample

SPLITS = {"train": 20, "val": 8}
Found = dict[str, tuple[str, list[str]]]


def found(path: Path, **options: Any) -> Found:
    """Severity and ids of each finding, by the name of its check."""
    inspection = inspect_data(path, **{"image_size": 64, "num_workers": 0, **options})
    assert all(finding.sentence.endswith(".") and finding.cure.endswith(".") for finding in inspection.findings)
    return {each.check: (each.severity, sorted(case.id for case in each.cases)) for each in inspection.findings}


def edit_coco(root: Path, split: str) -> tuple[Path, dict[str, Any]]:
    path = root / "annotations" / f"instances_{split}.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("write", "task"),
    [
        (write_toy_folder, "classification"),
        (write_toy_objects, "detection"),
        (write_toy_objects, "instance"),
        (write_toy_segmentation, "segmentation"),
    ],
)
def test_nothing_is_found_in_clean_data(write, task, tmp_path: Path) -> None:
    write(tmp_path / "toy", splits=SPLITS, image_size=64, num_classes=3, seed=2)
    assert found(tmp_path / "toy", task=task) == {}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with one fault of each kind."""
    root = tmp_path_factory.mktemp("faulty") / "signs"
    write_toy_folder(root, splits={"train": 40, "val": 8}, image_size=64, num_classes=4, seed=5)
    names = ("turn_left", "turn_right", "stop", "yield")
    for split in SPLITS:
        for old, new in zip(toy_classes(4), names, strict=True):
            (root / split / old).rename(root / split / new)
    stop, images = root / "train" / "stop", sorted((root / "train" / "stop").iterdir())
    opened = [Image.open(image) for image in images]
    ImageEnhance.Brightness(opened[0]).enhance(0.2).save(stop / "dark.png")
    Image.fromarray(255 - np.asarray(opened[1]) // 50).save(stop / "bright.png")
    Image.new("RGB", (64, 64), (90, 120, 60)).save(stop / "plain.png")
    opened[2].resize((128, 128)).filter(ImageFilter.GaussianBlur(4)).save(stop / "blurry.png")
    Image.fromarray(np.tile(np.asarray(opened[3])[:, ::-1], (1, 4, 1))).save(stop / "wide.png")
    opened[4].transpose(Image.Transpose.ROTATE_90).resize((640, 640), Image.Resampling.NEAREST).save(stop / "huge.png")
    turned = opened[5].transpose(Image.Transpose.ROTATE_180)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(stop / "turned.jpg", exif=exif, quality=95)
    (stop / "broken.png").write_bytes(b"no image")
    shutil.copy(images[6], root / "val" / "stop" / "copy.png")
    shutil.copy(images[7], root / "train" / "turn_left" / "relabelled.png")
    opened[8].resize((48, 48)).save(stop / "smaller.jpg", quality=85)
    for path in sorted((root / "train" / "yield").iterdir())[1:]:
        path.unlink()
    for path in (root / "val" / "yield").iterdir():
        path.unlink()
    return root


def test_each_fault_of_images_with_classes_is_found(faulty: Path) -> None:
    stop = sorted(path.name for path in (faulty / "train" / "stop").glob("0*.png"))
    assert found(faulty) == {
        "unreadable": ("warning", ["train/stop/broken.png (not an image)"]),
        "exact_duplicates_across_splits": ("warning", [f"train/stop/{stop[6]}", "val/stop/copy.png"]),
        "exact_duplicates_of_different_classes": (
            "warning", [f"train/stop/{stop[7]}", "train/turn_left/relabelled.png"],
        ),
        "near_duplicates": ("note", [f"train/stop/{stop[8]}", "train/stop/smaller.jpg"]),
        "low_information": ("warning", ["train/stop/plain.png"]),
        "dark": ("warning", ["train/stop/dark.png"]),
        "bright": ("warning", ["train/stop/bright.png"]),
        "blurry": ("warning", ["train/stop/blurry.png"]),
        "odd_aspect_ratio": ("warning", ["train/stop/wide.png"]),
        "odd_size": ("warning", ["train/stop/huge.png"]),
        "mirrored_classes": ("warning", ["turn_left / turn_right"]),
        "missing_in_val": ("note", ["yield"]),
        "class_imbalance": ("note", ["yield"]),
        "exif": ("note", ["train/stop/turned.jpg"]),
    }  # fmt: skip
    assert "mirrored_classes" not in found(faulty, augmentation="light")


def test_each_fault_of_boxes_is_found(tmp_path: Path) -> None:
    root = write_toy_objects(tmp_path / "toy", splits={"train": 30, "val": 4}, image_size=64, num_classes=1, seed=2)
    path, sheet = edit_coco(root, "train")
    boxes = {image: [each for each in sheet["annotations"] if each["image_id"] == image] for image in range(1, 31)}
    new = {"category_id": 1, "iscrowd": 0, "area": 4}
    sheet["annotations"] += [
        {**new, "id": 901, "image_id": 1, "bbox": boxes[1][0]["bbox"]},  # twice
        {**new, "id": 902, "image_id": 2, "bbox": [60, 20, 20, 5]},  # beyond the image
        {**new, "id": 903, "image_id": 3, "bbox": [10, 10, 0, 5]},  # without area
        {**new, "id": 904, "image_id": 4, "bbox": [10, 10, 0.5, 0.5]},  # below a pixel
    ]
    sheet["annotations"] = [each for each in sheet["annotations"] if each["image_id"] != 5]  # without objects
    path.write_text(json.dumps(sheet))
    inspection = inspect_data(root, task="detection", image_size=64)
    assert {(each.check, each.severity, each.count) for each in inspection.findings} == {
        ("annotations", "warning", 1), ("tiny_boxes", "warning", 1), ("duplicate_boxes", "warning", 1),
        ("far_sizes", "note", 1), ("no_objects", "note", 1),
    }  # fmt: skip
    said = " ".join(each.sentence for each in inspection.findings)
    assert "reach beyond their image" in said
    assert "boxes without area" in said
    case = next(each for each in inspection.findings if each.check == "duplicate_boxes").cases[0]
    assert (case.id, case.objects) == ("train/00000.png", (0, len(boxes[1])))
    page = inspection.page()
    x, y, width, height = (round(100 * side / 64, 2) for side in boxes[1][0]["bbox"])
    shown = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page)
    assert shown.count((f"{x}", f"{y}", f"{width}", f"{height}")) == 2  # both, and no other one of the image
    assert inspection._repr_html_().startswith('<iframe sandbox="allow-scripts" ')
    assert html.unescape(inspection._repr_html_().partition('srcdoc="')[2].rpartition('"')[0]) == page


def test_each_fault_of_masks_is_found(tmp_path: Path) -> None:
    root = write_toy_segmentation(tmp_path / "toy", splits=SPLITS, image_size=64, num_classes=3, seed=2)
    masks = sorted((root / "train").glob("*_mask.png"))
    for path, change in zip(
        masks, ({"at": (0, 0), "to": 77}, {"to": 255, "rows": 40}, {"to": 0, "rows": 64}), strict=False
    ):
        values = np.array(Image.open(path))
        values[: change.get("rows", 1)] = change["to"]
        Image.fromarray(values).save(path)
    inspection = inspect_data(root, image_size=64)
    assert {(each.check, each.severity, each.count) for each in inspection.findings} == {
        ("annotations", "warning", 1), ("unknown_pixels", "note", 1), ("one_class_masks", "note", 1),
    }  # fmt: skip
    assert inspection.findings[0].cases[0].id == "train/00000_mask.png (77)"


def test_a_data_module_and_images_without_files_are_inspected(tmp_path: Path) -> None:
    data = ImageDataModule(write_toy_folder(tmp_path / "toy", n=24, seed=2), image_size=32)
    assert inspect_data(data).samples == {"train": 20, "val": 4}
    with pytest.raises(UsageError, match="no effect on a data module"):
        inspect_data(data, image_size=64)
    arrays = Arrays(image_size=32, num_workers=0, val_split=0.25)
    found = {each.check: {case.id for case in each.cases} for each in inspect_data(arrays).findings}
    assert found == {"exact_duplicates": {"02", "03"}}


class Drawn(Table):
    """Images in memory, of which the third and the fourth are equal."""

    class_names = ("a", "b")

    def __init__(self) -> None:
        fields = np.random.default_rng(1).integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)
        fields[3] = fields[2]
        self.images, self.strata = torch.from_numpy(fields), [number // 8 for number in range(16)]
        self.ids = tuple(f"{number:02d}" for number in range(16))

    def load(self, index: int) -> Sample:
        return Sample(tv_tensors.Image(self.images[index]), self.strata[index], self.ids[index])


class Arrays(DataModule):
    """A data module whose samples are no files; the seed leaves both copies in one split."""

    def read(self, split: str) -> Table | None:
        return Drawn() if split == "train" else None


def test_near_duplicates_survive_compression_size_and_brightness(tmp_path: Path) -> None:
    fields = np.random.default_rng(3).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    images = [Image.fromarray(field).resize((96, 96), Image.Resampling.BICUBIC) for field in fields]
    changed = []
    for number, image in enumerate(images):
        path = tmp_path / f"{number}.jpg"
        ImageEnhance.Brightness(image.resize((64, 64))).enhance(0.85).save(path, quality=50)
        changed.append(Image.open(path))
    looks = np.array([look_at(image) for image in [*images, *changed]], LOOK)
    looks["width"] = 1
    assert {tuple(sorted(pair)) for pair in near_pairs(looks)} == {(at, at + 12) for at in range(12)}


@pytest.mark.parametrize(
    ("name", "mirrored"),
    [("turn-left", "turn-right"), ("LeftHand", "RightHand"), ("RIGHT", "LEFT"), ("leftover", "leftover"),
     ("bright", "bright"), ("b", "d"), ("B", "B"), ("mano izquierda", "mano derecha")],
)  # fmt: skip
def test_mirror_names(name: str, mirrored: str) -> None:
    assert mirror_name(name) == mirrored


def test_the_command_prints_json_writes_a_page_and_is_strict(faulty: Path, tmp_path: Path, capsys) -> None:
    page, command = tmp_path / "page.html", ["inspect", str(faulty), "--image-size", "64"]
    assert main([*command, "--json", "--strict", "--html", str(page)]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["samples"] == {"train": 40, "val": 7}
    assert {"check", "severity", "count", "sentence", "cure", "cases"} == set(printed["findings"][0])
    text = page.read_text()
    assert all(finding["sentence"].split(":")[0].replace("'", "&#39;") in text for finding in printed["findings"])
    assert len(re.findall(r"\.i\d+\{background-image:url\(data:image/webp;base64,", text)) > 10
    assert not re.search(r'(src|href)="(?!#|data:)', text)  # nothing is loaded from elsewhere
    assert main([*command, "--html", str(page)]) == 2  # nothing is written over
    assert "is not there yet" in capsys.readouterr().err
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "warning" in text
    assert "8 warnings, 4 notes" not in text


def test_names_are_escaped(tmp_path: Path) -> None:
    root = write_toy_folder(tmp_path / "toy", n=12, image_size=32, num_classes=2, seed=2)
    folder = next(root.iterdir())
    folder.rename(root / "<script>")
    shutil.copy(next((root / "<script>").iterdir()), root / "<script>" / "<b>.png")
    assert "<script>" not in re.sub(r"<script>\"use strict\".*?</script>", "", inspect_data(root).page(), flags=re.S)
