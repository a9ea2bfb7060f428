"""Rectangular input: every task is trained, recorded, replayed, measured and used at a height and width of its own."""

import pytest
import yaml

from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.runs.run import Run
from training import small_fit

SPLITS = {"train": 4, "val": 2, "test": 2}
DENSE = {"width": 64, "batch_size": 4, "eval_batch_size": 2, "val_split": None}
KINDS = {
    "classification": {"augmentation": "light", "test_split": 0.2},
    "fcos": {**DENSE, "task": "detection"},
    "faster_rcnn": {**DENSE, "task": "detection", "arch": "faster_rcnn"},
    "instance": {**DENSE, "task": "instance"},
    "segmentation": {**DENSE, "task": "segmentation"},
}

SLOW = ("faster_rcnn", "instance")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Drawn images of 60 x 90 pixels; those of classes are squares."""
    root = tmp_path_factory.mktemp("rectangles")
    objects = write_toy_objects(root / "objects", splits=SPLITS, image_size=(60, 90), seed=7)
    return {
        **dict.fromkeys(KINDS, objects),
        "classification": write_toy_folder(root / "classes", n=24, num_classes=3, image_size=40, seed=7),
        "segmentation": write_toy_segmentation(root / "pixels", splits=SPLITS, image_size=(60, 90), seed=7),
    }


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS])
def test_a_run_is_recorded_replayed_and_used_at_its_size(kind, folders, tmp_path):
    run = small_fit(folders[kind], tmp_path, **{**KINDS[kind], "image_size": (64, 96)})
    record = yaml.safe_load((run.path / "config.yaml").read_text())
    assert record["image_size"] == "64x96"
    assert run.verify().identical
    opened = Run(run.path)
    assert opened.test() == run.test()
    image = next(folders[kind].rglob("*.png"))
    assert opened.predict([image]) == run.predict([image])
