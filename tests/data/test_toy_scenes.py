"""Scenes with several objects: repeatable, and true to what is written about them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from autotimm.data.annotations.objects import ObjectTable
from autotimm.data.formats import read_coco, read_label_images
from autotimm.data.toy import COLORS, draw_objects, write_toy_objects, write_toy_segmentation
from autotimm.errors import UsageError
from autotimm.repro import files_digest, state_digest

FEW = {"train": 6, "val": 3, "test": 2}


def test_golden() -> None:
    """The scenes of the first release with them: recorded runs in the documentation were trained on them."""
    scenes = [draw_objects(f"train/{number:05d}", 64, seed=1) for number in range(8)]
    state = {
        str(n): {"image": scene.image, "masks": scene.masks, "labels": list(scene.labels)}
        for n, scene in enumerate(scenes)
    }
    assert state_digest(state)[:16] == GOLDEN


GOLDEN = "c6e9686ffa6065d2"


def test_boxes_bound_masks_that_do_not_overlap() -> None:
    for number in range(60):
        scene = draw_objects(str(number), (64, 96), num_classes=5)
        assert 1 <= len(scene.labels) <= 4
        assert scene.masks.int().sum(0).max() == 1
        for mask, (x1, y1, x2, y2) in zip(scene.masks, scene.boxes, strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 40
            assert 0 <= x1 < x2 <= 96
            assert 0 <= y1 < y2 <= 64


def test_objects_are_visible() -> None:
    for number in range(30):
        scene = draw_objects(str(number), 96, num_classes=4)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            color = torch.tensor(COLORS[label.split("_")[0]])
            assert (scene.image[:, mask].float().mean(1) - color).abs().max() < 8
            rest = scene.image[:, ~scene.masks.any(0)].float().mean(1)
            assert (rest - color).abs().max() > 40


def test_every_scene_is_different() -> None:
    digests = {state_digest({"image": draw_objects(f"{split}/{n}").image}) for split in FEW for n in range(8)}
    assert len(digests) == 24
    assert torch.equal(draw_objects("a", seed=3).image, draw_objects("a", seed=3).image)
    with pytest.raises(UsageError, match="16 pixels or more"):
        draw_objects("a", size=8)


@pytest.mark.parametrize("write", [write_toy_objects, write_toy_segmentation])
def test_equal_seeds_write_equal_files(tmp_path: Path, write: object) -> None:
    roots = [
        write(tmp_path / name, splits=FEW, image_size=32, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]  # type: ignore[operator]
    first, second, third = (files_digest((path for path in root.rglob("*") if path.is_file()), root) for root in roots)
    assert first == second != third
    more = write(tmp_path / "d", splits={"train": 9}, image_size=32, seed=1)  # type: ignore[operator]
    for path in sorted((roots[0] / "train").glob("*.png")):
        assert path.read_bytes() == (more / "train" / path.name).read_bytes()


def test_objects_are_read_back(tmp_path: Path) -> None:
    root, notices = write_toy_objects(tmp_path, splits=FEW, image_size=(48, 64)), []
    tables = read_coco(root, notices, masks=True, strict=True)
    assert {split: len(table) for split, table in tables.items()} == FEW
    assert notices == []
    for split, table in tables.items():
        assert isinstance(table, ObjectTable)
        coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
        for row in range(len(table)):
            scene, sample = draw_objects(f"{split}/{row:05d}", (48, 64)), table.load(row)
            assert torch.equal(sample.image, scene.image)
            assert torch.equal(sample.target["masks"].bool(), scene.masks)
            assert sample.target["boxes"].tolist() == [list(map(float, box)) for box in scene.boxes]
            assert tuple(table.class_names[label] for label in sample.target["labels"]) == scene.labels
            assert [entry["area"] for entry in coco.imgToAnns[row + 1]] == scene.masks.sum((1, 2)).tolist()


def test_pixels_are_read_back(tmp_path: Path) -> None:
    root, notices = write_toy_segmentation(tmp_path, splits=FEW, image_size=48), []
    tables = read_label_images(root, notices, strict=True)
    assert notices == []
    names = tables["train"].class_names
    assert names == ("background", "blue_circle", "green_cross", "orange_square")
    for row in range(FEW["val"]):
        scene, sample = draw_objects(f"val/{row:05d}", 48), tables["val"].load(row)
        expected = np.zeros((48, 48), np.uint8)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            expected[mask.numpy()] = names.index(label)
        assert np.array_equal(sample.target.numpy(), expected)
        with Image.open(root / "val" / f"{row:05d}_mask.png") as image:
            assert image.mode == "L"
