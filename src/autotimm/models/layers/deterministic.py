"""Resizing, average pooling and RoI align with deterministic gradients on CUDA.

torch and torchvision have no deterministic backward kernel for some operators: under
``torch.use_deterministic_algorithms(True)``, a network that trains on the CPU raises an error on a GPU. The operators
here compute the same results, up to rounding, by matrix products, which are deterministic in both directions:

- Bicubic resizing. A ViT that gets images of another size than it was built for resizes its position embeddings in
  every step: :func:`deterministic_resizing`.
- Adaptive average pooling: :class:`AveragePool`.
- RoI align: :func:`region_align` and, over the maps of a feature pyramid, :class:`RegionPool`.

And linear layers with few outputs, whose last bits depend on the place of a row in its batch on some processors:
:func:`rows_alone`.
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
    "deterministic_resizing",
    "region_align",
    "region_align_by_matmul",
    "replace_pooling",
    "resize_by_matmul",
    "rows_alone",
]


def deterministic_resizing(backbone: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which a timm model may train on images of another size than its own.

    The context replaces ``interpolate`` by :func:`resize_by_matmul`, but only where necessary: on an accelerator, under
    deterministic algorithms, with gradients, and if the image size differs from that of the model.

    Args:
        backbone: A timm model.
        images: (N, 3, H, W).
    """
    strict = torch.are_deterministic_algorithms_enabled() and images.device.type != "cpu" and torch.is_grad_enabled()
    model_size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    differs = model_size is not None and tuple(model_size) != images.shape[-2:]
    return _ResizeByMatmul() if strict and differs else nullcontext()


_FEW_OUTPUTS = 16  # MKL has other kernels for up to 3 with AVX-512; some margin for other versions


def rows_alone(images: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which a row of a linear layer with few outputs has the same bits in every batch.

    For small matrices MKL chooses kernels whose order of sums depends on the alignment of a row in memory: with three
    classes, an image had other last bits as the second of a batch than as the third. In the context such a layer is
    applied to one row at a time, each in memory of its own. Only for evaluation: training keeps its speed and its bits.

    Args:
        images: The input of the network; nothing is changed on other devices than the CPU.
    """
    return _RowsAlone() if images.device.type == "cpu" else nullcontext()


class _RowsAlone(TorchFunctionMode):
    """Apply linear layers with few outputs row by row."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) >= 2 and len(args[1]) < _FEW_OUTPUTS and args[0].ndim > 1:
            rows = args[0].reshape(-1, args[0].shape[-1])
            if len(rows):
                outputs = torch.cat([func(row.clone(), *args[1:], **kwargs) for row in rows.split(1)])
                return outputs.reshape(*args[0].shape[:-1], outputs.shape[-1])
        return func(*args, **kwargs)


class _ResizeByMatmul(TorchFunctionMode):
    """Replace calls of ``interpolate`` whose backward pass would raise by :func:`resize_by_matmul`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate and len(args) == 1 and _backward_raises(args[0], **kwargs):
            size = kwargs["size"]
            size = [size] * (args[0].ndim - 2) if isinstance(size, int) else list(size)
            return resize_by_matmul(
                args[0], size, kwargs["mode"], kwargs.get("align_corners"), kwargs.get("antialias", False)
            )
        return func(*args, **kwargs)


def _backward_raises(
    values: Tensor, size: Any = None, mode: str = "nearest", antialias: bool = False, **_: Any
) -> bool:
    """Whether ``interpolate`` has no deterministic backward pass. For plain bilinear resizing torch decomposes it."""
    unsupported = mode in ("linear", "bicubic") or (mode == "bilinear" and antialias)
    return unsupported and size is not None and values.requires_grad


def resize_by_matmul(
    values: Tensor, size: Sequence[int], mode: str, align_corners: bool | None = None, antialias: bool = False
) -> Tensor:
    """Resize as ``torch.nn.functional.interpolate`` does, up to rounding, by one matrix product per dimension.

    Args:
        values: (N, C, H, W) or (N, C, W).
        size: Height and width of the result, or its width.
        mode: ``"linear"``, ``"bilinear"`` or ``"bicubic"``, all of which are separable.
        align_corners: See ``interpolate``.
        antialias: See ``interpolate``.

    Returns:
        (N, C, *size), with the data type of ``values``.

    Example:
        >>> ramp = torch.arange(4.0).reshape(1, 1, 4)
        >>> resize_by_matmul(ramp, [2], "linear").flatten().tolist()
        [0.5, 2.5]
    """
    with torch.autocast(values.device.type, enabled=False):
        resized = values.float()
        for side in size:  # each pass moves the first spatial dimension to the end and resizes it there
            resized = resized.movedim(2, -1)
            weights = _resize_weights(resized.shape[-1], side, len(size), mode, align_corners, antialias)
            resized = resized @ weights.to(resized.device)
        return resized.to(values.dtype)


def _resize_weights(
    cells: int, side: int, dimensions: int, mode: str, align_corners: bool | None, antialias: bool
) -> Tensor:
    """Return the weight of each input cell in each output cell, (cells, side), by resizing unit vectors."""
    others = [1] * (dimensions - 1)
    # The last dimension is the resized one: torch 2.14 resizes antialiased (1, C, H, 1) images wrongly on the CPU.
    units = torch.eye(cells).reshape(1, cells, *others, cells)
    with torch.no_grad():
        resized = F.interpolate(units, (*others, side), mode=mode, align_corners=align_corners, antialias=antialias)
    return resized.reshape(cells, side)


class AveragePool(nn.Module):
    """Adaptive average pooling to a square, as :class:`torch.nn.AdaptiveAvgPool2d`, by two matrix products.

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
        """Pool a batch of images or feature maps."""
        rows, columns = (self._bin_weights(side, images) for side in images.shape[-2:])
        return rows @ images @ columns.transpose(0, 1)

    def _bin_weights(self, side: int, like: Tensor) -> Tensor:
        """Return the weight of each cell in each bin, (size, side). Bins overlap unless ``side`` is a multiple."""
        bins = torch.arange(self.size, device=like.device)[:, None]
        start, end = bins * side // self.size, -(-(bins + 1) * side // self.size)
        cell = torch.arange(side, device=like.device)
        return ((cell >= start) & (cell < end)).to(like.dtype) / (end - start).to(like.dtype)


def replace_pooling(module: nn.Module) -> None:
    """Replace each ``AdaptiveAvgPool2d`` in a module by :class:`AveragePool`, in place.

    Pooling to a single value is kept: it is a mean, whose gradient is deterministic.

    Args:
        module: The module to search.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            if isinstance(size, int) and size != 1:
                setattr(module, name, AveragePool(size))
        else:
            replace_pooling(child)


class RegionPool(nn.Module):
    """RoI align over a feature pyramid: each box is resampled from the map that suits its size.

    Args:
        strides: Strides of the maps in pixels, each twice the one before.
        size: Side of the resampled squares.

    Shape:
        - maps: one (N, C, H, W) per stride; further maps are ignored.
        - boxes: one (K, 4) per image, as x1, y1, x2, y2 in pixels.
        - output: (sum of K, C, size, size), image by image.

    Source:
        The choice of the map is equation 1 of Lin et al., "Feature pyramid networks", CVPR 2017.
    """

    def __init__(self, strides: Sequence[int], size: int) -> None:
        super().__init__()
        self.strides, self.size = tuple(strides), size
        self.mapper = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Resample the boxes of all images."""
        return torch.cat(
            [
                self._pool_image([level[index : index + 1] for level in maps], image_boxes)
                for index, image_boxes in enumerate(boxes)
            ]
        )

    def _pool_image(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        levels = self.mapper([boxes])
        result = maps[0].new_zeros(len(boxes), maps[0].shape[1], self.size, self.size)
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=False)):
            indices = torch.where(levels == level)[0]
            result[indices] = region_align(features, boxes[indices], self.size, 1 / stride).to(result.dtype)
        return result


