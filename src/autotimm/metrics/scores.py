"""Metrics with several values: average precision of detections, overlap of segmentation regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.detection import MeanAveragePrecision

from autotimm.constants import IGNORE_INDEX
from autotimm.metrics.class_counts import linear

__all__ = ["MeanAP", "RegionScores", "Scores", "table_of"]


class Scores(Metric, ABC):
    """Base class of metrics with several values, of which ``mean`` is logged under the name of the metric.

    The computation is done by an inner metric, which holds the states and reduces them over processes.

    Args:
        inner: The metric that computes the values.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    prefixed: ClassVar[bool]
    """Whether the other values are logged with the metric's name as a prefix (``mAP_50``), or under their own names."""

    headline: ClassVar[tuple[str, ...]]
    """The values shown in the progress line of an epoch. The others appear in tables only."""

    per_class: ClassVar[str]
    """Name of the values of :meth:`by_class`."""

    def __init__(self, inner: Metric) -> None:
        super().__init__()
        self.inner = inner

    def update(self, predictions: Any, targets: Any) -> None:
        """Add one batch."""
        self.inner.update(predictions, targets)

    def reset(self) -> None:
        """Discard all batches."""
        super().reset()
        self.inner.reset()

    @abstractmethod
    def compute(self) -> Mapping[str, Tensor]:
        """Return the values over all batches, ``mean`` first. Values that are undefined are left out."""

    @abstractmethod
    def by_class(self) -> Tensor:
        """Return one value per class (C,), NaN where it is undefined."""


class _AveragePrecision(MeanAveragePrecision):
    """COCO's evaluation of objects whose masks are run lengths already: pixels of 100 masks would fill the memory."""

    def update(self, preds: Sequence[Mapping[str, Any]], target: Sequence[Mapping[str, Any]]) -> None:
        for found in preds:
            self.detection_labels.append(found["labels"])
            self.detection_scores.append(found["scores"])
        for true in target:
            self.groundtruth_labels.append(true["labels"])
            self.groundtruth_crowds.append(true.get("iscrowd", torch.zeros_like(true["labels"])))
            self.groundtruth_area.append(true.get("area", torch.zeros_like(true["labels"])))
        # With masks alone, torchmetrics drops images without true objects and thereby ignores the false positives in
        # them. It keeps every image that has boxes, although it does not read them.
        self.detection_box += [_as_coco(found["boxes"]) for found in preds]
        self.groundtruth_box += [_as_coco(true["boxes"]) for true in target]
        if "segm" in self.iou_type:
            self.detection_mask.extend(_run_lengths(found["masks"]) for found in preds)  # type: ignore[misc]  # as there
            self.groundtruth_mask.extend(_run_lengths(true["masks"]) for true in target)  # type: ignore[misc]


def _run_lengths(masks: Any) -> tuple[Any, ...]:
    """Masks as torchmetrics keeps them, of run lengths or of pixels (K, H, W)."""
    if not isinstance(masks, Tensor):
        return tuple(masks)
    encoded = (coco_mask.encode(np.asfortranarray(mask.to(torch.uint8).cpu().numpy())) for mask in masks)
    return tuple((tuple(mask["size"]), mask["counts"]) for mask in encoded)


def _as_coco(boxes: Tensor) -> Tensor:
    """Boxes (K, 4) of x1, y1, x2, y2 as x, y, width, height; in 64 bits, as programs that read COCO's files compute."""
    boxes = boxes.reshape(-1, 4).to(torch.float32 if boxes.device.type == "mps" else torch.float64)
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


