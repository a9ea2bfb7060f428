"""From the letterboxed image that the network sees back to the pixels of the original image."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autotimm.data.annotations.outlines import RunLengths
from autotimm.types import Batch, Placement

__all__ = ["encode", "likeliest", "paste", "places", "shown", "to_original"]


def places(batch: Batch) -> list[Placement]:
    """Where each image of a batch lies in its letterbox; images of a caller's own loader fill theirs."""
    if batch.placements is not None:
        return [Placement(*row) for row in batch.placements.tolist()]
    height, width = batch.images.shape[-2:]
    return [Placement(height, width, 0, 0, height, width)] * len(batch.images)


def to_original(boxes: Tensor, place: Placement) -> Tensor:
    """Map boxes (K, 4) from pixels of the network's input to those of the original image, clipped to it.

    Example:
        >>> to_original(torch.tensor([[0.0, 16.0, 32.0, 80.0]]), Placement(100, 200, 16, 0, 32, 64))
        tensor([[  0.,   0., 100., 100.]])
    """
    low = boxes.new_tensor([place.left, place.top] * 2)
    scale = boxes.new_tensor([place.width / place.shown_width, place.height / place.shown_height] * 2)
    limit = boxes.new_tensor([place.width, place.height] * 2)
    return torch.minimum(((boxes - low) * scale).clamp(min=0), limit)


class _Window(NamedTuple):
    """The part of a mask where it may have pixels: ``uint8`` zeros and ones, and its first row and column."""

    pixels: Tensor
    top: int
    left: int


def _drawn(mask: Tensor, box: list[float], height: int, width: int) -> _Window | None:
    """A mask (M, M), probabilities within a box, in pixels of the image; ``None`` if it has none.

    A pixel belongs to an object if its center is in the box and the mask, interpolated there, is at least one half.
    torchvision's own function rounds boxes to whole pixels first, and towards zero: small masks move, and those at the
    upper and left border of the image lose their first pixels.
    """
    x1, y1, x2, y2 = box
    left, right = max(0, ceil(x1 - 0.5)), min(width, ceil(x2 - 0.5))  # pixels whose centers the box holds
    top, bottom = max(0, ceil(y1 - 0.5)), min(height, ceil(y2 - 0.5))
    if right <= left or bottom <= top:
        return None
    columns = (torch.arange(left, right, device=mask.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    rows = (torch.arange(top, bottom, device=mask.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(mask.dtype)
    values = F.grid_sample(mask[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]
    return _Window((values >= 0.5).to(torch.uint8), top, left)


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Draw masks (K, M, M), probabilities within boxes (K, 4), to ``uint8`` (K, height, width) of zeros and ones.

    Example:
        >>> paste(torch.ones(1, 28, 28), torch.tensor([[0.0, 0.4, 2.0, 2.0]]), 3, 4).tolist()
        [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]
    """
    canvas = masks.new_zeros((len(masks), height, width), dtype=torch.uint8)
    for whole, mask, box in zip(canvas, masks, boxes.tolist(), strict=True):
        if (window := _drawn(mask, box, height, width)) is not None:
            rows, columns = window.pixels.shape
            whole[window.top : window.top + rows, window.left : window.left + columns] = window.pixels
    return canvas


def encode(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[tuple[tuple[int, int], bytes]]:
    """The run lengths of what :func:`paste` draws, without drawing it: 100 masks of 12 megapixels fill 1.2 GB.

    Example:
        >>> encode(torch.ones(1, 28, 28), torch.tensor([[0.0, 0.4, 2.0, 2.0]]), 3, 4)
        [((3, 4), b'02106')]
    """
    windows = [_drawn(mask, box, height, width) for mask, box in zip(masks.cpu(), boxes.tolist(), strict=True)]
    return [_run_lengths(window, height, width).as_pair() for window in windows]


def _run_lengths(window: _Window | None, height: int, width: int) -> RunLengths:
    if window is None:
        return RunLengths.of_counts(height, width, [height * width])
    rows, columns = window.pixels.shape
    strip = np.zeros((columns, height), np.int8)
    strip[:, window.top : window.top + rows] = window.pixels.numpy().T
    changes = np.flatnonzero(np.diff(strip.ravel(), prepend=0, append=0)) + window.left * height
    counts = np.diff(changes, prepend=0, append=height * width)
    counts = counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
    return RunLengths.of_counts(height, width, counts.tolist())


def shown(layers: Tensor, place: Placement) -> Tensor:
    """The part of layers (..., H, W) of the input that the image covers."""
    bottom, right = place.top + place.shown_height, place.left + place.shown_width
    return layers[..., place.top : bottom, place.left : right]


def likeliest(logits: Tensor, height: int, width: int, at_once: int = 1 << 22) -> Tensor:
    """The class with the largest of the logits (C, h, w), resized bilinearly: ``uint8`` (height, width), at most 256.

    It works on bands of rows, since 150 classes at 12 megapixels take 7 GB. Neither the bands nor the number of threads
    change a bit: every sum is one of two values, while the order of the sums in ``interpolate`` is not fixed.

    Args:
        logits: On the CPU.
        height: Height of the original image.
        width: Its width.
        at_once: How many resized logits to hold in memory at a time.

    Example:
        >>> likeliest(torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]), 1, 6).tolist()
        [[0, 0, 0, 0, 1, 1]]
    """
    (above, below, down), (left, right, along) = _between(logits.shape[1], height), _between(logits.shape[2], width)
    band = max(1, at_once // (len(logits) * width))
    labels = torch.empty(height, width, dtype=torch.uint8)
    for first in range(0, height, band):
        rows = slice(first, first + band)
        share = down[rows, None]
        strip = logits.index_select(1, above[rows]) * (1 - share) + logits.index_select(1, below[rows]) * share
        strip = strip.index_select(2, left) * (1 - along) + strip.index_select(2, right) * along
        labels[rows] = strip.argmax(0)
    return labels


def _between(size: int, new_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each new pixel the old ones before and behind its center, and the share of the second."""
    at = ((torch.arange(new_size, dtype=torch.float64) + 0.5) * size / new_size - 0.5).clamp(0, size - 1)
    before = at.long()
    return before, (before + 1).clamp(max=size - 1), (at - before).float()
