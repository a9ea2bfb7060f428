"""torchvision's anchors, laid out by the strides that the pyramid has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

__all__ = ["StridedAnchors"]


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