def region_align(features: Tensor, boxes: Tensor, size: int, scale: float, sampling: int = 2) -> Tensor:
    """Resample boxes of one image's feature map to squares (RoI align).

    The backward pass of torchvision's operator is not deterministic on an accelerator. Under deterministic algorithms
    torchvision resorts to ``torch.compile``, which needs a compiler on the machine; this function uses
    :func:`region_align_by_matmul` there.

    Args:
        features: (1, C, H, W).
        boxes: (K, 4) as x1, y1, x2, y2 in pixels of the image.
        size: Side of the squares.
        scale: Cells of the map per pixel of the image.
        sampling: Sampling points per cell of a square and dimension; 0 adapts the number to the size of the box.

    Returns:
        (K, C, size, size).

    Source:
        He et al., "Mask R-CNN", ICCV 2017.
    """
    strict = torch.are_deterministic_algorithms_enabled() and features.device.type != "cpu"
    if strict and features.requires_grad:
        return region_align_by_matmul(features, boxes, size, scale, sampling)
    # torchvision.ops.roi_align would compile here too, even where no gradient is needed.
    regions = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1).to(features.dtype)
    resampled: Tensor = torch.ops.torchvision.roi_align(features, regions, scale, size, size, sampling, False)
    return resampled


def region_align_by_matmul(features: Tensor, boxes: Tensor, size: int, scale: float, sampling: int = 2) -> Tensor:
    """Compute :func:`region_align` by two matrix products.

    The sampling points of a box form a grid and bilinear weights are separable, so rows and columns are resampled one
    after the other, each with a matrix of weights. Arguments and result are those of :func:`region_align`; ``sampling``
    must be at least 1.
    """
    with torch.autocast(features.device.type, enabled=False):
        source = features[0].float()
        boxes = boxes.float() * scale
        channels, height, width = source.shape
        rows = _region_weights(boxes[:, 1], boxes[:, 3], height, size, sampling)
        columns = _region_weights(boxes[:, 0], boxes[:, 2], width, size, sampling)
        by_rows = rows.flatten(0, 1) @ source.transpose(0, 1).flatten(1)  # (K size, C W)
        squares = by_rows.reshape(len(boxes), size * channels, width) @ columns.transpose(1, 2)
        return squares.reshape(len(boxes), size, channels, size).transpose(1, 2).to(features.dtype)


def _region_weights(low: Tensor, high: Tensor, cells: int, size: int, sampling: int) -> Tensor:
    """Return the weight of each cell of the map in each cell of the squares, for one dimension: (K, size, cells)."""
    step = (high - low).clamp(min=1) / size  # torchvision's rule: a box covers at least one cell
    offsets = torch.arange(size * sampling, device=low.device) + 0.5
    points = low[:, None] + offsets * (step[:, None] / sampling)  # (K, size sampling)
    inside = ((points >= -1) & (points <= cells)).to(points.dtype)
    distance = points.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device)
    weights = (1 - distance.abs()).clamp(min=0) * inside[..., None]
    return weights.reshape(len(low), size, sampling, cells).mean(dim=2)
