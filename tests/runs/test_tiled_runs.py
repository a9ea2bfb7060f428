"""Runs on tiles: recorded, replayed, resumed and used, with the same bits whatever loads them."""

import pytest
import torch
import yaml

from autotimm import AutoTrainer, DetectionDataModule, ImageClassifier, ObjectDetector, Task
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.errors import ModelError, UsageError
from autotimm.runs.run import Run
from training import StopAfter, digest, small_fit

SPLITS = {"train": 4, "val": 2, "test": 2}
OPTIONS = {
    "width": 64, "batch_size": 4, "eval_batch_size": 2, "val_split": None, "image_size": None, "tile": 64,
    "overlap": 0.25,
}  # fmt: skip
KINDS = {
    "fcos": {"task": "detection"},
    "faster_rcnn": {"task": "detection", "arch": "faster_rcnn"},
    "segmentation": {"task": "segmentation"},
    "instance": {"task": "instance"},
}
SLOW = ("faster_rcnn", "instance")
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS]
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Drawn images of 90 x 120 pixels, six tiles each."""
    root = tmp_path_factory.mktemp("tiles")
    objects = write_toy_objects(root / "objects", splits=SPLITS, image_size=(90, 120), seed=7)
    pixels = write_toy_segmentation(root / "pixels", splits=SPLITS, image_size=(90, 120), seed=7)
    return {**dict.fromkeys(KINDS, objects), "segmentation": pixels}


@each_kind
def test_a_run_is_recorded_replayed_and_used_in_tiles(kind, folders, tmp_path):
    run = small_fit(folders[kind], tmp_path, **OPTIONS, **KINDS[kind])
    record = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (record["tile"], record["overlap"], record["image_size"]) == (64, 0.25, 64)
    assert run.verify(workers=2).identical
    measured = run.test()
    assert measured == Run(run.path).test(folders[kind])  # by the checkpoint's own record of its data
    images = [image for image in sorted((folders[kind] / "test").glob("*")) if not image.stem.endswith("mask")][:2]
    together = run.predict(images, threshold=None if kind == "segmentation" else 0.01)
    assert together[0] == run.predict(images[:1], threshold=None if kind == "segmentation" else 0.01)[0]
    if kind == "segmentation":
        assert together[0].mask().shape == (90, 120)
    else:
        assert together[0].size == (90, 120)
        assert max(x2 for one in together for _, _, x2, _ in one.boxes) > 70  # beyond the first tile


def detector(**options):
    return ObjectDetector("test_resnet", 3, width=64, pretrained=False, image_size=64, eval_batch_size=2, **options)


def data(folder, **options):
    loading = {"batch_size": 4, "eval_batch_size": 2, "num_workers": 0, "tile": 64, "overlap": 0.25}
    return DetectionDataModule(folder, **{**loading, **options})


def trainer(folder, epochs=2, **options):
    return AutoTrainer(epochs, run_dir=folder, accelerator="cpu", threads=1, enable_progress_bar=False, **options)


def test_workers_and_interruptions_change_no_bit(folders, tmp_path):
    once, loaded, resumed = detector(), detector(), detector()
    trainer(tmp_path / "once").fit(once, datamodule=data(folders["fcos"]))
    trainer(tmp_path / "loaded").fit(loaded, datamodule=data(folders["fcos"], num_workers=2))
    trainer(tmp_path / "resumed", callbacks=[StopAfter(0)]).fit(detector(), datamodule=data(folders["fcos"]))
    trainer(tmp_path / "resumed").fit(resumed, datamodule=data(folders["fcos"]), ckpt_path="last")
    assert digest(once) == digest(loaded) == digest(resumed)
    ledgers = [(tmp_path / name / "ledger.jsonl").read_bytes() for name in ("once", "loaded", "resumed")]
    assert ledgers[0] == ledgers[1] == ledgers[2]


class TestRefusals:
    def test_classes_of_whole_images_have_no_tiles(self, tmp_path):
        photos = write_toy_folder(tmp_path / "photos", n=8, num_classes=2)
        with pytest.raises(UsageError, match=r"`tile` of fit has no effect on classification. Leave it out."):
            small_fit(photos, tmp_path, tile=32, image_size=None)

    def test_the_size_of_the_input_is_that_of_a_tile(self, folders):
        with pytest.raises(UsageError, match=r"`image_size` of fit has no effect with `tile`, which is the size"):
            small_fit(folders["fcos"], "runs", image_size=64, tile=64, val_split=None)
        with pytest.raises(UsageError, match=r"`image_size` of DetectionDataModule must be 64, as `tile`. Got 96"):
            data(folders["fcos"], image_size=96)

    @pytest.mark.parametrize("overlap", [1.0, -0.1, "half"])
    def test_overlap(self, overlap, folders):
        with pytest.raises(UsageError, match=r"`overlap` of DetectionDataModule must be a number from 0 to 0.9"):
            data(folders["fcos"], overlap=overlap)

    def test_a_tile_that_the_architecture_cannot_take(self, folders, tmp_path):
        with pytest.raises(ModelError, match=r"`image_size` of 60 .*Give 32 or 64"):
            small_fit(folders["fcos"], tmp_path, **{**OPTIONS, "tile": 60}, task="detection")

    def test_a_task_that_cuts_no_tiles(self, folders):
        class Own(ImageClassifier):
            kinds = ("boxes",)

            def check_data(self, spec):
                pass

        model: Task = Own("test_resnet", 3, pretrained=False)
        with pytest.raises(UsageError, match="Own does not cut images into tiles"):
            AutoTrainer(1, run_dir=False, accelerator="cpu").fit(model, datamodule=data(folders["fcos"]))


def test_small_objects_are_measured_where_the_network_sees_them(folders):
    def notices(**options):
        module = data(folders["fcos"], **options)
        module.setup()
        return [line for line in module.notices if "px" in line]

    assert notices(tile=None, image_size=4)[0].endswith("counted in evaluation, and not learned in training.")
    assert "at image_size 4: give a larger --image-size, or --tile." in notices(tile=None, image_size=4)[0]
    assert notices(tile=4) == []


def test_tiles_of_a_large_image_are_predicted_in_batches_of_one_shape(folders):
    model, shapes = detector().eval(), []
    model.network.register_forward_pre_hook(lambda _, images: shapes.append(tuple(images[0].shape)))
    module = data(folders["fcos"])
    model.spec = module.spec
    batch = next(iter(module.test_dataloader()))
    assert batch.images.shape == (1, 3, 90, 120)
    with torch.no_grad():
        model.output(batch)
    assert shapes == [(2, 3, 64, 64)] * 3
