"""Metrics of several values: the numbers of pycocotools, torchmetrics and a pencil."""

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
    """Masks of boxes in whole pixels, each with a corner cut off."""
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
        mask[y1 : y1 + (y2 - y1) // 3, x1 : x1 + (x2 - x1) // 3] = 0
    return masks


def drawn(number: int, seed: int) -> tuple[Objects, Objects]:
    """Predictions and truth with misses, doubles, wrong classes, crowds, all sizes, images without either.

    Class 3 is only ever predicted, class 2 only there.
    """
    rng = np.random.default_rng(seed)
    found, there = [], []
    for image in range(number):
        true = 0 if image % 5 == 4 else int(rng.integers(1, 6))
        sides = rng.integers(10, 130, (true, 2))
        low = rng.integers(0, SIDE - sides)
        boxes = np.concatenate([low, low + sides], 1).reshape(-1, 4)
        labels = rng.integers(0, 3, true)
        moved, guessed = [], []
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(int(rng.integers(0, 3))):
                other = np.clip(box + rng.integers(-6, 7, 4), 0, SIDE)
                moved.append(other if (other[2:] > other[:2]).all() else box)
                guessed.append(label if label < 2 and rng.random() < 0.8 else int(rng.choice([0, 1, 3])))
        for _ in range(int(rng.integers(0, 3)) if image % 5 != 3 else 0):  # where there is nothing
            corner = rng.integers(0, SIDE - 20, 2)
            moved.append(np.concatenate([corner, corner + 20]))
            guessed.append(int(rng.choice([0, 1, 3])))
        boxes, moved = (torch.tensor(np.array(each).reshape(-1, 4), dtype=torch.float32) for each in (boxes, moved))
        there.append({"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": rectangles(boxes),
                      "iscrowd": torch.tensor(rng.random(true) < 0.2).long()})  # fmt: skip
        sure = torch.tensor(rng.permutation(200)[: len(moved)] / 200, dtype=torch.float32)
        found.append({"boxes": moved, "labels": torch.tensor(guessed, dtype=torch.int64), "masks": rectangles(moved),
                      "scores": sure})  # fmt: skip
    return found, there


def by_hand(found: Objects, there: Objects, iou_type: str) -> tuple[list[float], list[float]]:
    """What pycocotools says: its twelve numbers, and the average precision of each class, -1 where it has none."""
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    images = [{"id": image, "height": SIDE, "width": SIDE} for image in range(len(there))]
    results, annotations = [], []
    for source, listed in ((found, results), (there, annotations)):
        for image, one in enumerate(source):
            for index in range(len(one["labels"])):
                x1, y1, x2, y2 = one["boxes"][index].tolist()
                outline = coco_mask.encode(np.asfortranarray(one["masks"][index].numpy()))
                area = float(coco_mask.area(outline)) if iou_type == "segm" else (x2 - x1) * (y2 - y1)
                listed.append({"id": len(listed) + 1, "image_id": image, "category_id": int(one["labels"][index]),
                               "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "segmentation": outline})  # fmt: skip
                if source is found:
                    listed[-1]["score"] = float(one["scores"][index])
                else:
                    listed[-1]["iscrowd"] = int(one["iscrowd"][index])
    with contextlib.redirect_stdout(io.StringIO()):
        truth, guesses = COCO(), COCO()
        truth.dataset = {"images": images, "categories": categories, "annotations": annotations, "info": {}}
        guesses.dataset = {**truth.dataset, "annotations": results}
        truth.createIndex()
        guesses.createIndex()
        judge = COCOeval(truth, guesses, iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    each = judge.eval["precision"][:, :, :, 0, 2]
    known = [column[column > -1] for column in np.moveaxis(each, 2, 0)]
    return judge.stats.tolist(), [float(one.mean()) if len(one) else -1.0 for one in known]


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute; the second is an extra that nothing depends on."""
    if request.param != "pycocotools" and importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed; pip install faster-coco-eval tests it too")
    monkeypatch.setattr(scores, "find_spec", lambda name: request.param == name or None)
    return request.param


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_mean_ap_is_that_of_pycocotools(iou_type: str, seed: int, backend: str) -> None:
    found, there = drawn(24, seed)
    metric = MeanAP(CLASSES, iou_type)
    assert metric.inner._coco_backend.backend == backend
    for start in range(0, 24, 5):
        metric.update(found[start : start + 5], there[start : start + 5])
    stats, each = by_hand(found, there, iou_type)
    assert 0.1 < stats[0] < 0.9, "the predictions are neither right nor wrong"
    names = ("mean", "50", "75", "small", "medium", "large")
    expected = {name: max(0.0, value) for name, value in zip(names, stats, strict=False)} | {"recall": stats[8]}
    computed = {name: value.item() for name, value in metric.compute().items()}
    assert computed == pytest.approx(expected, abs=1e-6)
    assert [-1 if math.isnan(one) else one for one in metric.by_class().tolist()] == pytest.approx(each, abs=1e-6)
    assert each[3] == -1
    assert each[2] == 0


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_what_is_found_where_nothing_is_counts_against_it(iou_type: str, backend: str) -> None:
    box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    one = {"boxes": box, "labels": torch.tensor([0]), "masks": rectangles(box)}
    none = {"boxes": box[:0], "labels": torch.tensor([0])[:0], "masks": rectangles(box[:0])}
    metric = MeanAP(1, iou_type)
    # The wrong one comes first: half of what is found at the only recall there is.
    metric.update([{**one, "scores": torch.tensor([0.9])}, {**one, "scores": torch.tensor([0.5])}], [none, one])
    assert metric.compute()["mean"].item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_found_and_nothing_there(iou_type: str, backend: str) -> None:
    box = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    none = {"boxes": box[:0], "labels": torch.tensor([0])[:0], "masks": rectangles(box[:0]), "scores": torch.zeros(0)}
    one = {"boxes": box, "labels": torch.tensor([1]), "masks": rectangles(box)}
    missed, empty = MeanAP(2, iou_type), MeanAP(2, iou_type)
    missed.update([none], [one])
    assert missed.compute()["mean"] == 0
    assert [str(value) for value in missed.by_class().tolist()] == ["nan", "0.0"]
    empty.update([none], [none])
    assert {name: value.item() for name, value in empty.compute().items()} == {"mean": 0.0}
    assert empty.by_class().isnan().all()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_crowd_is_neither_right_nor_wrong(iou_type: str, backend: str) -> None:
    boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 140.0, 140.0]])
    labels = torch.tensor([0, 0])
    there = {"boxes": boxes, "labels": labels, "masks": rectangles(boxes), "iscrowd": torch.tensor([0, 1])}
    within = torch.tensor([[10.0, 10.0, 50.0, 50.0], [90.0, 90.0, 120.0, 120.0]])
    masks = rectangles(within)
    masks[1, 90:120, 90:120] = 1
    found = {"boxes": within, "labels": labels, "masks": masks, "scores": torch.tensor([0.5, 0.9])}
    metric = MeanAP(1, iou_type)
    metric.update([found], [there])
    assert metric.compute()["mean"].item() == pytest.approx(1, abs=1e-6)


def test_regions_are_those_of_torchmetrics() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 20, 30, generator=draw)
    targets = torch.randint(0, 5, (6, 20, 30), generator=draw)
    targets[torch.rand(6, 20, 30, generator=draw) < 0.2] = 255
    metric = RegionScores(5)
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(logits[part], targets[part])
    known = targets != 255
    predicted, true = logits.argmax(1)[known], targets[known]
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


def test_regions_by_hand() -> None:
    """Class 2 is nowhere, class 3 only predicted, the last pixel unknown."""
    targets = torch.tensor([[[0, 0, 1, 1, 1, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 3, 2]]])
    metric = RegionScores(4)
    metric.update(torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float(), targets)
    assert [str(round(value, 4)) for value in metric.by_class().tolist()] == ["0.5", "0.5", "nan", "0.0"]
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx({"mean": 1 / 3, "dice": (2 / 3 + 2 / 3 + 0) / 3, "pixel_accuracy": 3 / 5})


def test_regions_where_nothing_is_known() -> None:
    metric = RegionScores(3)
    metric.update(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "mean": 0.0, "dice": 0.0, "pixel_accuracy": 0.0,
    }  # fmt: skip
    assert metric.by_class().isnan().all()
    metric.reset()
    metric.update(torch.eye(3)[None, :, :, None], torch.tensor([[[0], [1], [1]]]))
    assert metric.by_class().tolist()[:2] == [1, 0.5]


def test_a_table_has_a_row_per_class_and_a_column_per_metric() -> None:
    values = {"mask_mAP": torch.tensor([0.5, 0.25]), "mAP": torch.tensor([1.0, 0.0])}
    assert table_of(values, dict.fromkeys(values, "AP"), ["cat", "dog"]) == {
        "cat": {"mask_mAP AP": 0.5, "mAP AP": 1.0},
        "dog": {"mask_mAP AP": 0.25, "mAP AP": 0.0},
    }
