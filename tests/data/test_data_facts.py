"""The digest of a data set: what is in other files than the image counts too."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from autotimm.data import ImageDataModule, file_facts
from autotimm.data.data_facts import Snapshot, content
from autotimm.data.dense import DetectionDataModule, InstanceSegmentationDataModule, SegmentationDataModule
from autotimm.data.relabelled import Relabelled
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation

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


def paint(path, value=1):
    """Other pixels under the same path, size and mtime, as `cp -p` and `rsync -t` leave them."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= value
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def names(changed, root):
    return [path.relative_to(root).as_posix() for path in changed.files], list(changed.ids)


class TestSnapshot:
    @pytest.fixture
    def photos(self, tmp_path):
        return write_toy_folder(tmp_path / "photos", splits={"train": 4, "val": 2, "test": 2}, num_classes=2)

    @pytest.fixture
    def snapshot(self, photos):
        return Snapshot(ImageDataModule(photos, image_size=32).tables.values())

    def test_files_that_changed_under_the_same_size_and_mtime(self, photos, snapshot):
        files = sorted(photos.rglob("*.png"))
        for number in (5, 1):
            paint(files[number])
        expected = [files[number].relative_to(photos).as_posix() for number in (1, 5)]
        assert names(snapshot.changed(), photos) == (expected, expected)

    def test_a_removed_and_a_replaced_file(self, photos, snapshot):
        files = sorted(photos.rglob("*.png"))
        files[0].unlink()
        os.replace(shutil.copy2(files[2], photos / "copy"), files[3])
        assert [*snapshot.changed().files] == [files[0], files[3]]

    def test_touched_copied_and_linked_files_are_no_finding(self, photos, snapshot):
        files = sorted(photos.rglob("*.png"))
        files[0].touch()
        os.link(files[1], photos / "link")
        os.replace(shutil.copy(files[2], photos / "copy"), files[2])
        assert snapshot.changed() == ((), ())

    def test_a_file_that_has_its_bytes_again_is_no_finding(self, photos, snapshot):
        path = sorted(photos.rglob("*.png"))[0]
        paint(path)
        assert snapshot.changed().files == (path,)
        paint(path)
        assert snapshot.changed() == ((), ())

    def test_the_digests_of_the_cache_decide_nothing(self, photos, monkeypatch):
        monkeypatch.setattr(file_facts, "_SETTLED", 0)
        tables = ImageDataModule(photos, image_size=32).tables
        true = content(tables.values())
        file_facts._DIGESTS.look_up, look_up = lambda path: "0" * 64, file_facts._DIGESTS.look_up
        try:
            wrong = content(tables.values(), cached=False)  # the cache holds these now, under the stamps of the files
        finally:
            file_facts._DIGESTS.look_up = look_up
        assert content(tables.values()) == wrong != true
        assert content(tables.values(), cached=False) == true
        assert content(tables.values()) == true

    def test_a_mask(self, tmp_path):
        write_toy_segmentation(tmp_path, splits=SPLITS, image_size=64)
        snapshot = Snapshot(SegmentationDataModule(tmp_path).tables.values())
        paint(tmp_path / "val" / "00000_mask.png")
        assert names(snapshot.changed(), tmp_path) == (["val/00000_mask.png"], ["val/00000.png"])
        (tmp_path / "val" / "00000_mask.png").unlink()
        assert names(snapshot.changed(), tmp_path) == (["val/00000_mask.png"], ["val/00000.png"])

    def test_a_mask_of_an_object_if_masks_are_read(self, tmp_path):
        for image in ("a", "b"):
            for path in (f"images/{image}.png", f"masks/{image}/0.png", f"masks/{image}/1.png"):
                file = tmp_path / "train" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((16, 20), 255, np.uint8)).save(file)
        with_masks, boxes = (
            Snapshot(data(tmp_path, val_split=0).tables.values())
            for data in (InstanceSegmentationDataModule, DetectionDataModule)
        )
        paint(tmp_path / "train" / "masks" / "b" / "1.png")
        assert names(with_masks.changed(), tmp_path) == (["train/masks/b/1.png"], ["train/images/b.png"])
        assert boxes.changed() == ((), ())  # they were read from the masks once

    def test_annotations_that_were_read_once_are_not_followed(self, tmp_path):
        write_toy_objects(tmp_path, splits=SPLITS, image_size=64)
        snapshot = Snapshot(InstanceSegmentationDataModule(tmp_path).tables.values())
        (tmp_path / "annotations" / "instances_train.json").unlink()
        assert snapshot.changed() == ((), ())
