"""From the square that the network sees back to the pixels of the original image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

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
    """Draw masks (K, M, M), probabilities within boxes (K, 4), to ``uint8`` (K, height, width) of zeros and ones."""
    if not len(masks):
        return masks.new_zeros((0, height, width), dtype=torch.uint8)
    drawn: Tensor = paste_masks_in_image(masks.unsqueeze(1), boxes, (height, width))
    return (drawn[:, 0] >= 0.5).to(torch.uint8)
