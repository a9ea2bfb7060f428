"""Metrics with several values, compared with pycocotools, torchmetrics and calculations by hand."""

import contextlib
import importlib.util
import io
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.segmentation import DiceScore

from autotimm.metrics import MeanAP, RegionScores, scores, table_of

SIDE, CLASSES = 160, 4
Objects = list[dict[str, Tensor]]


def rectangles(boxes: Tensor) -> Tensor:
    """Masks of boxes with integer coordinates, each with one corner cut off."""
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
        mask[y1 : y1 + (y2 - y1) // 3, x1 : x1 + (x2 - x1) // 3] = 0
    return masks


def draw_detections(number: int, seed: int) -> tuple[Objects, Objects]:
    """Draw predictions and targets with misses, duplicates, wrong classes, crowds, all sizes and empty images.

    Class 2 occurs in the targets only, class 3 in the predictions only.
    """
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for image in range(number):
        count = 0 if image % 5 == 4 else int(rng.integers(1, 6))
        sides = rng.integers(10, 130, (count, 2))
        low = rng.integers(0, SIDE - sides)
        boxes = np.concatenate([low, low + sides], 1).reshape(-1, 4)
        labels = rng.integers(0, 3, count)
        predicted, predicted_labels = [], []
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(int(rng.integers(0, 3))):
                shifted = np.clip(box + rng.integers(-6, 7, 4), 0, SIDE)
                predicted.append(shifted if (shifted[2:] > shifted[:2]).all() else box)
                predicted_labels.append(label if label < 2 and rng.random() < 0.8 else int(rng.choice([0, 1, 3])))
        for _ in range(int(rng.integers(0, 3)) if image % 5 != 3 else 0):  # false positives
            corner = rng.integers(0, SIDE - 20, 2)
            predicted.append(np.concatenate([corner, corner + 20]))
            predicted_labels.append(int(rng.choice([0, 1, 3])))
        boxes, predicted = (
            torch.tensor(np.array(corners).reshape(-1, 4), dtype=torch.float32) for corners in (boxes, predicted)
        )
        targets.append({"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": rectangles(boxes),
                        "iscrowd": torch.tensor(rng.random(count) < 0.2).long()})  # fmt: skip
        confidence = torch.tensor(rng.permutation(200)[: len(predicted)] / 200, dtype=torch.float32)
        predictions.append({"boxes": predicted, "labels": torch.tensor(predicted_labels, dtype=torch.int64),
                            "masks": rectangles(predicted), "scores": confidence})  # fmt: skip
    return predictions, targets


def pycocotools_scores(predictions: Objects, targets: Objects, iou_type: str) -> tuple[list[float], list[float]]:
    """The twelve values of pycocotools, and the average precision of each class, -1 where it is undefined."""
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    images = [{"id": image, "height": SIDE, "width": SIDE} for image in range(len(targets))]
    results, annotations = [], []
    for source, entries in ((predictions, results), (targets, annotations)):
        for image, objects in enumerate(source):
            for index in range(len(objects["labels"])):
                x1, y1, x2, y2 = objects["boxes"][index].tolist()
                mask = coco_mask.encode(np.asfortranarray(objects["masks"][index].numpy()))
                area = float(coco_mask.area(mask)) if iou_type == "segm" else (x2 - x1) * (y2 - y1)
                entries.append({"id": len(entries) + 1, "image_id": image, "category_id": int(objects["labels"][index]),
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "segmentation": mask})  # fmt: skip
                if source is predictions:
                    entries[-1]["score"] = float(objects["scores"][index])
                else:
                    entries[-1]["iscrowd"] = int(objects["iscrowd"][index])
    with contextlib.redirect_stdout(io.StringIO()):
        truth, detections = COCO(), COCO()
        truth.dataset = {"images": images, "categories": categories, "annotations": annotations, "info": {}}
        detections.dataset = {**truth.dataset, "annotations": results}
        truth.createIndex()
        detections.createIndex()
        evaluation = COCOeval(truth, detections, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    defined = [column[column > -1] for column in np.moveaxis(precision, 2, 0)]
    return evaluation.stats.tolist(), [float(column.mean()) if len(column) else -1.0 for column in defined]


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations; the second is an optional extra."""
    if request.param != "pycocotools" and importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed; pip install faster-coco-eval tests it too")
    monkeypatch.setattr(scores, "find_spec", lambda name: request.param == name or None)
    return request.param


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_mean_ap_matches_pycocotools(iou_type: str, seed: int, backend: str) -> None:
    predictions, targets = draw_detections(24, seed)
    metric = MeanAP(CLASSES, iou_type)
    assert metric.inner._coco_backend.backend == backend
    for start in range(0, 24, 5):
        metric.update(predictions[start : start + 5], targets[start : start + 5])
    stats, by_class = pycocotools_scores(predictions, targets, iou_type)
    assert 0.1 < stats[0] < 0.9, "the comparison needs predictions of medium quality"
    names = (
        "mean", "50", "75", "small", "medium", "large", "recall_1", "recall_10", "recall", "recall_small",
        "recall_medium", "recall_large",
    )  # fmt: skip
    expected = {name: max(0.0, value) for name, value in zip(names, stats, strict=True)}
    computed = {name: value.item() for name, value in metric.compute().items()}
    assert computed == pytest.approx(expected, abs=1e-6)
    values = [-1 if math.isnan(value) else value for value in metric.by_class().tolist()]
    assert values == pytest.approx(by_class, abs=1e-6)
    assert by_class[3] == -1
    assert by_class[2] == 0


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_detections_in_empty_images_are_false_positives(iou_type: str, backend: str) -> None:
    box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    objects = {"boxes": box, "labels": torch.tensor([0]), "masks": rectangles(box)}
    none = {"boxes": box[:0], "labels": torch.tensor([0])[:0], "masks": rectangles(box[:0])}
    metric = MeanAP(1, iou_type)
    # The false positive has the higher score, so the precision is 1/2 at the only recall.
    predictions = [{**objects, "scores": torch.tensor([0.9])}, {**objects, "scores": torch.tensor([0.5])}]
    metric.update(predictions, [none, objects])
    assert metric.compute()["mean"].item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_mean_ap_without_predictions_or_targets(iou_type: str, backend: str) -> None:
    box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    none = {"boxes": box[:0], "labels": torch.tensor([0])[:0], "masks": rectangles(box[:0]), "scores": torch.zeros(0)}
    objects = {"boxes": box, "labels": torch.tensor([1]), "masks": rectangles(box)}
    missed, empty = MeanAP(2, iou_type), MeanAP(2, iou_type)
    missed.update([none], [objects])
    assert missed.compute()["mean"] == 0
    assert [str(value) for value in missed.by_class().tolist()] == ["nan", "0.0"]
    empty.update([none], [none])
    assert {name: value.item() for name, value in empty.compute().items()} == {"mean": 0.0}
    assert empty.by_class().isnan().all()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_crowds_are_ignored(iou_type: str, backend: str) -> None:
    boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 140.0, 140.0]])
    labels = torch.tensor([0, 0])
    target = {"boxes": boxes, "labels": labels, "masks": rectangles(boxes), "iscrowd": torch.tensor([0, 1])}
    within = torch.tensor([[10.0, 10.0, 50.0, 50.0], [90.0, 90.0, 120.0, 120.0]])
    masks = rectangles(within)
    masks[1, 90:120, 90:120] = 1
    prediction = {"boxes": within, "labels": labels, "masks": masks, "scores": torch.tensor([0.5, 0.9])}
    metric = MeanAP(1, iou_type)
    metric.update([prediction], [target])
    assert metric.compute()["mean"].item() == pytest.approx(1, abs=1e-6)


def test_region_scores_match_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 20, 30, generator=draw)
    targets = torch.randint(0, 5, (6, 20, 30), generator=draw)
    targets[torch.rand(6, 20, 30, generator=draw) < 0.2] = 255
    metric = RegionScores(5)
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(logits[part], targets[part])
    labeled = targets != 255
    predicted, true = logits.argmax(1)[labeled], targets[labeled]
    values = {name: value.item() for name, value in metric.compute().items()}
    jaccard = MulticlassJaccardIndex(5, average=None)(predicted, true)
    assert metric.by_class().tolist() == pytest.approx(jaccard.tolist(), abs=1e-6)
    dice = DiceScore(5, average="macro", input_format="index", aggregation_level="global")
    assert values == pytest.approx(
        {
            "mean": MulticlassJaccardIndex(5, ignore_index=255)(logits, targets).item(),
            "dice": dice(predicted[None], true[None]).item(),
            "pixel_accuracy": MulticlassAccuracy(5, average="micro")(predicted, true).item(),
        },
        abs=1e-6,
    )


def test_region_scores_of_a_small_example() -> None:
    # Class 2 does not occur, class 3 is only predicted, and the last pixel is unlabeled.
    targets = torch.tensor([[[0, 0, 1, 1, 1, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 3, 2]]])
    metric = RegionScores(4)
    metric.update(torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float(), targets)
    assert [str(round(value, 4)) for value in metric.by_class().tolist()] == ["0.5", "0.5", "nan", "0.0"]
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx({"mean": 1 / 3, "dice": (2 / 3 + 2 / 3 + 0) / 3, "pixel_accuracy": 3 / 5})


def test_region_scores_without_labeled_pixels() -> None:
    metric = RegionScores(3)
    metric.update(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "mean": 0.0, "dice": 0.0, "pixel_accuracy": 0.0,
    }  # fmt: skip
    assert metric.by_class().isnan().all()
    metric.reset()
    metric.update(torch.eye(3)[None, :, :, None], torch.tensor([[[0], [1], [1]]]))
    assert metric.by_class().tolist()[:2] == [1, 0.5]


def test_table_has_a_row_per_class_and_a_column_per_metric() -> None:
    values = {"mask_mAP": torch.tensor([0.5, 0.25]), "mAP": torch.tensor([1.0, 0.0])}
    assert table_of(values, dict.fromkeys(values, "AP"), ["cat", "dog"]) == {
        "cat": {"mask_mAP AP": 0.5, "mAP AP": 1.0},
        "dog": {"mask_mAP AP": 0.25, "mAP AP": 0.0},
    }
