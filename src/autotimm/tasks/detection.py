"""What tasks that find objects share: learning from boxes, measuring and reading what was found.

Object detection: a box, a class and a score for every object.

Instance segmentation: a mask, a box, a class and a score for every object.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from autotimm.errors import number, require, require_choice
from autotimm.metrics import MetricConfig, mean_ap
from autotimm.models.backbone.weights import resolve_weights
from autotimm.models.detection.build_detector import build_detector
from autotimm.tasks.base import Task, check_num_classes, check_spec, names_of
from autotimm.tasks.letterbox import paste, places, to_original
from autotimm.types import Batch, DataSpec, ObjectPrediction, Placement, Stage, Step

__all__ = ["InstanceSegmentor", "ObjectDetector", "ObjectTask"]


class ObjectTask(Task, ABC):
    """Find objects with a detector of torchvision on any timm backbone with feature maps.

    Args:
        backbone: Name of a timm model.
        num_classes: Number of classes C, at least 1; there is none for the background.
        arch: The detector.
        width: Channels of pyramid and heads.
        threshold: Score in (0, 1) from which on an object is reported by prediction; measuring sees all.
        pretrained: As for :class:`autotimm.ImageClassifier`; of the backbone alone.
        image_size: Side of the square images, for backbones that must know it.
        drop_path_rate: Probability of skipping a residual block.
        options: What all tasks share.
    """

    kinds: ClassVar[tuple[str, ...]] = ("boxes", "instances")
    threshold: float

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        arch: str,
        width: int,
        threshold: float,
        pretrained: bool | str | None,
        image_size: int | None,
        drop_path_rate: float,
        **options: Any,
    ) -> None:
        owner = type(self).__name__
        check_num_classes(num_classes, 1, owner)
        require(0 < number(threshold) < 1, "threshold", owner, "in (0, 1)", threshold, "Give for example 0.3.")
        self._num_classes, self.threshold = num_classes, threshold
        weights = resolve_weights(backbone, False if self.is_loading else pretrained)

        def network(seed: int) -> Any:
            return build_detector(
                arch, backbone, num_classes,
                weights=weights, seed=seed, image_size=image_size, width=width, drop_path_rate=drop_path_rate,
            )  # fmt: skip

        super().__init__(network, weights=weights, **options)

    def step(self, batch: Batch, stage: Stage) -> Step:
        """Named losses in training; elsewhere what was found and what is there, in pixels of the original image."""
        if stage is Stage.TRAIN:
            return Step(self.network(batch.images, [_learned(target) for target in batch.targets or ()]))
        output = self.infer(batch.images)
        if batch.targets is None:
            return Step({}, output)
        at, side = places(batch), batch.images.shape[-1]
        found = [self._measured(one, place, side) for one, place in zip(output, at, strict=True)]
        there = [_true(one, place) for one, place in zip(batch.targets, at, strict=True)]
        return Step({}, found, there)

    def _measured(self, found: dict[str, Tensor], place: Placement, side: int) -> dict[str, Tensor]:
        moved = {**found, "boxes": to_original(found["boxes"], place)}
        if "masks" in found:  # at the size at which the true masks are known
            moved["masks"] = paste(found["masks"], found["boxes"], side, side)
        return moved

    def decode(self, output: Sequence[dict[str, Tensor]], batch: Batch) -> list[ObjectPrediction]:
        """Objects whose score reaches the threshold, in pixels of the original image."""
        found = zip(output, batch.ids, places(batch), strict=True)
        return [self._prediction(one, id, place) for one, id, place in found]

    def _prediction(self, found: dict[str, Tensor], id: str, place: Placement) -> ObjectPrediction:
        found = {name: value.cpu()[found["scores"].cpu() >= self.threshold] for name, value in found.items()}
        boxes = to_original(found["boxes"].float(), place)
        masks: tuple[str, ...] = ()
        if "masks" in found:
            pasted = paste(found["masks"].float(), boxes, place.height, place.width)
            masks = tuple(coco_mask.encode(np.asfortranarray(one.numpy()))["counts"].decode() for one in pasted)
        names = self.class_names
        return ObjectPrediction(
            id,
            tuple(names[label] for label in found["labels"].tolist()),
            tuple(found["scores"].tolist()),
            tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()),
            (place.height, place.width),
            masks,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels; their numbers before the data is known."""
        return names_of(self.spec, self._num_classes)

    def check_data(self, spec: DataSpec) -> None:
        """Refuse data with another number of classes, or of another kind."""
        check_spec(spec, self.kinds, self._num_classes, type(self).__name__)


