"""Adaptive average pooling whose gradient has the same bits every time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AveragePool", "replace_pooling"]


class AveragePool(nn.Module):
    """What :class:`torch.nn.AdaptiveAvgPool2d` does, as two matrix products.

    torch's own has no deterministic gradient on CUDA, and raises there.

    Args:
        size: Side of the result.

    Shape:
        - images: (N, C, H, W).
        - output: (N, C, size, size).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Pool."""
        rows, columns = (self._shares(side, images) for side in images.shape[-2:])
        return rows @ images @ columns.transpose(0, 1)

    def _shares(self, side: int, like: Tensor) -> Tensor:
        """How much of each cell goes into each bin, (size, side); bins overlap where ``side`` is no multiple."""
        at = torch.arange(self.size, device=like.device)[:, None]
        start, end = at * side // self.size, -(-(at + 1) * side // self.size)
        cell = torch.arange(side, device=like.device)
        return ((cell >= start) & (cell < end)).to(like.dtype) / (end - start).to(like.dtype)


def replace_pooling(module: nn.Module) -> None:
    """Put :class:`AveragePool` in the place of every adaptive average pooling, except to one value, which is a mean."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            if isinstance(size, int) and size != 1:
                setattr(module, name, AveragePool(size))
        else:
            replace_pooling(child)
