"""The digest of a data set: what is in other files than the image counts too."""

import json

import torch
from PIL import Image

from autotimm.data.data_facts import content
from autotimm.data.dense import DetectionDataModule, InstanceSegmentationDataModule, SegmentationDataModule
from autotimm.data.inference_loaders import Relabelled
from autotimm.data.toy import write_toy_objects, write_toy_segmentation

SPLITS = {"train": 3, "val": 1}


def changed(data, root, change):
    before = content([*data(root).tables.values()])
    change()
    return before.changed(content([*data(root).tables.values()]))


def test_a_changed_box_changes_the_digest(tmp_path):
    write_toy_objects(tmp_path, splits=SPLITS, image_size=64)
    file = tmp_path / "annotations" / "instances_train.json"

    def move():
        read = json.loads(file.read_text())
        annotation = next(entry for entry in read["annotations"] if entry["image_id"] == read["images"][1]["id"])
        annotation["bbox"][0] += 1
        file.write_text(json.dumps(read))

    (line,) = changed(DetectionDataModule, tmp_path, move)
    assert line.startswith("changed: ")
    assert "00001" in line


def test_a_changed_outline_changes_the_digest_if_masks_are_read(tmp_path):
    write_toy_objects(tmp_path, splits=SPLITS, image_size=64)
    file = tmp_path / "annotations" / "instances_train.json"
    before = content([*DetectionDataModule(tmp_path).tables.values()])

    def grow():
        read = json.loads(file.read_text())
        annotation = next(entry for entry in read["annotations"] if entry["image_id"] == read["images"][2]["id"])
        box = annotation["bbox"]
        annotation["segmentation"] = [[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]]
        file.write_text(json.dumps(read))

    (line,) = changed(InstanceSegmentationDataModule, tmp_path, grow)
    assert "00002" in line
    assert not before.changed(content([*DetectionDataModule(tmp_path).tables.values()]))


def test_a_changed_pixel_of_a_mask_changes_the_digest(tmp_path):
    write_toy_segmentation(tmp_path, splits=SPLITS, image_size=64)
    file = tmp_path / "val" / "00000_mask.png"

    def paint():
        with Image.open(file) as image:
            mask = image.copy()
        mask.putpixel((0, 0), 1 - min(mask.getpixel((0, 0)), 1))
        mask.save(file)

    (line,) = changed(SegmentationDataModule, tmp_path, paint)
    assert "val/00000" in line


def test_subsets_and_renumbered_classes_keep_the_digest(tmp_path):
    write_toy_objects(tmp_path, splits={"train": 4}, image_size=64)
    whole = DetectionDataModule(tmp_path, val_split=0).tables["train"]
    parts = DetectionDataModule(tmp_path, val_split=0.5).tables
    assert content([whole]) == content([*parts.values()])
    other = Relabelled(whole, tuple(reversed(whole.class_names)))
    assert content([whole]) == content([other])
    last = len(whole.class_names) - 1
    assert torch.equal(other.load(0).target["labels"], last - whole.load(0).target["labels"])
