"""One-stage detectors: torchvision's FCOS and RetinaNet on the pyramid of a timm backbone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from autotimm.models.backbone.feature_maps import Level
from autotimm.models.detection.detector import (
    Detections,
    Detector,
    ObjectScore,
    Size,
    StridedAnchors,
    Targets,
    nearest_candidate,
)  # fmt: skip
from autotimm.models.layers.feature_pyramid import Pyramid
from autotimm.models.layers.normalize import Normalize

__all__ = ["OneStageDetector", "build_fcos", "build_retinanet"]

_LOSS_NAMES = {"bbox_regression": "box", "bbox_ctrness": "centerness"}


class _NoBackbone(nn.Module):
    """Placeholder for the backbone of torchvision's detectors, which is not run."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


def build_fcos(num_classes: int, width: int, strides: Sequence[int], **limits: Any) -> tuple[FCOS, StridedAnchors]:
    """Build torchvision's FCOS (Tian et al., ICCV 2019) and its reference boxes: one per cell, as large as the stride.

    Args:
        num_classes: Number of classes, without a background.
        width: Number of channels of the pyramid.
        strides: Strides of the pyramid in pixels.
        limits: Further arguments of torchvision's class.
    """
    anchors = StridedAnchors([[stride] for stride in strides], [1.0], strides)
    model = FCOS(_NoBackbone(width), num_classes, anchor_generator=anchors.generator, **limits)
    return model, anchors


def build_retinanet(
    num_classes: int, width: int, strides: Sequence[int], **limits: Any
) -> tuple[RetinaNet, StridedAnchors]:
    """Build torchvision's RetinaNet (Lin et al., ICCV 2017) and its anchors.

    The heads have group normalization, as in torchvision's ``retinanet_resnet50_fpn_v2``. Arguments as for
    :func:`build_fcos`.
    """
    sizes = [[4 * stride * 2 ** (part / 3) for part in range(3)] for stride in strides]
    anchors = StridedAnchors(sizes, (0.5, 1.0, 2.0), strides)
    per_cell = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(width, per_cell, num_classes, norm_layer=partial(nn.GroupNorm, 32))
    model = RetinaNet(_NoBackbone(width), num_classes, anchor_generator=anchors.generator, head=head, **limits)
    return model, anchors


class OneStageDetector(Detector):
    """A detector that predicts boxes and classes directly for each cell of the pyramid.

    Args:
        normalize: The first layer.
        backbone: A timm model.
        levels: The feature maps to compute.
        pyramid: Converts them to maps of equal width.
        model: torchvision's FCOS or RetinaNet. Its heads, losses and postprocessing are used, its transform and its
            backbone are not.
        anchors: The anchors of the pyramid's cells.
    """

    def __init__(
        self,
        normalize: Normalize,
        backbone: nn.Module,
        levels: Sequence[Level],
        pyramid: Pyramid,
        model: FCOS | RetinaNet,
        anchors: StridedAnchors,
    ) -> None:
        super().__init__(normalize, backbone, levels, pyramid)
        self.model = model
        self.anchors = anchors

    def head_outputs(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Compute what the heads say of each cell, in full precision, under torchvision's names."""
        # Half precision is too coarse for coordinates: bfloat16 represents 640 and 644, but nothing between them.
        return {name: values.float() for name, values in self.model.head(maps).items()}

    def losses(self, maps: list[Tensor], size: Size, targets: list[Targets]) -> dict[str, Tensor]:
        """Compute the losses ``classification`` and ``box``, and for FCOS ``centerness``."""
        outputs, layout = self.head_outputs(maps), self.anchors.layout(maps)
        anchors = [torch.cat(layout)] * len(targets)
        counts = ([len(level) for level in layout],) if isinstance(self.model, FCOS) else ()
        losses = self.model.compute_loss(targets, outputs, anchors, *counts)
        return {_LOSS_NAMES.get(name, name): loss for name, loss in losses.items()}

    def detect(self, maps: list[Tensor], size: Size) -> list[Detections]:
        """Return the boxes, scores and labels of each image."""
        outputs, layout = self.head_outputs(maps), self.anchors.layout(maps)
        counts, num_images = [len(level) for level in layout], len(maps[0])
        by_level = {name: list(values.split(counts, dim=1)) for name, values in outputs.items()}
        detections: list[Detections] = self.model.postprocess_detections(
            by_level, [layout] * num_images, [size] * num_images
        )
        return detections

    def _candidates(self, images: Tensor, label: int) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Logarithms of the scores of a class (N, A), the outputs of the heads, and the anchors of each map."""
        maps = self.pyramid(self.maps(images))
        outputs = self.head_outputs(maps)
        logits = F.logsigmoid(outputs["cls_logits"][..., label])
        if "bbox_ctrness" in outputs:  # of FCOS, whose score is the geometric mean of two
            logits = (logits + F.logsigmoid(outputs["bbox_ctrness"][..., 0])) / 2
        return logits, outputs, self.anchors.layout(maps)

    def object_score(self, images: Tensor, found: Detections) -> ObjectScore:
        """The score of the cell, and of RetinaNet's anchor, that became a detection; its logarithm is the logit."""
        label = int(found["labels"])
        with torch.no_grad():
            logs, outputs, layout = self._candidates(images, label)
            coder, anchors = self.model.box_coder, torch.cat(layout)
            decode = coder.decode if isinstance(self.model, FCOS) else coder.decode_single
            height, width = images.shape[-2:]
            boxes = decode(outputs["bbox_regression"][0], anchors)
            index = nearest_candidate(boxes, logs[0].exp(), found, (height, width))
        ends = torch.tensor([len(level) for level in layout]).cumsum(0)

        def logit(images: Tensor) -> Tensor:
            return self._candidates(images, label)[0][:, index]

        return ObjectScore(logit, lambda images: logit(images).exp(), int((ends <= index).sum()))