class MeanAP(Scores):
    """COCO mean average precision: the mean over classes and over ten IoU thresholds from 0.5 to 0.95.

    With the further values these are the twelve figures of COCO: ``50`` and ``75`` (at the single thresholds 0.5 and
    0.75), ``small``, ``medium`` and ``large`` (objects with an area below 32² pixels, up to 96², and above), and the
    average recall: ``recall`` with ``max_objects`` detections per image, ``recall_small``, ``recall_medium`` and
    ``recall_large``, and with a single detection and with ten ``recall_1`` and ``recall_10``. All are in [0, 1]. They
    are computed by faster-coco-eval if it is installed (the extra ``coco``), otherwise by pycocotools, with the same
    results.

    Args:
        num_classes: Number of classes C.
        iou_type: ``"bbox"`` compares boxes, ``"segm"`` masks.
        max_objects: Detections per image that count, those with the highest scores; 100 in COCO.

    Source:
        Lin et al., "Microsoft COCO: common objects in context", ECCV 2014.
    """

    prefixed, headline, per_class = True, ("mean", "50"), "AP"

    def __init__(self, num_classes: int, iou_type: str = "bbox", max_objects: int = 100) -> None:
        backend = "faster_coco_eval" if find_spec("faster_coco_eval") else "pycocotools"
        # The thresholds of pycocotools. torchmetrics rounds its own to 32 bits, and a recall of exactly 0.6 misses one.
        overlaps, recalls = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
        most = [min(1, max_objects), min(10, max_objects), max_objects]
        literals: Any = {"iou_type": iou_type, "backend": backend}  # annotated as Literal in torchmetrics
        super().__init__(
            _AveragePrecision(
                iou_thresholds=overlaps,
                rec_thresholds=recalls,
                max_detection_thresholds=most,
                extended_summary=True,
                **literals,
            )
        )
        self.num_classes, self._most = num_classes, most

    def update(self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add one batch.

        Args:
            predictions: For each image, a dictionary of ``boxes`` (K, 4), ``scores`` (K,), ``labels`` (K,) and, for
                ``segm``, ``masks``: K run lengths of COCO as ``((height, width), counts)``, or pixels (K, H, W).
            targets: For each image, a dictionary of ``boxes``, ``labels`` and, for ``segm``, ``masks``, with
                ``iscrowd`` (K,) and ``area`` (K,) where they are known; an area of 0 is that of the box or mask.
        """
        super().update(predictions, targets)

    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = self.inner.compute()  # cached by torchmetrics until the next batch
        return summary

    def compute(self) -> Mapping[str, Tensor]:
        """Return the mean average precision and the further values."""
        summary = self._summary()
        names = {"mean": "map", "50": "map_50", "75": "map_75", "small": "map_small", "medium": "map_medium"}
        names |= {"large": "map_large", "recall": f"mar_{self._most[2]}", "recall_1": f"mar_{self._most[0]}"}
        names |= {"recall_10": f"mar_{self._most[1]}", "recall_small": "mar_small", "recall_medium": "mar_medium"}
        names |= {"recall_large": "mar_large"}
        values = {name: summary[key].to(torch.float32) for name, key in names.items()}
        if self._most[2] != 100 and "precision" in summary:  # of another number pycocotools gives no mean, but -1
            defined = summary["precision"][..., 0, -1]
            values["mean"] = defined[defined > -1].mean().nan_to_num(-1).to(torch.float32)
        # COCO returns -1 if there are no true objects. The mean, which a run monitors, is 0 then.
        return {name: value.clamp(min=0) for name, value in values.items() if value >= 0 or name == "mean"}

    def by_class(self) -> Tensor:
        """Return the average precision of each class (C,)."""
        summary = self._summary()
        result = torch.full((self.num_classes,), torch.nan)
        if "precision" not in summary:  # there were no images
            return result
        precision = summary["precision"][..., 0, -1]  # (IoU, recall, class), for all areas and most detections
        for column, label in enumerate(torch.atleast_1d(summary["classes"]).tolist()):
            defined = precision[:, :, column]
            defined = defined[defined > -1]
            if len(defined):
                result[label] = defined.mean()
        return result


_AT_ONCE = 1 << 22  # pixels


class RegionScores(Scores):
    """Mean intersection over union (IoU) of segmentation regions, over classes.

    Further values: the mean Dice coefficient (``dice``) and the share of correct pixels (``pixel_accuracy``). All are
    in [0, 1] and computed from one confusion matrix of all batches. Classes that occur in neither the targets nor the
    predictions are left out of the means.

    Args:
        num_classes: Number of classes C.
        ignore_index: Target of unlabeled pixels, which are left out.
    """

    prefixed, headline, per_class = False, ("mean", "pixel_accuracy"), "IoU"

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)
        super().__init__(linear(matrix))

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Args:
            predictions: Logits (N, C, H, W), or class indices (N, H, W), of images of any size.
            targets: Class indices (N, H, W).
        """
        if predictions.ndim > targets.ndim:
            super().update(predictions, targets)
            return
        # In parts: torchmetrics makes 64-bit copies of them.
        parts = zip(predictions.flatten().split(_AT_ONCE), targets.flatten().split(_AT_ONCE), strict=True)
        for predicted, true in parts:
            super().update(predicted, true)

    def _pixel_counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count correct, predicted and true pixels per class, (C,) each."""
        confusion: Tensor = self.inner.compute().to(torch.float64)
        return confusion.diagonal(), confusion.sum(0), confusion.sum(1)

    def compute(self) -> Mapping[str, Tensor]:
        """Return the mean IoU, the mean Dice coefficient and the pixel accuracy."""
        correct, predicted, true = self._pixel_counts()
        occurs = predicted + true > 0
        dice = (2 * correct / (predicted + true))[occurs]
        values = {
            "mean": self.by_class().nanmean(),
            "dice": dice.mean(),
            "pixel_accuracy": correct.sum() / true.sum(),
        }
        return {name: value.nan_to_num(0.0).to(torch.float32) for name, value in values.items()}

    def by_class(self) -> Tensor:
        """Return the IoU of each class (C,)."""
        correct, predicted, true = self._pixel_counts()
        return correct / (predicted + true - correct)  # 0 / 0 is NaN and marks a class that does not occur


def table_of(
    values: Mapping[str, Tensor], per_class: Mapping[str, str], class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Arrange the per-class values of several metrics in a table with a row per class and a column per metric.

    Args:
        values: For each metric, one value per class (C,), NaN where it is undefined.
        per_class: For each metric, the name of its per-class values, such as ``"AP"`` or ``"IoU"``. It is the title of
            the column, preceded by the name of the metric if there are several.
        class_names: Names of the C classes.

    Returns:
        For each class name, the values by title.

    Example:
        >>> table_of({"mIoU": torch.tensor([0.5, 0.25])}, {"mIoU": "IoU"}, ["cat", "dog"])
        {'cat': {'IoU': 0.5}, 'dog': {'IoU': 0.25}}
    """
    titles = {name: per_class[name] if len(values) == 1 else f"{name} {per_class[name]}" for name in values}
    columns = {titles[name]: column.tolist() for name, column in values.items()}
    return {name: {title: column[index] for title, column in columns.items()} for index, name in enumerate(class_names)}
