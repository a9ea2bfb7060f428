"""Metrics that give several values at once: average precision of objects, overlap of regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.detection import MeanAveragePrecision

from autotimm.constants import IGNORE_INDEX

__all__ = ["MeanAP", "RegionScores", "Scores", "table_of"]


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
    installed (the extra ``coco``), and else by pycocotools; both give the same numbers (Lin et al., "Microsoft COCO",
    ECCV 2014).

    Args:
        num_classes: Number of classes C.
        iou_type: ``bbox`` compares boxes, ``segm`` masks.
    """

    prefixed, headline, per_class = True, ("mean", "50"), "AP"

    def __init__(self, num_classes: int, iou_type: str = "bbox") -> None:
        backend = "faster_coco_eval" if find_spec("faster_coco_eval") else "pycocotools"
        # As pycocotools has them: torchmetrics' own are rounded to 32 bits, and a recall of exactly 0.6 falls below.
        overlaps, recalls = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
        words: Any = {"iou_type": iou_type, "backend": backend}  # Literals to a type checker
        super().__init__(
            MeanAveragePrecision(iou_thresholds=overlaps, rec_thresholds=recalls, extended_summary=True, **words)
        )
        self.num_classes = num_classes

    def update(self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in one batch: dictionaries of ``boxes``, ``scores``, ``labels`` and ``masks``, and of what is there."""
        super().update(predictions, targets)
        inner = cast(MeanAveragePrecision, self.inner)
        if "segm" in inner.iou_type:
            # For masks alone torchmetrics leaves out images without true objects, and forgives what is found in them.
            # It keeps all images if they have boxes, which it does not look at.
            inner.detection_box += [one["boxes"] for one in predictions]
            inner.groundtruth_box += [one["boxes"] for one in targets]

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
        result = torch.full((self.num_classes,), torch.nan)
        if "precision" not in found:  # there were no images
            return result
        precision = found["precision"][..., 0, -1]  # overlaps, recalls, classes: of all sizes, with 100 objects
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

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
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


def table_of(
    values: Mapping[str, Tensor], per_class: Mapping[str, str], class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Put the values per class of several metrics together: a row per class, a column per metric.

    Args:
        values: One value per class (C,) for each metric, NaN where nothing was measured.
        per_class: What these values are called for each metric: the title ``AP`` or ``IoU`` of its column, ``name AP``
            where there are several.
        class_names: Names of the C classes.

    Example:
        >>> table_of({"mIoU": torch.tensor([0.5, 0.25])}, {"mIoU": "IoU"}, ["cat", "dog"])
        {'cat': {'IoU': 0.5}, 'dog': {'IoU': 0.25}}
    """
    titles = {name: per_class[name] if len(values) == 1 else f"{name} {per_class[name]}" for name in values}
    columns = {titles[name]: one.tolist() for name, one in values.items()}
    return {name: {title: row[index] for title, row in columns.items()} for index, name in enumerate(class_names)}
