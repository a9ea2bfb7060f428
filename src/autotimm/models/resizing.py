"""Resizing whose way back is repeatable on an accelerator.

A ViT that gets images of another size than it was built for resizes its position embeddings in every step, bicubically,
as timm does it. The backward pass of that raises on CUDA under deterministic algorithms, so that the same training runs
on a CPU and stops on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["resize_by_products", "steady_resizing"]


def steady_resizing(backbone: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
    """Where a model of timm may run on images of another size than its own.

    It does something only where it must: on an accelerator, under deterministic algorithms, with gradients, and if the
    sizes differ. There it replaces ``interpolate`` by :func:`resize_by_products`.

    Args:
        backbone: A model of timm.
        images: (N, 3, H, W).
    """
    strict = torch.are_deterministic_algorithms_enabled() and images.device.type != "cpu" and torch.is_grad_enabled()
    own = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return _ByProducts() if strict and own is not None and tuple(own) != images.shape[-2:] else nullcontext()


def resize_by_products(
    values: Tensor, size: Sequence[int], mode: str, align_corners: bool | None = None, antialias: bool = False
) -> Tensor:
    """The same as ``interpolate``, up to rounding, by a matrix product per direction.

    Args:
        values: (N, C, H, W), or (N, C, W).
        size: H and W of the result, or W.
        mode: ``"linear"``, ``"bilinear"`` or ``"bicubic"``; all are products of one direction after the other.
        align_corners: See ``interpolate``.
        antialias: See ``interpolate``.

    Example:
        >>> ramp = torch.arange(4.0).reshape(1, 1, 4)
        >>> resize_by_products(ramp, [2], "linear").flatten().tolist()
        [0.5, 2.5]
    """
    with torch.autocast(values.device.type, enabled=False):
        found = values.float()
        for side in size:  # the first direction becomes the last, until each has had its turn
            found = found.movedim(2, -1)
            weights = _weights(found.shape[-1], side, len(size), mode, align_corners, antialias)
            found = found @ weights.to(found.device)
        return found.to(values.dtype)


def _weights(cells: int, side: int, directions: int, mode: str, align_corners: bool | None, antialias: bool) -> Tensor:
    """How much of each cell goes into each place, (cells, side): what becomes of unit vectors."""
    others = [1] * (directions - 1)
    # Along the last direction: torch 2.14 resizes antialiased images one pixel wide, (1, C, H, 1), wrongly on the CPU.
    units = torch.eye(cells).reshape(1, cells, *others, cells)
    with torch.no_grad():
        resized = F.interpolate(units, (*others, side), mode=mode, align_corners=align_corners, antialias=antialias)
    return resized.reshape(cells, side)


class _ByProducts(TorchFunctionMode):
    """Puts :func:`resize_by_products` in the place of ``interpolate`` where its backward pass would raise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate and len(args) == 1 and _raises(args[0], **kwargs):
            size = kwargs["size"]
            size = [size] * (args[0].ndim - 2) if isinstance(size, int) else list(size)
            return resize_by_products(
                args[0], size, kwargs["mode"], kwargs.get("align_corners"), kwargs.get("antialias", False)
            )
        return func(*args, **kwargs)


def _raises(values: Tensor, size: Any = None, mode: str = "nearest", antialias: bool = False, **_: Any) -> bool:
    """Whether the backward pass has no deterministic kernel; that of plain bilinear resizing has a way around."""
    odd = mode in ("linear", "bicubic") or (mode == "bilinear" and antialias)
    return odd and size is not None and values.requires_grad