def _learned(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is learned from: everything but crowds."""
    keep = ~target["crowd"] if "crowd" in target else torch.ones_like(target["labels"], dtype=torch.bool)
    return {name: value[keep] for name, value in target.items() if name != "crowd"}


def _true(target: dict[str, Tensor], place: Placement) -> dict[str, Tensor]:
    """What is measured with, in torchmetrics' words."""
    true = {"boxes": to_original(target["boxes"], place), "labels": target["labels"]}
    if "crowd" in target:
        true["iscrowd"] = target["crowd"].to(torch.int64)
    if "masks" in target:
        true["masks"] = target["masks"].to(torch.uint8)
    return true


ARCHS = ("fcos", "retinanet", "faster_rcnn")


class ObjectDetector(ObjectTask):
    """Detect objects with FCOS, RetinaNet or Faster R-CNN on any timm backbone with feature maps.

    Args:
        backbone: Name of a timm model, see :func:`autotimm.list_backbones`. Those with several strides get a feature
            pyramid (Lin et al., CVPR 2017), plain ViTs a simple one (Li et al., "Exploring plain vision transformer
            backbones for object detection", ECCV 2022).
        num_classes: Number of classes C, at least 1; there is none for the background.
        arch: ``fcos`` (Tian et al., ICCV 2019), ``retinanet`` (Lin et al., ICCV 2017) or ``faster_rcnn`` (Ren et al.,
            NeurIPS 2015), as torchvision has them.
        width: Channels of pyramid and heads, a multiple of 64, and for Faster R-CNN half the regions looked at per
            image. 64 is small and fast.
        threshold: Score in (0, 1) from which on an object is reported by prediction; measuring sees all.
        pretrained: ``None`` loads pretrained weights of the backbone if they can be had, ``True`` insists on them,
            ``False`` never loads them; a path loads that file.
        image_size: Side in pixels of the square images, for backbones that must know it; ``None`` is their default.
        drop_path_rate: Probability of skipping a residual block.
        options: What all tasks share, see :class:`autotimm.tasks.base.Task`.

    Shape:
        - images: (N, 3, S, S), RGB ``uint8``, or floats in [0, 1].
        - output in evaluation: N dictionaries of ``boxes`` (K, 4), ``scores`` (K,) and ``labels`` (K,).

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the backbone is unknown or has no feature maps.
        WeightsError: If pretrained weights were insisted on and cannot be had.

    Example:
        >>> import torch
        >>> from autotimm import ObjectDetector
        >>> model = ObjectDetector("test_resnet", num_classes=2, width=64, pretrained=False).eval()
        >>> sorted(model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0])
        ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        arch: str = "fcos",
        width: int = 256,
        threshold: float = 0.3,
        pretrained: bool | str | None = None,
        image_size: int | None = None,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        require_choice("arch", type(self).__name__, arch, ARCHS)
        super().__init__(
            backbone, num_classes, arch=arch, width=width, threshold=threshold, pretrained=pretrained,
            image_size=image_size, drop_path_rate=drop_path_rate, **options,
        )  # fmt: skip

    def default_metrics(self) -> list[MetricConfig]:
        """COCO's mean average precision of boxes."""
        return [mean_ap("mAP", self._num_classes, "bbox")]


INSTANCE_ARCHS = ("mask_rcnn",)


class InstanceSegmentor(ObjectTask):
    """Find objects and their outlines with Mask R-CNN on any timm backbone with feature maps.

    Args:
        backbone: Name of a timm model, as for :class:`autotimm.ObjectDetector`.
        num_classes: Number of classes C, at least 1; there is none for the background.
        arch: ``mask_rcnn`` (He et al., ICCV 2017), as torchvision has it.
        width: Channels of pyramid and heads, a multiple of 64, and half the regions looked at per image. 64 is small
            and fast.
        threshold: Score in (0, 1) from which on an object is reported by prediction; measuring sees all.
        pretrained: ``None`` loads pretrained weights of the backbone if they can be had, ``True`` insists on them,
            ``False`` never loads them; a path loads that file.
        image_size: Side in pixels of the square images, for backbones that must know it; ``None`` is their default.
        drop_path_rate: Probability of skipping a residual block.
        options: What all tasks share, see :class:`autotimm.tasks.base.Task`.

    Shape:
        - images: (N, 3, S, S), RGB ``uint8``, or floats in [0, 1].
        - output in evaluation: N dictionaries of ``boxes`` (K, 4), ``scores`` (K,), ``labels`` (K,) and ``masks``
          (K, 28, 28), probabilities within the boxes.

    Raises:
        UsageError: If an argument is wrong.
        ModelError: If the backbone is unknown or has no feature maps.
        WeightsError: If pretrained weights were insisted on and cannot be had.

    Example:
        >>> import torch
        >>> from autotimm import InstanceSegmentor
        >>> model = InstanceSegmentor("test_resnet", num_classes=2, width=64, pretrained=False).eval()
        >>> sorted(model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0])
        ['boxes', 'labels', 'masks', 'scores']
    """

    kinds = ("instances",)

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        arch: str = "mask_rcnn",
        width: int = 256,
        threshold: float = 0.5,
        pretrained: bool | str | None = None,
        image_size: int | None = None,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        require_choice("arch", type(self).__name__, arch, INSTANCE_ARCHS)
        super().__init__(
            backbone, num_classes, arch=arch, width=width, threshold=threshold, pretrained=pretrained,
            image_size=image_size, drop_path_rate=drop_path_rate, **options,
        )  # fmt: skip

    def default_metrics(self) -> list[MetricConfig]:
        """COCO's mean average precision of masks, and that of boxes."""
        return [mean_ap("mask_mAP", self._num_classes, "segm"), mean_ap("mAP", self._num_classes, "bbox")]
