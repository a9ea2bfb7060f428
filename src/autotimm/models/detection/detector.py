"""The base class of detectors, with the format of their targets and detections, and the anchors that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, clip_boxes_to_image

from autotimm.errors import UsageError
from autotimm.models.backbone.feature_maps import DenseNetwork, Level
from autotimm.models.layers.feature_pyramid import Pyramid
from autotimm.models.layers.normalize import Normalize

__all__ = ["Detections", "Detector", "ObjectScore", "Size", "StridedAnchors", "Targets", "nearest_candidate"]

Targets = dict[str, Tensor]
"""The objects of one image, with the keys that :class:`Detector` describes."""

Detections = dict[str, Tensor]
"""The detections of one image, with the keys that :class:`Detector` describes."""

Size = tuple[int, int]
"""Height and width in pixels."""


class ObjectScore(NamedTuple):
    """The score of one detection as functions of images (N, 3, H, W), which return (N,).

    Attributes:
        logit: The number that becomes the score.
        probability: The score, in [0, 1].
        level: The map of the pyramid that it is computed from.
    """

    logit: Callable[[Tensor], Tensor]
    probability: Callable[[Tensor], Tensor]
    level: int


def nearest_candidate(boxes: Tensor, scores: Tensor, found: Detections, size: Size) -> int:
    """The index of the candidate that became a detection.

    Args:
        boxes: Boxes of all candidates, (A, 4), before they are clipped.
        scores: Their scores for the class of the detection, (A,).
        found: The detection: ``boxes`` (4,) and ``scores``, a scalar.
        size: Height and width of the input.
    """
    # Boxes without area have NaN in common, which would be the largest.
    overlap = box_iou(clip_boxes_to_image(boxes, size), found["boxes"][None])[:, 0].nan_to_num()
    return int((overlap - (scores - found["scores"]).abs()).argmax())


class Detector(DenseNetwork, ABC):
    """Base class of networks that detect objects, with or without masks.

    In contrast to torchvision's detectors it does not resize images: they come letterboxed to one size.

    Args:
        normalize: The first layer.
        backbone: A timm model.
        levels: The feature maps to compute.
        pyramid: Converts them to maps of equal width.

    Shape:
        - images: (N, 3, H, W), ``uint8`` in [0, 255] or float in [0, 1].
        - targets, in training: for each image ``boxes`` float (K, 4) as x1, y1, x2, y2 in pixels of the input and
          ``labels`` ``int64`` (K,) from 0; for instance segmentation also ``masks`` ``uint8`` (K, H, W). K may be 0.
        - output in training: named losses, scalars.
        - output in evaluation: for each image ``boxes``, ``scores`` and ``labels`` of the detections, highest score
          first; for instance segmentation also ``masks`` (K, 28, 28), probabilities within the box.

    Raises:
        UsageError: If targets are missing or malformed in training, or the sides of the images are not multiples of
            ``multiple``.
    """

    def __init__(self, normalize: Normalize, backbone: nn.Module, levels: Sequence[Level], pyramid: Pyramid) -> None:
        super().__init__(normalize, backbone, levels, pyramid.multiple)
        self.pyramid = pyramid

    @abstractmethod
    def losses(self, maps: list[Tensor], size: Size, targets: list[Targets]) -> dict[str, Tensor]:
        """Compute named losses from the maps of the pyramid and validated targets."""

    @abstractmethod
    def detect(self, maps: list[Tensor], size: Size) -> list[Detections]:
        """Detect objects. The detections of an image must not depend on the other images, to the last bit."""

    @abstractmethod
    def object_score(self, images: Tensor, found: Detections) -> ObjectScore:
        """The score of a detection as a function of the pixels: of its cell or region, which are kept.

        Args:
            images: The image that it was found in, (1, 3, H, W).
            found: ``box``, ``score`` and ``label`` of one detection, under the names of :class:`Detector`.
        """

    def forward(self, images: Tensor, targets: Sequence[Mapping[str, Any]] | None = None) -> Any:
        """Compute losses in training mode, detections in evaluation mode."""
        height, width = images.shape[-2:]
        if self.training:
            targets = _checked_targets(targets, len(images))
        maps = self.pyramid(self.maps(images))
        if self.training:
            return self.losses(maps, (height, width), list(map(dict, targets or [])))
        return self.detect(maps, (height, width))


def _checked_targets(targets: Sequence[Mapping[str, Any]] | None, num_images: int) -> list[Targets]:
    if targets is None or len(targets) != num_images:
        got = "none" if targets is None else f"those of {len(targets)}"
        raise UsageError(
            f"The `targets` of a detector in training must be those of its {num_images} images. Got {got} instead. "
            "Give one dictionary per image, or call `eval()` first."
        )
    checked = []
    for target in targets:
        # as_subclass: results computed from tv_tensors would otherwise be tv_tensors too.
        tensors = {name: value.as_subclass(Tensor) for name, value in target.items() if isinstance(value, Tensor)}
        if not {"boxes", "labels"} <= tensors.keys() or tensors["boxes"].ndim != 2 or tensors["boxes"].shape[1] != 4:
            raise UsageError(
                "The `targets` of a detector must have `boxes` of shape (K, 4) and `labels` of shape (K,). Got "
                f"{ {name: tuple(value.shape) for name, value in tensors.items()} } instead. K may be 0."
            )
        checked.append({**tensors, "boxes": tensors["boxes"].float(), "labels": tensors["labels"].long()})
    boxes = torch.cat([tensors["boxes"] for tensors in checked])
    if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise UsageError(
            "The `boxes` of a detector must be x1, y1, x2, y2 with x1 < x2 and y1 < y2. At least one of them has no "
            "area. Remove it, for example with torchvision.transforms.v2.SanitizeBoundingBoxes."
        )
    return checked


class StridedAnchors(nn.Module):
    """Anchors on a grid of known strides, generated by torchvision.

    torchvision derives a stride by dividing the side of the image by that of the map, rounding down. For the extra maps
    of a pyramid, whose sides are rounded up, this is wrong: at 224 pixels a stride of 64 becomes 56.

    Args:
        sizes: For each map, the sides of its anchors in pixels.
        ratios: Height divided by width of the anchors, for all maps.
        strides: Stride of each map in pixels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.generator = AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))

    def num_anchors_per_location(self) -> list[int]:
        """Return the number of anchors per cell, for each map."""
        counts: list[int] = self.generator.num_anchors_per_location()
        return counts

    def layout(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors of one image: (A, 4) as x1, y1, x2, y2 in pixels, for each map."""
        self.generator.set_cell_anchors(torch.float32, maps[0].device)
        grids = [list(level.shape[-2:]) for level in maps]
        anchors: list[Tensor] = self.generator.grid_anchors(grids, [[stride, stride] for stride in self.strides])
        return anchors

    def forward(self, images: ImageList, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors of all maps for each image, as torchvision's region proposal network expects."""
        return [torch.cat(self.layout(maps))] * len(images.image_sizes)
