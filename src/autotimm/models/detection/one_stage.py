"""Detectors that look once: FCOS and RetinaNet of torchvision over our pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from autotimm.models.backbone.feature_maps import Level
from autotimm.models.detection.detector import Detector, Found, Objects, Size, StridedAnchors
from autotimm.models.layers.feature_pyramid import Pyramid
from autotimm.models.layers.normalize import Normalize

__all__ = ["OneStageDetector", "fcos", "retinanet"]

_NAMES = {"bbox_regression": "box", "bbox_ctrness": "centerness"}


class _NoBackbone(nn.Module):
    """Where torchvision's detectors have their backbone; ours has run before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


def fcos(num_classes: int, width: int, strides: Sequence[int], **limits: Any) -> tuple[FCOS, StridedAnchors]:
    """FCOS (Tian et al., ICCV 2019): one square per cell, as wide as the stride, says where in a box it lies."""
    anchors = StridedAnchors([[stride] for stride in strides], [1.0], strides)
    model = FCOS(_NoBackbone(width), num_classes, anchor_generator=anchors.generator, **limits)
    return model, anchors


def retinanet(num_classes: int, width: int, strides: Sequence[int], **limits: Any) -> tuple[RetinaNet, StridedAnchors]:
    """RetinaNet (Lin et al., ICCV 2017), with group normalization in its heads as torchvision's second version."""
    sizes = [[4 * stride * 2 ** (part / 3) for part in range(3)] for stride in strides]
    anchors = StridedAnchors(sizes, (0.5, 1.0, 2.0), strides)
    per_cell = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(width, per_cell, num_classes, norm_layer=partial(nn.GroupNorm, 32))
    model = RetinaNet(_NoBackbone(width), num_classes, anchor_generator=anchors.generator, head=head, **limits)
    return model, anchors


class OneStageDetector(Detector):
    """Boxes and classes straight from every cell of the pyramid.

    Args:
        normalize: The network's first layer.
        backbone: A model of timm.
        levels: The maps that it gives.
        pyramid: Makes of them maps of one width.
        model: FCOS or RetinaNet of torchvision. Its heads, losses and reading of results are used; its transform and
            its backbone are not.
        anchors: Where the cells of the pyramid lie.
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

    def _outputs(self, maps: list[Tensor]) -> dict[str, Tensor]:
        # Half precision is too coarse for coordinates: bfloat16 has 8 bits, and knows 640 and 644 but nothing between.
        return {name: values.float() for name, values in self.model.head(maps).items()}

    def losses(self, maps: list[Tensor], size: Size, targets: list[Objects]) -> dict[str, Tensor]:
        """``classification`` and ``box``, and for FCOS ``centerness``."""
        outputs, layout = self._outputs(maps), self.anchors.layout(maps)
        anchors = [torch.cat(layout)] * len(targets)
        counts = ([len(one) for one in layout],) if isinstance(self.model, FCOS) else ()
        losses = self.model.compute_loss(targets, outputs, anchors, *counts)
        return {_NAMES.get(name, name): loss for name, loss in losses.items()}

    def detect(self, maps: list[Tensor], size: Size) -> list[Found]:
        """Boxes, scores and labels of every image."""
        outputs, layout = self._outputs(maps), self.anchors.layout(maps)
        counts, images = [len(one) for one in layout], len(maps[0])
        split = {name: list(values.split(counts, dim=1)) for name, values in outputs.items()}
        found: list[Found] = self.model.postprocess_detections(split, [layout] * images, [size] * images)
        return found
