"""From the square that the network sees back to the pixels of the original image."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from autotimm.types import Batch, Placement

__all__ = ["paste", "places", "to_original"]


def places(batch: Batch) -> list[Placement]:
    """Where each image of a batch lies; images of a caller's own loader are as they are."""
    if batch.placements is not None:
        return [Placement(*row) for row in batch.placements.tolist()]
    height, width = batch.images.shape[-2:]
    return [Placement(height, width, 0, 0, height, width)] * len(batch.images)


def to_original(boxes: Tensor, place: Placement) -> Tensor:
    """Map boxes (K, 4) from pixels of the network's square to those of the original image, and cut them off there.

    Example:
        >>> to_original(torch.tensor([[0.0, 16.0, 32.0, 80.0]]), Placement(100, 200, 16, 0, 32, 64))
        tensor([[  0.,   0., 100., 100.]])
    """
    low = boxes.new_tensor([place.left, place.top] * 2)
    scale = boxes.new_tensor([place.width / place.shown_width, place.height / place.shown_height] * 2)
    limit = boxes.new_tensor([place.width, place.height] * 2)
    return torch.minimum(((boxes - low) * scale).clamp(min=0), limit)


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Draw masks (K, M, M), probabilities within boxes (K, 4), to ``uint8`` (K, height, width) of zeros and ones.

    A pixel belongs to an object if its center is in the box, and the mask, interpolated between its cells, is at least
    one half there. torchvision's own function rounds boxes to whole pixels first, and towards zero: small masks move,
    and those at the upper and left border of the image lose their first pixels.

    Example:
        >>> paste(torch.ones(1, 28, 28), torch.tensor([[0.0, 0.4, 2.0, 2.0]]), 3, 4).tolist()
        [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]
    """
    drawn = masks.new_zeros((len(masks), height, width), dtype=torch.uint8)
    for canvas, mask, (x1, y1, x2, y2) in zip(drawn, masks, boxes.tolist(), strict=True):
        left, right = max(0, ceil(x1 - 0.5)), min(width, ceil(x2 - 0.5))  # pixels whose centers the box holds
        top, bottom = max(0, ceil(y1 - 0.5)), min(height, ceil(y2 - 0.5))
        if right <= left or bottom <= top:
            continue
        columns = (torch.arange(left, right, device=mask.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        rows = (torch.arange(top, bottom, device=mask.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(mask.dtype)
        shown = F.grid_sample(mask[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]
        canvas[top:bottom, left:right] = shown >= 0.5
    return drawn
