"""Instance segmentation: a mask, a box, a class and a score for every object."""

from __future__ import annotations

from typing import Any

from autotimm.errors import require_choice
from autotimm.metrics import MetricConfig, mean_ap
from autotimm.tasks.objects import ObjectTask

__all__ = ["InstanceSegmentor"]

ARCHS = ("mask_rcnn",)


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
        require_choice("arch", type(self).__name__, arch, ARCHS)
        super().__init__(
            backbone, num_classes, arch=arch, width=width, threshold=threshold, pretrained=pretrained,
            image_size=image_size, drop_path_rate=drop_path_rate, **options,
        )  # fmt: skip

    def default_metrics(self) -> list[MetricConfig]:
        """COCO's mean average precision of masks, and that of boxes."""
        return [mean_ap("mask_mAP", self._num_classes, "segm"), mean_ap("mAP", self._num_classes, "bbox")]
