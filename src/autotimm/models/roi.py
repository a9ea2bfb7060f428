"""Cutting regions out of feature maps, with the same bits every time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops.poolers import LevelMapper

__all__ = ["RegionPool", "region_align", "region_align_by_products"]


def region_align(features: Tensor, boxes: Tensor, size: int, scale: float, sampling: int = 2) -> Tensor:
    """Cut boxes out of one image's feature map and resample them to a square (RoIAlign).

    On an accelerator torchvision's backward pass adds up in any order. Where that is forbidden it takes a way through
    ``torch.compile``, which needs a compiler on the machine; here :func:`region_align_by_products` is taken instead.

    Args:
        features: (1, C, H, W).
        boxes: (K, 4) as x1, y1, x2, y2 in pixels of the image.
        size: Side of the squares.
        scale: Cells of the map per pixel of the image.
        sampling: Points per cell of a square and direction; 0 follows the size of the box.

    Returns:
        (K, C, size, size).

    Source:
        He et al., "Mask R-CNN", ICCV 2017.
    """
    strict = torch.are_deterministic_algorithms_enabled() and features.device.type != "cpu"
    if strict and features.requires_grad:
        return region_align_by_products(features, boxes, size, scale, sampling)
    # The operator and not torchvision.ops.roi_align, which would compile also where nothing is differentiated.
    regions = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1).to(features.dtype)
    found: Tensor = torch.ops.torchvision.roi_align(features, regions, scale, size, size, sampling, False)
    return found


def region_align_by_products(features: Tensor, boxes: Tensor, size: int, scale: float, sampling: int = 2) -> Tensor:
    """The same as :func:`region_align`, by two matrix products, which are deterministic in both directions.

    The points of a square lie on a grid and bilinear weights are products, so that rows and columns can be resampled
    one after the other, each by a matrix of weights.
    """
    with torch.autocast(features.device.type, enabled=False):
        source = features[0].float()
        boxes = boxes.float() * scale
        channels, height, width = source.shape
        rows = _weights(boxes[:, 1], boxes[:, 3], height, size, sampling)
        columns = _weights(boxes[:, 0], boxes[:, 2], width, size, sampling)
        tall = rows.flatten(0, 1) @ source.transpose(0, 1).flatten(1)  # (K size, C W)
        squares = tall.reshape(len(boxes), size * channels, width) @ columns.transpose(1, 2)
        return squares.reshape(len(boxes), size, channels, size).transpose(1, 2).to(features.dtype)


def _weights(low: Tensor, high: Tensor, cells: int, size: int, sampling: int) -> Tensor:
    """How much of each cell goes into each place along one direction, (K, size, cells)."""
    step = (high - low).clamp(min=1) / size  # at least a cell in all: torchvision's rule
    place = torch.arange(size * sampling, device=low.device) + 0.5
    points = low[:, None] + place * (step[:, None] / sampling)  # (K, size sampling)
    inside = ((points >= -1) & (points <= cells)).to(points.dtype)
    distance = points.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device)
    weights = (1 - distance.abs()).clamp(min=0) * inside[..., None]
    return weights.reshape(len(low), size, sampling, cells).mean(dim=2)


class RegionPool(nn.Module):
    """Cut boxes of any size out of the map of the pyramid that suits them.

    Args:
        strides: Pixels per cell of the maps, doubling.
        size: Side of the squares.

    Shape:
        - maps: One per stride, (N, C, H, W); further ones are not looked at.
        - boxes: One tensor (K, 4) per image, in pixels.
        - output: (sum of K, C, size, size), image by image.

    Source:
        The choice of the map is equation 1 of Lin et al., "Feature pyramid networks", CVPR 2017.
    """

    def __init__(self, strides: Sequence[int], size: int) -> None:
        super().__init__()
        self.strides, self.size = tuple(strides), size
        self._mapper = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Cut out all boxes of all images."""
        return torch.cat([self._image([one[at : at + 1] for one in maps], some) for at, some in enumerate(boxes)])

    def _image(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        chosen = self._mapper([boxes])
        result = maps[0].new_zeros(len(boxes), maps[0].shape[1], self.size, self.size)
        for level, (one, stride) in enumerate(zip(maps, self.strides, strict=False)):
            where = torch.where(chosen == level)[0]
            result[where] = region_align(one, boxes[where], self.size, 1 / stride).to(result.dtype)
        return result
