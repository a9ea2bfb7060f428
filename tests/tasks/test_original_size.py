"""Objects and pixels are measured in the pixels of the original images, as programs that read the annotations do."""

import json
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autotimm import DetectionDataModule, InstanceSegmentationDataModule, ObjectDetector, SegmentationDataModule
from autotimm.data.loader import collate_samples
from autotimm.metrics import MeanAP, RegionScores
from autotimm.runs.prediction_files import coco_results
from autotimm.tasks import InstanceSegmentor, SemanticSegmentor
from autotimm.tasks.letterbox import encode, paste
from autotimm.types import Stage
from training import trainer

SIDE = 64
SIZES = [(90, 140), (200, 61), (64, 64), (33, 300), (480, 640), (50, 50)]
FIGURES = ["mean", "50", "75", "small", "medium", "large", "recall_1", "recall_10", "recall", "recall_small",
           "recall_medium", "recall_large"]  # fmt: skip
SMALL = {"num_classes": 2, "backbone": "test_resnet", "pretrained": False, "width": 64}


@pytest.fixture(scope="module")
def coco_set(tmp_path_factory):
    """Images of many sizes with triangles of two classes, some far below a pixel of the network, and a crowd."""
    folder = tmp_path_factory.mktemp("coco")
    generator = np.random.default_rng(5)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES):
        name = f"{number:03d}.png"
        Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)
        images.append({"id": 900 - 7 * number, "file_name": name, "height": height, "width": width})
        for index in range(8):
            x, y = generator.uniform(0, width * 0.8), generator.uniform(0, height * 0.8)
            w, h = generator.uniform(2, width * 0.2), generator.uniform(1, height * 0.2)
            w, h = (0.4, 0.7) if index == 0 else (w, h)
            x = width - w / 2 if index == 1 else x  # it reaches beyond its image
            outline = [round(value, 2) for value in (x, y, x + w, y, x + w / 2, y + h)]
            box = [outline[0], outline[1], outline[2] - outline[0], outline[5] - outline[1]]
            annotations.append({
                "id": 50 + len(annotations), "image_id": images[-1]["id"], "category_id": (3, 17)[index % 2],
                "bbox": box, "segmentation": [outline], "area": box[2] * box[3] / 2, "iscrowd": 0,
            })  # fmt: skip
    crowd = coco_mask.encode(np.asfortranarray(np.tri(*SIZES[0], dtype=np.uint8)))
    annotations.append({
        "id": 1, "image_id": images[0]["id"], "category_id": 3, "bbox": coco_mask.toBbox(crowd).tolist(), "iscrowd": 1,
        "segmentation": {"size": list(SIZES[0]), "counts": crowd["counts"].decode()},
        "area": float(coco_mask.area(crowd)),
    })  # fmt: skip
    categories = [{"id": 17, "name": "kite"}, {"id": 3, "name": "boat"}]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def near_the_truth(task, batch, generator):
    """What a network might find in its square: true objects a little beside their places, and others."""
    found = []
    for target in batch.targets:
        count = len(target["labels"])
        boxes = target["boxes"].repeat(3, 1)
        boxes = boxes + torch.randn(boxes.shape, generator=generator) * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) * 0.1
        output = {
            "boxes": boxes.clamp(0, SIDE),
            "scores": torch.rand(3 * count, generator=generator),
            "labels": torch.where(torch.rand(3 * count, generator=generator) < 0.8, target["labels"].repeat(3), 1),
        }
        if "masks" in target:
            row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
            triangle = ((column - 13.5).abs() * 2 <= 28 - row).float()
            output["masks"] = triangle * 0.8 + torch.rand(3 * count, 28, 28, generator=generator) * 0.2
        found.append({name: value[output["scores"].argsort(descending=True)] for name, value in output.items()})
    return found


@pytest.mark.parametrize(("module", "task"), [(DetectionDataModule, ObjectDetector),
                                              (InstanceSegmentationDataModule, InstanceSegmentor)])  # fmt: skip
