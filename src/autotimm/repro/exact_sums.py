"""Sums that are exact, and so have the same bits in any order: of tensors, matrix products and convolutions.

A sum of floats depends on its order because each addition rounds. Here the numbers are rounded first, to multiples of
one power of two that are so few that float64 holds every partial sum exactly. Then no thread count, instruction set or
blocking of a matrix product can change a bit, nor can fused multiplications. This is the idea of S. M. Rump, T. Ogita
and S. Oishi, "Accurate floating-point summation", SISC 2008, and K. Ozaki et al., "Error-free transformations of matrix
multiplication", Numerical Algorithms 2012, of which the first slice is enough here.

Of K products the factors keep (53 - log2 K) / 2 bits below the largest number of their row: about 20, more than in
TF32 (10) and less than in float32 (24 below each number itself). All operands are tensors on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "add_at", "bits_of", "convolution", "convolution_gradients", "cumulated", "matmul", "on_grid", "sum_over",
    "windows",
]  # fmt: skip

_MANTISSA = 53  # bits of a float64
_EXPONENT = 0x7FF0000000000000
_SMALLEST = 2.0**-300  # of a row; products of what is rounded with it are still normal numbers


def on_grid(x: Tensor, dims: Sequence[int], bits: int) -> Tensor:
    """Round to multiples of a power of two, of which the largest number is at most ``2**bits``, in float64.

    Args:
        x: The numbers.
        dims: The dimensions that are summed over: the grid is one along these.
        bits: At most 51.
    """
    largest = torch.linalg.vector_norm(x, math.inf, dim=tuple(dims), keepdim=True)
    power = largest.double().clamp_(min=_SMALLEST).view(torch.int64).bitwise_and_(_EXPONENT).view(torch.float64)
    # Adding this number leaves no room for bits below the grid.
    anchor = power * (1.5 * 2.0 ** (_MANTISSA - bits))
    return torch.add(x, anchor).sub_(anchor)


def bits_of(terms: int) -> int:
    """The bits that a sum of so many terms leaves to each."""
    return _MANTISSA - max(terms - 1, 0).bit_length()


def sum_over(x: Tensor, dims: Sequence[int], *, keepdim: bool = False) -> Tensor:
    """Sum over dimensions, in float64.

    Example:
        >>> sum_over(torch.tensor([1e8, 1.0, -1e8]), [0]).item()
        1.0
    """
    if not x.numel():
        return torch.sum(x.double(), tuple(dims), keepdim=keepdim)
    bits = min(bits_of(math.prod(x.shape[dim] for dim in dims)), _MANTISSA - 2)
    return torch.sum(on_grid(x, dims, bits), tuple(dims), keepdim=keepdim)


def cumulated(x: Tensor, dim: int) -> Tensor:
    """The sums of the first numbers along a dimension, in float64.

    Example:
        >>> cumulated(torch.tensor([1e8, 1.0, -1e8]), 0).tolist()
        [100000000.0, 100000001.0, 1.0]
    """
    if not x.numel() or not x.ndim:
        return torch.cumsum(x.double(), dim)
    return torch.cumsum(on_grid(x, [dim], min(bits_of(x.shape[dim]), _MANTISSA - 2)), dim)


def add_at(x: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    """Add values at places of which one may occur several times, in float64.

    Example:
        >>> add_at(torch.zeros(2), [torch.tensor([1, 1, 1])], torch.tensor([1e8, 1.0, -1e8])).tolist()
        [0.0, 1.0]
    """
    added = torch.zeros(x.shape, dtype=torch.float64)
    if values.numel():
        shapes = [index.shape for index in indices if index is not None and index.dtype != torch.bool]
        bits = min(bits_of(max(values.numel(), math.prod(torch.broadcast_shapes(*shapes)))), _MANTISSA - 2)
        grid = on_grid(values, tuple(range(values.ndim)), bits) if values.ndim else values.double()
        torch.ops.aten.index_put_(added, indices, grid, True)
    return added.add_(x)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices (..., M, K) and (..., K, N), in float64."""
    if not a.numel() or not b.numel():
        return torch.matmul(a.double(), b.double())
    bits = bits_of(a.shape[-1]) // 2
    return torch.matmul(on_grid(a, (-1,), bits), on_grid(b, (-2,), bits))


