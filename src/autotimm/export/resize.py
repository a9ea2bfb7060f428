"""Resizing inside an exported graph, to the very pixels that evaluation sees.

torchvision resizes ``uint8`` images on the CPU by integers: the weights of each pass are rounded to 16 bits, the sums
to ``uint8``. The functions here compute the same integers in 64-bit floats, which hold them exactly, by one matrix
product per pass. Sizes are tensors, so that one graph takes images of any height and width.

Some runtimes, OpenVINO among them, compute 64-bit floats with 32 bits. For them everything is written in 32 bits:
places by one division of whole numbers, and products in two halves, whose sums 32 bits hold exactly. What is left is
the rounding of a few weights, which differs from torch's: a few pixels in ten thousand are one level lighter or darker.

Source:
    ``UpSampleKernel.cpp`` and ``UpSampleKernelAVXAntialias.h`` of torch, after the kernels of Pillow-SIMD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from autotimm.data.transforms.spatial_transforms import GRAY

__all__ = ["Place", "cropped", "letterboxed", "letterbox_place"]

_MOST_BITS = 22  # of a weight behind the binary point
_WEIGHT_LIMIT = 2**15  # weights are 16-bit integers
_HALF = 256.0  # weights are split there
_BLOCK = 32  # new cells that are computed together
_CUBIC = -0.5  # the free parameter of bicubic kernels with antialiasing, as in Pillow


class Place(NamedTuple):
    """Where an image lies in the network's input: scalars of the graph, float64, see ``autotimm.types.Placement``.

    Attributes:
        height: Height of the image in pixels.
        width: Its width.
        top: First row of the input that it covers.
        left: First column of the input that it covers.
        shown_height: Number of rows that it covers.
        shown_width: Number of columns that it covers.
    """

    height: Tensor
    width: Tensor
    top: Tensor
    left: Tensor
    shown_height: Tensor
    shown_width: Tensor


def cropped(
    images: Tensor, size: tuple[int, int], crop_pct: float, interpolation: str, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Resize images to cover a size, and take the center, as :func:`autotimm.data.transforms.eval_transform` does.

    Args:
        images: ``uint8`` (N, 3, H, W).
        size: Height and width of the result.
        crop_pct: Share of the resized image that the crop keeps of a side that fits.
        interpolation: ``bilinear``, ``bicubic``, ``nearest`` or ``nearest-exact``.
        dtype: ``float64`` for the very pixels, ``float32`` for a runtime that has nothing else.

    Returns:
        ``uint8`` (N, 3, *size).
    """
    height, width = _sides(images, dtype)
    new_size: tuple[Tensor, Tensor]
    if size[0] == size[1]:
        shorter, least = max(size[0], round(size[0] / crop_pct)), torch.minimum(height, width)
        # A half does not change the result, and keeps a division that is not exact from falling below a whole number.
        new_size = (torch.floor((shorter * height + 0.5) / least), torch.floor((shorter * width + 0.5) / least))
    else:
        scale = (1 / crop_pct) * torch.maximum(*_ratios(size, height, width))
        new_size = (
            torch.floor(height * scale).clamp(min=size[0]),
            torch.floor(width * scale).clamp(min=size[1]),
        )
    top, left = (torch.round((new - crop) / 2) for new, crop in zip(new_size, size, strict=True))
    return _resized(images, new_size, (top, left), size, interpolation)


