"""Metrics that give several values at once: average precision of objects, overlap of regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.detection import MeanAveragePrecision

__all__ = ["MeanAP", "RegionScores", "Scores"]


class Scores(Metric, ABC):
    """A metric of several values. ``mean`` is logged under the metric's name.

    Its computation is another metric's, which holds the states and adds them up over processes.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    prefixed: ClassVar[bool]
    """Whether the other values are logged behind the metric's name, as ``mAP_50``, or under their own."""

    headline: ClassVar[tuple[str, ...]]
    """The values for the line of an epoch; the others are in tables only."""

    per_class: ClassVar[str]
    """What the values of :meth:`by_class` are called."""

    def __init__(self, inner: Metric) -> None:
        super().__init__()
        self.inner = inner

    def update(self, predictions: Any, targets: Any) -> None:
        """Take in one batch."""
        self.inner.update(predictions, targets)

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self.inner.reset()

    @abstractmethod
    def compute(self) -> Mapping[str, Tensor]:
        """The values over all batches, ``mean`` first; those that nothing was measured for are missing."""

    @abstractmethod
    def by_class(self) -> Tensor:
        """One value per class (C,), NaN where nothing was measured."""


class MeanAP(Scores):
    """COCO's average precision of objects, the mean over classes and ten overlaps from 0.5 to 0.95.

    Also at the overlaps 0.5 (``50``) and 0.75 (``75``) alone, for small, medium and large objects (below 32² pixels, up
    to 96², above), and the recall with a hundred objects per image. Computed by faster-coco-eval where that is
    installed, and else by pycocotools; both give the same numbers (Lin et al., "Microsoft COCO", ECCV 2014).

    Args:
        num_classes: Number of classes C.
        iou_type: ``bbox`` compares boxes, ``segm`` masks.
    """

    prefixed, headline, per_class = True, ("mean", "50"), "AP"

    def __init__(self, num_classes: int, iou_type: str = "bbox") -> None:
        backend = "faster_coco_eval" if find_spec("faster_coco_eval") else "pycocotools"
        super().__init__(
            MeanAveragePrecision(iou_type=iou_type, backend=backend, extended_summary=True)  # type: ignore[arg-type]  # Literals
        )
        self.num_classes = num_classes

    def _all(self) -> dict[str, Any]:
        found: dict[str, Any] = self.inner.compute()  # kept by torchmetrics until the next batch
        return found

    def compute(self) -> Mapping[str, Tensor]:
        """Mean average precision, and what it is made of."""
        found = self._all()
        names = {"mean": "map", "50": "map_50", "75": "map_75", "small": "map_small", "medium": "map_medium"}
        names |= {"large": "map_large", "recall": "mar_100"}
        values = {name: found[key].to(torch.float32) for name, key in names.items()}
        # COCO writes -1 where there is nothing to find; the mean is 0 then, for a run must have it.
        return {name: value.clamp(min=0) for name, value in values.items() if value >= 0 or name == "mean"}

    def by_class(self) -> Tensor:
        """Average precision per class."""
        found = self._all()
        precision = found["precision"][..., 0, -1]  # overlaps, recalls, classes: of all sizes, with 100 objects
        result = torch.full((self.num_classes,), torch.nan)
        for column, label in enumerate(torch.atleast_1d(found["classes"]).tolist()):
            known = precision[:, :, column]
            known = known[known > -1]
            if len(known):
                result[label] = known.mean()
        return result


class RegionScores(Scores):
    """How well regions overlap: the mean over classes of intersection over union.

    Also the mean Dice coefficient (``dice``) and the share of pixels that are right (``pixel_accuracy``). A class that
    is neither there nor predicted does not count.

    Args:
        num_classes: Number of classes C.
        ignore_index: Class index of pixels that are left out.
    """

    prefixed, headline, per_class = False, ("mean", "pixel_accuracy"), "IoU"

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False))

    def _overlaps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Right pixels, predicted pixels and true pixels per class (C,)."""
        counts: Tensor = self.inner.compute().to(torch.float64)
        return counts.diagonal(), counts.sum(0), counts.sum(1)

    def compute(self) -> Mapping[str, Tensor]:
        """Mean intersection over union, Dice and accuracy."""
        right, predicted, true = self._overlaps()
        counted = predicted + true > 0
        dice = (2 * right / (predicted + true))[counted]
        values = {
            "mean": self.by_class().nanmean(),
            "dice": dice.mean(),
            "pixel_accuracy": right.sum() / true.sum(),
        }
        return {name: value.nan_to_num(0.0).to(torch.float32) for name, value in values.items()}

    def by_class(self) -> Tensor:
        """Intersection over union per class."""
        right, predicted, true = self._overlaps()
        return right / (predicted + true - right)  # 0 / 0 is NaN: not counted


def table_of(scores: Mapping[str, Scores], class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The values per class of several metrics: a row per class, a column per metric.

    Args:
        scores: The metrics by name; each gives the column ``AP``, ``IoU`` or ``name AP`` where there are several.
        class_names: Names of the classes.
    """
    columns = {one.per_class if len(scores) == 1 else f"{name} {one.per_class}": one for name, one in scores.items()}
    values = {title: one.by_class().tolist() for title, one in columns.items()}
    return {name: {title: row[index] for title, row in values.items()} for index, name in enumerate(class_names)}
