"""Tasks that find objects and regions: nothing to find, crowds, loaders of a user's own, and what predictions say."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from autotimm import Batch, InstanceSegmentor, ObjectDetector, SemanticSegmentor, Stage
from autotimm.config import FitConfig
from autotimm.data.dense import SegmentationDataModule
from autotimm.data.toy import write_toy_segmentation
from autotimm.errors import UsageError
from autotimm.losses.pixel_losses import DENSE_LOSSES
from autotimm.runs.factory import build_data, build_task, settle
from autotimm.tasks.letterbox import likeliest, places
from autotimm.types import DataSpec, ObjectPrediction
from dense import images, nothing, squares
from training import trainer

SIDE = 64
BACKBONE = {"backbone": "test_resnet", "pretrained": False, "width": 64, "image_size": SIDE, "eval_batch_size": 2}
OBJECTS = {
    "fcos": (ObjectDetector, {}),
    "retinanet": (ObjectDetector, {"arch": "retinanet"}),
    "faster_rcnn": (ObjectDetector, {"arch": "faster_rcnn"}),
    "mask_rcnn": (InstanceSegmentor, {}),
}
each_arch = pytest.mark.parametrize("arch", OBJECTS)


@pytest.fixture(scope="module")
def made():
    """One task per architecture; its weights do not matter."""
    return {arch: task(num_classes=2, **BACKBONE, **options) for arch, (task, options) in OBJECTS.items()}


def empty(arch: str) -> dict[str, torch.Tensor]:
    target = {**nothing(SIDE), "crowd": torch.zeros(0, dtype=torch.bool)}
    return target if arch == "mask_rcnn" else {name: one for name, one in target.items() if name != "masks"}


def objects(arch: str, number: int = 2) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    pictures, targets = squares(number, SIDE)
    if arch != "mask_rcnn":
        targets = [{name: one for name, one in target.items() if name != "masks"} for target in targets]
    return pictures, targets


def test_measuring_outside_of_the_loops_needs_no_losses(tmp_path):
    pictures, targets = objects("fcos", 4)
    task = ObjectDetector(num_classes=2, **BACKBONE)
    batches = [Batch(pictures[at : at + 2], targets[at : at + 2]) for at in (0, 2)]
    quiet = trainer(run_dir=False)
    (within,) = quiet.validate(task, DataLoader(batches, batch_size=None))
    task.eval()
    with torch.inference_mode():
        evaluated = [(batch, task.evaluate(batch, index, Stage.VAL)) for index, batch in enumerate(batches)]
    assert task.measure(evaluated, Stage.VAL) == within
    assert "val/mAP" in within
    assert task.measure([], Stage.VAL) == {}


class TestTraining:
    @each_arch
    def test_images_without_objects(self, arch, made):
        task = made[arch].train()
        pictures, targets = objects(arch)
        for listed in ([empty(arch)] * 2, [empty(arch), targets[1]]):
            step = task.step(Batch(pictures, listed), Stage.TRAIN)
            assert step.loss.isfinite()
            step.loss.backward()
            grads = [one.grad for one in task.parameters() if one.grad is not None]
            assert grads
            assert all(grad.isfinite().all() for grad in grads)
            task.zero_grad()

    @each_arch
    def test_a_crowd_is_not_learned_from(self, arch, made):
        task = made[arch].train()
        pictures, targets = objects(arch)
        crowds = [{**one, "crowd": torch.ones(len(one["labels"]), dtype=torch.bool)} for one in targets]

        def losses(listed):
            torch.manual_seed(0)  # which regions are looked at is drawn
            return {name: one.item() for name, one in task.step(Batch(pictures, listed), Stage.TRAIN).losses.items()}

        assert losses(crowds) == losses([empty(arch)] * 2)
        assert losses(crowds) != losses(targets)
        single = [{**one, "crowd": torch.zeros(len(one["labels"]), dtype=torch.bool)} for one in targets]
        assert losses(single) == losses(targets)


class TestMeasuring:
    @each_arch
    def test_crowds_and_images_without_objects(self, arch, made):
        task = made[arch].eval()
        pictures, targets = objects(arch)
        crowd = {**targets[1], "crowd": torch.ones(len(targets[1]["labels"]), dtype=torch.bool)}
        step = task.step(Batch(pictures, [empty(arch), crowd]), Stage.VAL)
        assert step.losses == {}
        assert step.targets[0]["boxes"].shape == (0, 4)
        assert step.targets[1]["iscrowd"].tolist() == [1, 1]
        assert len(step.predictions) == 2

    @each_arch
    def test_places_bring_boxes_back(self, arch, made):
        task = made[arch].eval()
        pictures, targets = objects(arch)
        at = torch.tensor([[32, 128, 24, 0, 16, 64], [64, 64, 0, 0, 64, 64]])
        step = task.step(Batch(pictures, targets, placements=at), Stage.VAL)
        plain = task.step(Batch(pictures, targets), Stage.VAL)
        assert torch.equal(step.predictions[1]["boxes"], plain.predictions[1]["boxes"])
        moved = (targets[0]["boxes"] - torch.tensor([0, 24, 0, 24])) * 2
        limits = torch.tensor([128.0, 32.0, 128.0, 32.0])
        assert torch.equal(step.targets[0]["boxes"], torch.minimum(moved.clamp(min=0), limits))
        if "masks" in plain.predictions[0]:
            assert {size for size, _ in step.predictions[0]["masks"]} <= {(32, 128)}
            assert {size for size, _ in step.targets[0]["masks"]} <= {(32, 128)}


@each_arch
def test_a_loader_of_one_s_own(arch, made):
    """Pairs of images and dictionaries, with no word of crowds and places: images are taken as they are."""
    pictures, targets = objects(arch, 4)

    def pairs(listed):
        return torch.stack([one for one, _ in listed]), [target for _, target in listed]

    loader = DataLoader([*zip(pictures, targets, strict=True)], batch_size=2, collate_fn=pairs)
    task, options = OBJECTS[arch]
    model = task(num_classes=2, lr=1e-4, **BACKBONE, **options)
    runner = trainer(1)
    runner.fit(model, train_dataloaders=loader, val_dataloaders=loader)
    found = runner.validate(model, dataloaders=loader)[0]
    assert "val/mAP" in found
    assert list(model.class_table) == ["0", "1"]
    (first, second), _ = trainer().predict(model, DataLoader(pictures, batch_size=2))
    assert (first.id, second.id, first.size) == ("0", "1", (SIDE, SIDE))


class TestPredictions:
    def test_those_that_are_sure_enough_with_their_masks(self, made):
        task = made["mask_rcnn"].eval()
        task.spec = DataSpec(("cat", "dog"), image_size=SIDE, kind="instances")
        output = {
            "boxes": torch.tensor([[8.0, 16.0, 40.0, 48.0], [0.0, 16.0, 64.0, 48.0], [1.0, 17.0, 9.0, 20.0]]),
            "scores": torch.tensor([0.9, 0.5, 0.1]),
            "labels": torch.tensor([1, 0, 0]),
            "masks": torch.ones(3, 28, 28),
        }
        at = torch.tensor([[50, 100, 16, 0, 32, 64]])
        (found,) = task.decode([output], Batch(images(1, SIDE), ids=("x/1.png",), placements=at))
        assert found.labels == ("dog", "cat")
        assert found.scores == pytest.approx((0.9, 0.5))
        assert found.size == (50, 100)
        assert found.boxes[0] == pytest.approx((12.5, 0, 62.5, 50))
        assert found.mask(0).shape == (50, 100)
        assert found.mask(1).all()
        rows, columns = found.mask(0).nonzero().T
        assert (rows.min(), rows.max()) == (0, 49)
        assert abs(int(columns.min()) - 12) <= 1
        assert abs(int(columns.max()) - 62) <= 1

    @each_arch
    def test_nothing_is_sure_enough(self, arch, made):
        task = made[arch].eval()
        output = {"boxes": torch.zeros(1, 4), "scores": torch.tensor([0.01]), "labels": torch.tensor([0])}
        output |= {"masks": torch.zeros(1, 28, 28)} if arch == "mask_rcnn" else {}
        (found,) = task.decode([output], Batch(images(1, SIDE), ids=("1.png",)))
        assert found == ObjectPrediction("1.png", (), (), (), (SIDE, SIDE))

    def test_masks_are_those_of_coco(self):
        drawn = np.zeros((5, 7), np.uint8)
        drawn[1:3, 2:6] = 1
        counts = coco_mask.encode(np.asfortranarray(drawn))["counts"].decode()
        found = ObjectPrediction("1.png", ("cat",), (0.5,), ((2.0, 1.0, 6.0, 3.0),), (5, 7), (counts,))
        assert np.array_equal(found.mask(0).numpy(), drawn.astype(bool))


class TestRegions:
    def test_a_prediction_has_the_original_s_pixels(self):
        task = SemanticSegmentor(num_classes=3, **BACKBONE).eval()
        logits = torch.zeros(1, 3, SIDE, SIDE)
        logits[0, 0], logits[0, 1, :16], logits[0, 1, 48:] = 1, 9, 9  # class 1 is said of the border alone
        logits[0, 2, 16:48, 32:] = 5
        at = torch.tensor([[25, 50, 16, 0, 32, 64]])
        (found,) = task.decode(logits, Batch(images(1, SIDE), ids=("1.png",), placements=at))
        assert found.mask().shape == (25, 50)
        assert found.labels in (("0", "2"), ("2", "0"))
        assert found.scores["1"] == 0
        assert (found.mask()[:, 26:] == 2).all()
        assert (found.mask()[:, :24] == 0).all()

    @pytest.mark.parametrize(("classes", "size"), [(2, (61, 90)), (21, (40, 7)), (150, (13, 33))])
    def test_bands_and_threads_change_no_label(self, classes, size):
        logits = torch.randn(classes, 24, 17, generator=torch.Generator().manual_seed(0))
        whole = torch.nn.functional.interpolate(logits[None].double(), size, mode="bilinear")[0]
        labels, before = likeliest(logits, *size), torch.get_num_threads()
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(likeliest(logits, *size, at_once=1), labels)
        torch.set_num_threads(before)
        assert torch.equal(likeliest(logits, *size, at_once=5 * classes * size[1]), labels)
        assert labels.dtype == torch.uint8
        best = whole.max(0).values - whole.gather(0, labels[None].long())[0]
        assert best.max() < 1e-5

    def test_a_band_is_all_that_is_held(self):
        class Largest(TorchDispatchMode):
            """Notes how many values the largest tensor has that an operator gives."""

            found = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                self.found = max(self.found, result.numel() if isinstance(result, torch.Tensor) else 0)
                return result

        task = SemanticSegmentor(num_classes=40, **BACKBONE).eval()
        at = torch.tensor([[1200, 1000, 0, 0, SIDE, SIDE]])
        with Largest() as largest:
            task.decode(torch.zeros(1, 40, SIDE, SIDE), Batch(images(1, SIDE), ids=("1.png",), placements=at))
        assert largest.found <= 1 << 22 < 40 * 1200 * 1000

    @pytest.mark.parametrize("ignored", [-1, 100, 255])
    @pytest.mark.parametrize("loss", DENSE_LOSSES)
    def test_what_the_data_calls_unknown_is_ignored_whatever_the_index(self, loss, ignored, tmp_path):
        """Data modules write 255, for whatever ``ignore_index``."""
        folder = write_toy_segmentation(tmp_path, splits={"train": 2, "val": 2}, image_size=(40, 64))
        data = SegmentationDataModule(folder, image_size=SIDE, batch_size=2, num_workers=0)
        batch = next(iter(data.val_dataloader()))
        unknown = batch.targets == 255
        assert unknown.any()
        task, other = (
            SemanticSegmentor(num_classes=data.num_classes, loss=loss, ignore_index=one, **BACKBONE).eval()
            for one in (ignored, 255)
        )
        step, expected = task.step(batch, Stage.VAL), other.step(batch, Stage.VAL)
        assert torch.equal(step.loss, expected.loss)
        assert step.weight == expected.weight == (~unknown).sum()
        plain = task.step(batch._replace(truths=None), Stage.VAL)
        assert torch.equal(plain.targets == ignored, unknown)
        measured = [one.default_metrics()[0].build() for one in (task, other)]
        for metric, found in zip(measured, (step, expected), strict=True):
            for predicted, true in zip(found.predictions, found.targets, strict=True):
                metric.update(predicted[None], true[None])
        assert measured[0].compute() == measured[1].compute()

    @pytest.mark.parametrize("loss", ["auto", "focal"])
    def test_balanced_weights_count_pixels(self, loss, tmp_path):
        """Images all hold the background: to count them would weigh it like the rest."""
        for split in ("train", "val"):
            (tmp_path / split).mkdir()
            for name, right in (("a", 15), ("b", 5)):
                mask = np.zeros((10, 20), np.uint8)
                mask[:, :right] = 1
                mask[0, 0] = 255
                Image.fromarray(mask).convert("RGB").save(tmp_path / split / f"{name}.png")
                Image.fromarray(mask).save(tmp_path / split / f"{name}_mask.png")
        (tmp_path / "_classes.csv").write_text("id,name\n0,ground\n1,road\n2,moon\n")
        options = {name: one for name, one in BACKBONE.items() if name != "eval_batch_size"}
        config = settle(FitConfig(tmp_path, task="segmentation", class_weights="balanced", loss=loss, **options))
        data = build_data(config)
        assert data.class_amounts() == (200, 198, 0)
        total = 200 + 198 + 198  # no pixel of the moon: as the rarest that there is
        expected = [total / 3 / 200, total / 3 / 198, total / 3 / 198]
        assert build_task(config, data).criterion.weight.tolist() == pytest.approx(expected)

    def test_bytes_of_a_loader_of_one_s_own_may_hold_255(self):
        task = SemanticSegmentor(num_classes=2, ignore_index=-1, **BACKBONE).eval()
        targets = torch.full((2, SIDE, SIDE), 255, dtype=torch.uint8)
        targets[0, :4, :8] = 1
        assert task.step(Batch(images(2, SIDE), targets), Stage.VAL).weight == 32
        with pytest.raises(UsageError, match=r"`num_classes` of SemanticSegmentor must be at most 256\. Got 300"):
            SemanticSegmentor(num_classes=300, ignore_index=-1, **BACKBONE)

    def test_the_mean_of_the_loss_is_over_known_pixels(self):
        task = SemanticSegmentor(num_classes=2, **BACKBONE).eval()
        targets = torch.full((2, SIDE, SIDE), 255)
        targets[0, :4, :8] = 1
        step = task.step(Batch(images(2, SIDE), targets), Stage.VAL)
        assert step.weight == 32
        logits = task.infer(images(2, SIDE))[0, :, :4, :8].flatten(1).T
        expected = torch.nn.functional.cross_entropy(logits, torch.ones(32, dtype=torch.int64))
        assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        nothing_known = task.step(Batch(images(2, SIDE), torch.full_like(targets, 255)), Stage.VAL)
        assert nothing_known.loss.isfinite()


def test_images_of_a_user_s_own_fill_the_square():
    (at, _) = places(Batch(images(2, SIDE)))
    assert at == (SIDE, SIDE, 0, 0, SIDE, SIDE)


@pytest.mark.parametrize("task", [ObjectDetector, InstanceSegmentor])
@pytest.mark.parametrize(
    ("option", "value"), [("threshold", 0), ("threshold", 1.5), ("num_classes", 0), ("arch", "yolo")]
)
def test_what_is_wrong_is_said(task, option, value):
    with pytest.raises(UsageError, match=f"`{option}` of {task.__name__} must be"):
        task(**{"num_classes": 2, **BACKBONE, option: value})