def convolution(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """A convolution of images (N, C, H, W) without bias, in float64."""
    if _is_depthwise(x, weight, groups):
        return _depthwise(x, weight, stride, padding, dilation)
    bits = bits_of(weight[0].numel()) // 2
    rest = tuple(range(1, x.ndim))
    result: Tensor = torch.ops.aten.convolution(
        on_grid(x, rest, bits), on_grid(weight, rest, bits), None, stride, padding, dilation, False,
        [0] * len(stride), groups,
    )  # fmt: skip
    return result


def convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of a convolution with respect to its images and its weight, in float64; ``None`` if not wanted."""
    if _is_depthwise(x, weight, groups):
        return _depthwise_gradients(gradient, x, weight, stride, padding, dilation, wanted)
    rest = tuple(range(1, x.ndim))
    positions = (0, *rest[1:])
    settings = (None, stride, padding, dilation, False, [0] * len(stride), groups)
    backward: Any = torch.ops.aten.convolution_backward
    of_x = of_weight = None
    if wanted[0]:
        bits = bits_of(weight.numel() // weight.shape[1] // groups) // 2
        # A group has its own input channels, which the dimension of the weight does not tell apart.
        grid = on_grid(weight, positions if groups == 1 else (0, *rest), bits)
        of_x = backward(on_grid(gradient, rest, bits), x.double(), grid, *settings, [True, False, False])[0]
    if wanted[1]:
        bits = bits_of(gradient.numel() // gradient.shape[1]) // 2
        exact = on_grid(gradient, positions, bits), on_grid(x, positions, bits)
        of_weight = backward(*exact, weight.double(), *settings, [False, True, False])[1]
    return of_x, of_weight


# Depthwise convolutions: torch would call a matrix product for each channel and image. Their windows are so small that
# the numbers are added in one order, and need no grid.


def windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    out: Sequence[int],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Copy images (N, C, H, W) to float64 with zeros around them.

    Returns:
        The images in the copy, and for each place of a window, row by row, what all windows have there: (N, C, *out).
    """
    spans = [(count - 1) * step + 1 for count, step in zip(out, stride, strict=True)]
    size = [
        max(span + gap * (width - 1), before + length)
        for span, gap, width, before, length in zip(spans, dilation, kernel, padding, x.shape[2:], strict=True)
    ]
    wide = torch.zeros(*x.shape[:2], *size, dtype=torch.float64)
    inside = wide[:, :, padding[0] : padding[0] + x.shape[2], padding[1] : padding[1] + x.shape[3]]
    inside.copy_(x)
    corners = [(row * dilation[0], column * dilation[1]) for row in range(kernel[0]) for column in range(kernel[1])]
    return inside, [
        wide[:, :, row : row + spans[0] : stride[0], column : column + spans[1] : stride[1]] for row, column in corners
    ]


def _is_depthwise(x: Tensor, weight: Tensor, groups: int) -> bool:
    return x.ndim == 4 and groups == x.shape[1] == weight.shape[0] and groups > 1


def _depthwise(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    kernel = weight.shape[2:]
    out = [
        (length + 2 * before - gap * (width - 1) - 1) // step + 1
        for length, before, gap, width, step in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    result = torch.zeros(*x.shape[:2], *out, dtype=torch.float64)
    places = windows(x, kernel, stride, padding, dilation, out)[1]
    for place, factor in zip(places, weight.double().flatten(2).unbind(2), strict=True):
        result += place * factor[..., None]
    return result


def _depthwise_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    settings = (weight.shape[2:], stride, padding, dilation, gradient.shape[2:])
    of_x = of_weight = None
    if wanted[0]:
        of_x, places = windows(torch.zeros_like(x), *settings)
        wide = gradient.double()
        for place, factor in zip(places, weight.double().flatten(2).unbind(2), strict=True):
            place += wide * factor[..., None]
    if wanted[1]:
        dims = (0, 2, 3)
        bits = bits_of(gradient.numel() // gradient.shape[1]) // 2
        exact, places = on_grid(gradient, dims, bits), windows(on_grid(x, dims, bits), *settings)[1]
        of_weight = torch.stack([torch.sum(place * exact, dims) for place in places], 1).view(weight.shape)
    return of_x, of_weight
