"""What all detectors share: a backbone, a pyramid, and the form of targets and results.

torchvision's anchors, laid out by the strides that the pyramid has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from autotimm.errors import UsageError
from autotimm.models.backbone.feature_maps import DenseNetwork, Level
from autotimm.models.layers.feature_pyramid import Pyramid
from autotimm.models.layers.normalize import Normalize

__all__ = ["Detector", "Found", "Objects", "Size", "StridedAnchors"]


Objects = dict[str, Tensor]
Found = dict[str, Tensor]
Size = tuple[int, int]


class Detector(DenseNetwork, ABC):
    """A network that finds objects.

    It neither resizes nor normalizes nor draws as torchvision's own transform would do: images come letterboxed to one
    size, and the first layer normalizes.

    Args:
        normalize: The network's first layer.
        backbone: A model of timm.
        levels: The maps that it gives.
        pyramid: Makes of them maps of one width.

    Shape:
        - images: (N, 3, H, W), ``uint8`` in [0, 255] or float in [0, 1].
        - targets, in training: For each image ``boxes`` float (K, 4) as x1, y1, x2, y2 in pixels of the input and
          ``labels`` ``int64`` (K,) from 0; for instances also ``masks`` ``uint8`` (K, H, W). K may be 0.
        - output in training: Named losses, scalars.
        - output in evaluation: For each image ``boxes``, ``scores`` and ``labels`` of what was found, best first; for
          instances also ``masks`` (K, 28, 28), probabilities within the box.
    """

    def __init__(self, normalize: Normalize, backbone: nn.Module, levels: Sequence[Level], pyramid: Pyramid) -> None:
        super().__init__(normalize, backbone, levels, pyramid.multiple)
        self.pyramid = pyramid

    @abstractmethod
    def losses(self, maps: list[Tensor], size: Size, targets: list[Objects]) -> dict[str, Tensor]:
        """Compare with targets whose form was checked."""

    @abstractmethod
    def detect(self, maps: list[Tensor], size: Size) -> list[Found]:
        """Find objects; what is found in an image must not depend on the others, to the last bit."""

    def forward(self, images: Tensor, targets: Sequence[Mapping[str, Any]] | None = None) -> Any:
        """Losses in training mode, objects in evaluation mode."""
        height, width = images.shape[-2:]
        if self.training:
            targets = _checked(targets, len(images))
        maps = self.pyramid(self.maps(images))
        if self.training:
            return self.losses(maps, (height, width), list(map(dict, targets or [])))
        return self.detect(maps, (height, width))


def _checked(targets: Sequence[Mapping[str, Any]] | None, images: int) -> list[Objects]:
    if targets is None or len(targets) != images:
        got = "none" if targets is None else f"those of {len(targets)}"
        raise UsageError(
            f"The `targets` of a detector in training must be those of its {images} images. Got {got} instead. "
            "Give one dictionary per image, or call `eval()` first."
        )
    plain = []
    for target in targets:
        # as_subclass: tv_tensors would give their class to everything that is computed from them.
        one = {name: value.as_subclass(Tensor) for name, value in target.items() if isinstance(value, Tensor)}
        if not {"boxes", "labels"} <= one.keys() or one["boxes"].ndim != 2 or one["boxes"].shape[1] != 4:
            raise UsageError(
                "The `targets` of a detector must have `boxes` of shape (K, 4) and `labels` of shape (K,). Got "
                f"{ {name: tuple(value.shape) for name, value in one.items()} } instead. K may be 0."
            )
        plain.append({**one, "boxes": one["boxes"].float(), "labels": one["labels"].long()})
    boxes = torch.cat([one["boxes"] for one in plain])
    if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise UsageError(
            "The `boxes` given to a detector must be x1, y1, x2, y2 with x1 < x2 and y1 < y2. One of them has no area. "
            "Leave it out; torchvision.transforms.v2.SanitizeBoundingBoxes does."
        )
    return plain


class StridedAnchors(nn.Module):
    """Anchors on a grid of known strides.

    torchvision divides the side of the image by that of the map and rounds down. Where a map was rounded up, as the
    extra maps of a pyramid are, it so lays out 224 pixels with a stride of 56 that is 64.

    Args:
        sizes: Sides in pixels of the anchors of every map.
        ratios: Height divided by width of the anchors of all maps.
        strides: Pixels per cell of every map.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.generator = AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))

    def num_anchors_per_location(self) -> list[int]:
        """How many anchors each map has in a cell."""
        found: list[int] = self.generator.num_anchors_per_location()
        return found

    def layout(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors of one image, (A, 4) as x1, y1, x2, y2 in pixels for every map."""
        self.generator.set_cell_anchors(torch.float32, maps[0].device)
        grids = [list(one.shape[-2:]) for one in maps]
        found: list[Tensor] = self.generator.grid_anchors(grids, [[stride, stride] for stride in self.strides])
        return found

    def forward(self, images: ImageList, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors of all maps of every image, as torchvision's region proposal network asks for them."""
        return [torch.cat(self.layout(maps))] * len(images.image_sizes)