@pytest.mark.parametrize("given", [True, False], ids=["ids-of-the-file", "ids-of-its-own"])
def test_all_twelve_figures_are_those_of_pycocotools(module, task, given, coco_set, tmp_path):
    data = module(coco_set, image_size=SIDE, num_workers=0, val_split=0)
    data.setup()
    task = task(**SMALL).eval()
    task.spec, task.threshold = data.spec, 1e-6
    generator = torch.Generator().manual_seed(3)
    metrics = {config.params["iou_type"]: config.build() for config in task.default_metrics()}
    predictions = []
    for batch in evaluated(data):
        output = near_the_truth(task, batch, generator)
        task.infer = lambda images, output=output: output
        step = task.step(batch, Stage.VAL)
        for metric in metrics.values():
            metric.update(step.predictions, step.targets)
        predictions += task.decode(output, batch)
    if given:
        results = coco_results(predictions, data.class_names, category_ids=data.spec.category_ids, ids=coco_set)
    else:  # the numbers of the categories are known without the file, since the model has learned from it
        results = coco_results(predictions, data.class_names, category_ids=data.spec.category_ids)
        of_image = {image["file_name"]: image["id"] for image in json.loads(coco_set.read_text())["images"]}
        real = {image["id"]: of_image[image["file_name"]] for image in results["images"]}
        results["annotations"] = [{**one, "image_id": real[one["image_id"]]} for one in results["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(results["annotations"]))
    for kind, metric in metrics.items():
        expected, by_class = by_pycocotools(coco_set, tmp_path / "found.json", kind)
        found = metric.compute()
        assert expected[0] > 0.02, "otherwise nothing is compared"
        assert [found.get(name, -1) for name in FIGURES] == pytest.approx(expected, abs=1e-6)
        assert dict(zip(data.class_names, metric.by_class().tolist(), strict=True)) == pytest.approx(by_class, abs=1e-6)


def evaluated(data):
    """The batches of the training images, as an evaluation sees them."""
    table, transform = data.tables["train"], data.sample_transform(None, "eval_transforms")
    samples = [transform(table.load(index)) for index in range(len(table))]
    return [collate_samples(samples[first : first + 4]) for first in range(0, len(samples), 4)]


def by_pycocotools(annotations, results, kind):
    with redirect_stdout(StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, -1]
    by_class = {}
    for column, category in enumerate(evaluation.params.catIds):
        defined = precision[:, :, column]
        by_class[truth.cats[category]["name"]] = defined[defined > -1].mean()
    return evaluation.stats.tolist(), by_class


class TestPixels:
    def test_regions_are_those_of_the_files(self, tmp_path):
        """Also where the network's square is far smaller: a line of one pixel is still counted."""
        generator = np.random.default_rng(2)
        masks = []
        for number, (height, width) in enumerate(SIZES):
            mask = np.zeros((height, width), np.uint8)
            mask[: height // 2] = 1
            mask[:, width // 3] = 2
            mask[0, :5] = 255
            masks.append(mask)
            Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8)).save(tmp_path / f"{number}.png")
            Image.fromarray(mask).save(tmp_path / f"{number}_mask.png")
        (tmp_path / "_classes.csv").write_text("id,name\n0,ground\n1,sky\n2,pole\n")
        data = SegmentationDataModule(tmp_path, image_size=SIDE, num_workers=0, val_split=0)
        data.setup()
        task = SemanticSegmentor(**{**SMALL, "num_classes": 3}).eval()
        task.spec = data.spec
        (metric,) = (config.build() for config in task.default_metrics())
        correct, union = np.zeros(3), np.zeros(3)
        for batch in evaluated(data):
            step = task.step(batch, Stage.VAL)
            for predicted, true in zip(step.predictions, step.targets, strict=True):
                metric.update(predicted[None], true[None])
            for found in task.decode(task.infer(batch.images), batch):
                mask, labels = masks[int(found.id.split(".")[0])], found.mask().numpy()
                known = mask != 255
                for label in range(3):
                    correct[label] += ((mask == label) & (labels == label) & known).sum()
                    union[label] += (((mask == label) | (labels == label)) & known).sum()
        assert metric.by_class().tolist() == pytest.approx(correct / union, abs=1e-12)
        assert metric.compute()["mean"].item() == pytest.approx((correct / union).mean(), abs=1e-6)

    def test_large_images_are_counted_in_parts(self):
        whole, parts = RegionScores(3), RegionScores(3)
        generator = torch.Generator().manual_seed(1)
        predicted, true = (torch.randint(0, 3, (1, 2100, 2100), generator=generator, dtype=torch.uint8) for _ in "pt")
        true[0, 0] = 255
        whole.inner.update(predicted.long(), true.long())
        parts.update(predicted, true)
        assert torch.equal(whole.inner.confmat, parts.inner.confmat)


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_are_those_of_drawn_masks(seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(40, 28, 28, generator=generator)
    corners = torch.rand(40, 2, 2, generator=generator).sort(1).values * torch.tensor([70.0, 50.0]) - 5
    boxes = corners.flatten(1)
    boxes[0], masks[1] = torch.tensor([-9.0, -9.0, 90.0, 90.0]), 1.0
    boxes[1], masks[2], boxes[3] = boxes[0], 0.0, torch.tensor([5.0, 5.0, 5.2, 5.2])
    drawn = paste(masks, boxes, 41, 59).numpy()
    expected = [coco_mask.encode(np.asfortranarray(mask)) for mask in drawn]
    assert encode(masks, boxes, 41, 59) == [(tuple(mask["size"]), mask["counts"]) for mask in expected]


@pytest.mark.parametrize("most", [1, 5, 100, 300])
def test_more_objects_than_usual(most):
    """pycocotools computes its first figure for 100 objects per image alone, and says -1 for any other number."""
    boxes = torch.arange(400.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    labels = torch.zeros(400, dtype=torch.int64)
    metric = MeanAP(1, max_objects=most)
    metric.update([{"boxes": boxes, "labels": labels, "scores": torch.linspace(1, 0.5, 400)}],
                  [{"boxes": boxes, "labels": labels}])  # fmt: skip
    values = metric.compute()
    assert values["recall"].item() == pytest.approx(most / 400)
    assert values["mean"].item() == pytest.approx((most // 4 + 1) / 101, abs=1e-6)
    assert metric.by_class().item() == pytest.approx(values["mean"].item())


def test_a_detector_finds_as_many_objects_as_it_is_told():
    options = {**SMALL, "max_objects": 7, "nms_iou": 1.0}
    model = ObjectDetector(**options).eval()
    with torch.no_grad():
        model.network.model.score_thresh = 0.0
        (found,) = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert len(found["scores"]) == 7
    assert model.network.model.nms_thresh == 1.0
    assert model.default_metrics()[0].params["max_objects"] == 7


@pytest.mark.parametrize(("most", "said"), [(7, True), (9, False)])
def test_images_with_more_objects_are_named(most, said, coco_set, tmp_path):
    data = DetectionDataModule(coco_set, image_size=SIDE, batch_size=4, num_workers=0, val_split=0.3)
    runner = trainer(1, run_dir=False, limit_train_batches=1, limit_val_batches=0)
    runner.fit(ObjectDetector(**SMALL, max_objects=most), datamodule=data)
    assert any("An image has 9 objects, and at most 7 are found" in line for line in data.notices) == said
