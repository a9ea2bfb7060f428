"""Resizing whose way back is repeatable on an accelerator.

A ViT that gets images of another size than it was built for resizes its position embeddings in every step, bicubically,
as timm does it. The backward pass of that raises on CUDA under deterministic algorithms, so that the same training runs
on a CPU and stops on a GPU.

Adaptive average pooling whose gradient has the same bits every time.

Cutting regions out of feature maps, with the same bits every time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.ops.poolers import LevelMapper

__all__ = [
    "AveragePool",
    "RegionPool",
    "region_align",
    "region_align_by_products",
    "replace_pooling",
    "resize_by_products",
    "steady_resizing",
]


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
            weights = _resize_weights(found.shape[-1], side, len(size), mode, align_corners, antialias)
            found = found @ weights.to(found.device)
        return found.to(values.dtype)


def _resize_weights(
    cells: int, side: int, directions: int, mode: str, align_corners: bool | None, antialias: bool
) -> Tensor:
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
        rows = _region_weights(boxes[:, 1], boxes[:, 3], height, size, sampling)
        columns = _region_weights(boxes[:, 0], boxes[:, 2], width, size, sampling)
        tall = rows.flatten(0, 1) @ source.transpose(0, 1).flatten(1)  # (K size, C W)
        squares = tall.reshape(len(boxes), size * channels, width) @ columns.transpose(1, 2)
        return squares.reshape(len(boxes), size, channels, size).transpose(1, 2).to(features.dtype)


def _region_weights(low: Tensor, high: Tensor, cells: int, size: int, sampling: int) -> Tensor:
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