def letterbox_place(images: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Place:
    """The placement of images centered in a network's input, as :func:`autotimm.data.transforms.place` computes it."""
    height, width = _sides(images, dtype)
    scale = torch.minimum(*_ratios(size, height, width))
    shown_height, shown_width = (torch.clamp(torch.round(side * scale), min=1) for side in (height, width))
    top, left = torch.floor((size[0] - shown_height) / 2), torch.floor((size[1] - shown_width) / 2)
    return Place(height, width, top, left, shown_height, shown_width)


def letterboxed(images: Tensor, place: Place, size: tuple[int, int]) -> Tensor:
    """Resize images (N, 3, H, W) to their place in gray ones, (N, 3, *size), both ``uint8``."""
    shown_size, first = (place.shown_height, place.shown_width), (-place.top, -place.left)
    resized = _resized(images, shown_size, first, size, "bilinear")
    rows, columns = (torch.arange(side, dtype=place.height.dtype) for side in size)
    shown_rows = (rows >= place.top) & (rows < place.top + place.shown_height)
    shown_columns = (columns >= place.left) & (columns < place.left + place.shown_width)
    return torch.where(shown_rows[:, None] & shown_columns, resized, torch.full_like(resized, GRAY))


def _ratios(size: tuple[int, int], height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """How many times a size is an image. A number divided by a tensor would be multiplied by its rounded inverse."""
    return _scalar(size[0], height.dtype) / height, _scalar(size[1], width.dtype) / width


def _scalar(value: float | torch.SymInt, dtype: torch.dtype) -> Tensor:
    """A number of the graph as a scalar: comparing sizes as numbers of Python would fix their order in it."""
    return torch.full((), value, dtype=dtype)


def _sides(images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    height, width = images.shape[-2:]
    return _scalar(height, dtype), _scalar(width, dtype)


def _resized(
    images: Tensor, new_size: tuple[Tensor, Tensor], first: tuple[Tensor, Tensor], count: tuple[int, int], mode: str
) -> Tensor:
    """The part of resized images that begins at ``first`` and has ``count`` rows and columns.

    Args:
        images: ``uint8`` (N, 3, H, W).
        new_size: Height and width of the whole resized images.
        first: The first row and column.
        count: The number of rows and columns.
        mode: The interpolation.
    """
    if mode in ("nearest", "nearest-exact"):
        rows = _nearest(images.shape[-2], new_size[0], first[0], count[0], mode)
        columns = _nearest(images.shape[-1], new_size[1], first[1], count[1], mode)
        return images.index_select(-2, rows).index_select(-1, columns)
    for dim in (1, 0):  # columns first, as torch
        images = _weighted(images, new_size[dim], first[dim], count[dim], mode, dim)
    return images.to(torch.uint8)


def _nearest(cells: int, new: Tensor, first: Tensor, count: int, mode: str) -> Tensor:
    """The old index of each new cell. In 32 bits, as torch computes it: 64 would choose others."""
    index = (torch.arange(count, dtype=first.dtype) + first).to(torch.float32)
    scale = torch.full((), cells, dtype=torch.float32) / new.to(torch.float32)
    at = torch.floor((index + 0.5) * scale if mode == "nearest-exact" else index * scale)
    return at.clamp(min=0).to(torch.int64).clamp(max=cells - 1)


def _weighted(pixels: Tensor, new: Tensor, first: Tensor, count: int, mode: str, dim: int) -> Tensor:
    """Resize rows (``dim`` 0) or columns (1) by matrix products, and round to whole numbers in [0, 255].

    A new cell has few old ones. So new cells are computed in blocks, each from the old ones that the block has: one
    product for all would multiply by zeros nearly everywhere.

    Nothing is transposed: ONNX Runtime before 1.26 joins a transposition and a product to an operator that it does not
    have for 64 bits, and newer ones do not exist for Python 3.10.
    """
    cells, dtype = pixels.shape[dim - 2], new.dtype
    # The largest weight of all new cells, also of those outside of a crop, decides how many bits all of them have.
    every = torch.arange(_length(new), dtype=dtype)[:, None]
    largest = _weights(cells, new, every, _old_cells(cells, new, every, mode), mode, 1).max()
    powers = torch.exp2(torch.arange(1, _MOST_BITS + 1, dtype=dtype))
    fits = torch.floor(0.5 + largest * powers) < _WEIGHT_LIMIT
    at = (torch.arange(-(-count // _BLOCK) * _BLOCK, dtype=dtype) + first).reshape(-1, _BLOCK)
    position = _old_cells(cells, new, at, mode)
    old = [
        pixels.index_select(dim - 2, each).to(dtype) for each in position.clamp(0, cells - 1).to(torch.int64).unbind()
    ]
    weights = _weights(cells, new, at.unsqueeze(2 - dim), position.unsqueeze(1 + dim), mode, 2 - dim)
    # In 32 bits no power of two: some runtimes round those.
    one = 1 + (fits.to(dtype) * powers / 2).sum() if dtype == torch.float32 else torch.exp2(fits.to(dtype).sum())
    whole = torch.sign(weights) * torch.floor(weights.abs() * one + 0.5)
    if dtype == torch.float32:
        sums = _in_halves(old, whole, one, dim)
    else:
        sums = torch.floor((_products(old, whole, dim) + one / 2) / one)
    return sums.narrow(dim - 2, 0, count).clamp(0, 255)


def _in_halves(old: Sequence[Tensor], whole: Tensor, one: Tensor, dim: int) -> Tensor:
    """The same sums in 32 bits: of weights of 16 bits, the upper half and the lower one have sums that fit in."""
    upper = torch.floor(whole / _HALF)
    above = _products(old, upper, dim)
    carried = torch.floor(_products(old, whole - upper * _HALF, dim) / _HALF)
    one = one / _HALF  # a whole number: weights have at least 14 bits
    return torch.floor((above + carried + one / 2) / one)


def _products(old: Sequence[Tensor], weights: Tensor, dim: int) -> Tensor:
    """The new cells of all blocks, from the old cells and the weights of each."""
    blocks = zip(old, weights.unbind(), strict=True)
    return torch.cat([pixels @ each if dim else each @ pixels for pixels, each in blocks], dim - 2)


def _length(new: Tensor) -> int:
    """A scalar of the graph as a length."""
    length: int = new.to(torch.int64).item()  # type: ignore[assignment]  # of a whole number
    torch._check(length >= 1)
    return length


def _old_cells(cells: int, new: Tensor, at: Tensor, mode: str) -> Tensor:
    """The old cells (B, L) that have weights in blocks of new ones (B, K); some of them do not exist."""
    scale = cells / new
    reach = _reach(scale, mode)
    number = _length(torch.ceil((at.shape[1] - 1) * scale + 2 * reach) + 3)  # one more at both ends, for rounding
    first = torch.floor((at[:, :1] + 0.5) * scale - reach) - 1
    return first + torch.arange(number, dtype=new.dtype)


def _reach(scale: Tensor, mode: str) -> Tensor:
    """How many old cells a new one reaches to each side of its center."""
    return torch.clamp(scale, min=1.0) * (2 if mode == "bicubic" else 1)


def _weights(cells: int, new: Tensor, at: Tensor, position: Tensor, mode: str, over: int) -> Tensor:
    """The weights of old cells in new ones, before they are rounded.

    Args:
        cells: How many old cells there are.
        new: How many new cells there are.
        at: New cells.
        position: Old cells, of a shape that is broadcast with that of the new ones.
        mode: The interpolation.
        over: The dimension of the old cells.
    """
    if new.dtype == torch.float32:  # whole numbers and one division
        old = _scalar(cells, new.dtype)
        apart = (2 * position + 1) * new - (2 * at + 1) * old
        distance = apart.abs() / (2 * torch.maximum(old, new))
        inside = distance < (2 if mode == "bicubic" else 1)
    else:
        scale = cells / new
        center, reach = (at + 0.5) * scale, _reach(scale, mode)
        inside = (position >= torch.floor(center - reach + 0.5)) & (position < torch.floor(center + reach + 0.5))
        distance = ((position - center + 0.5) / torch.clamp(scale, min=1.0)).abs()
    inside = inside & (position >= 0) & (position < cells)
    weights = torch.where(inside, _cubic(distance) if mode == "bicubic" else (1 - distance).clamp(min=0), 0.0)
    # New cells outside of the image have no old ones: they are painted over.
    return weights / weights.sum(over, keepdim=True).clamp(min=1e-12)


def _cubic(distance: Tensor) -> Tensor:
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _CUBIC
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
