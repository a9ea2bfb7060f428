"""Layers, losses and random numbers of a portable run, for the table of :mod:`autotimm.repro.portable_arithmetic`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from autotimm.errors import UsageError
from autotimm.repro import portable_functions as functions
from autotimm.repro.exact_sums import cumulated, matmul, sum_over, windows
from autotimm.repro.portable_arithmetic import as_type, mean_over, replaces, sum_of, variance_over

__all__: list[str] = []

# Pooling: the numbers of a window are added in one order


def _pair(value: Sequence[int]) -> list[int]:
    return [*value] * 2 if len(value) == 1 else [*value]


def _counts(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], out: Sequence[int],
    include: bool, divisor: int | None,
) -> Tensor | float:  # fmt: skip
    """What the sums of windows are divided by."""
    if divisor is not None:
        return float(divisor)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.float64)
    if include:
        ones = torch.nn.functional.pad(ones, (padding[1], padding[1], padding[0], padding[0]), value=1.0)
        padding = [0, 0]
    return sum(windows(ones, kernel, stride, padding, (1, 1), out)[1])


@replaces("avg_pool2d")
def _avg_pool(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), ceil_mode: bool = False, include: bool = True,
    divisor: int | None = None,
) -> Tensor:  # fmt: skip
    out = torch.ops.aten.avg_pool2d(x[:1, :1], kernel, stride, padding, ceil_mode, include, divisor).shape[2:]
    kernel, stride, padding = _pair(kernel), _pair(stride or kernel), _pair(padding)
    total = torch.zeros(*x.shape[:2], *out, dtype=torch.float64)
    for each in windows(x, kernel, stride, padding, (1, 1), out)[1]:
        total += each
    return as_type(total.div_(_counts(x, kernel, stride, padding, out, include, divisor)), x)


@replaces("avg_pool2d_backward")
def _avg_pool_backward(
    gradient: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, include: bool,
    divisor: int | None,
) -> Tensor:  # fmt: skip
    kernel, stride, padding = _pair(kernel), _pair(stride or kernel), _pair(padding)
    out = gradient.shape[2:]
    share = gradient.double() / _counts(x, kernel, stride, padding, out, include, divisor)
    inside, taken = windows(torch.zeros_like(x), kernel, stride, padding, (1, 1), out)
    for each in taken:
        each += share
    return as_type(inside, x)


# Resizing: products with one matrix for the rows and one for the columns, of two numbers in each row


@lru_cache(maxsize=256)
def _bilinear(length: int, out: int, align_corners: bool, scale: float | None) -> Tensor:
    """The matrix (out, length) that interpolates numbers on a line."""
    if align_corners:
        step = (length - 1) / (out - 1) if out > 1 else 0.0
        places = [place * step for place in range(out)]
    else:
        step = length / out if scale is None else 1 / scale
        places = [max((place + 0.5) * step - 0.5, 0.0) for place in range(out)]
    matrix = torch.zeros(out, length, dtype=torch.float64)
    for row, place in zip(matrix, places, strict=True):
        low = min(int(place), length - 1)
        row[low] += 1 - (place - low)
        row[min(low + 1, length - 1)] += place - low
    return matrix


def _sized(x: Tensor, size: Any, scale_h: Any, scale_w: Any) -> tuple[list[int], float | None, float | None]:
    """The size of the result and the scales; in inference mode both scales come in one list, and the size may not."""
    if isinstance(scale_h, (list, tuple)):
        scale_h, scale_w = scale_h
        size = size or [int(x.shape[2] * scale_h), int(x.shape[3] * scale_w)]
    return size, scale_h, scale_w


@replaces("upsample_bilinear2d")
def _upsample(x: Tensor, size: Any, align_corners: bool, scale_h: Any = None, scale_w: Any = None) -> Tensor:
    size, scale_h, scale_w = _sized(x, size, scale_h, scale_w)
    rows = _bilinear(x.shape[2], size[0], align_corners, scale_h)
    columns = _bilinear(x.shape[3], size[1], align_corners, scale_w)
    return as_type(matmul(matmul(rows, x), columns.t()), x)


@replaces("upsample_bilinear2d_backward")
def _upsample_backward(
    gradient: Tensor, size: Sequence[int], of: Sequence[int], align_corners: bool, scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:  # fmt: skip
    rows = _bilinear(of[2], size[0], align_corners, scale_h)
    columns = _bilinear(of[3], size[1], align_corners, scale_w)
    return as_type(matmul(matmul(rows.t(), gradient), columns), gradient)


def _nearest(length: int, out: int, scale: float | None) -> list[int]:
    step = length / out if scale is None else 1 / scale
    return [min(int(place * step), length - 1) for place in range(out)]


@replaces("upsample_nearest2d")
def _upsample_nearest(x: Tensor, size: Any, scale_h: Any = None, scale_w: Any = None) -> Tensor:
    size, scale_h, scale_w = _sized(x, size, scale_h, scale_w)
    rows, columns = _nearest(x.shape[2], size[0], scale_h), _nearest(x.shape[3], size[1], scale_w)
    return x[:, :, rows][:, :, :, columns]


@replaces("upsample_nearest2d_backward")
def _upsample_nearest_backward(
    gradient: Tensor, size: Sequence[int], of: Sequence[int], scale_h: float | None = None, scale_w: float | None = None
) -> Tensor:
    rows, columns = _nearest(of[2], size[0], scale_h), _nearest(of[3], size[1], scale_w)
    places = torch.eye(of[2], dtype=torch.float64)[rows], torch.eye(of[3], dtype=torch.float64)[columns]
    return as_type(matmul(matmul(places[0].t(), gradient), places[1]), gradient)


# Losses and attention


@replaces("_softmax")
def _softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    return as_type(_softmax64(x, dim), x)


@replaces("_safe_softmax")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    blocked = (x == -math.inf).all(dim, keepdim=True)
    return _softmax64(x, dim).masked_fill_(blocked, 0).to(dtype or x.dtype)


def _softmax64(x: Tensor, dim: int) -> Tensor:
    power = functions.exp(x.double() - x.amax(dim, keepdim=True))
    return power / sum_over(power, [dim], keepdim=True)


@replaces("_softmax_backward_data")
def _softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    product = gradient.double() * output
    return (product - sum_over(product, [dim], keepdim=True) * output).to(dtype)


@replaces("_log_softmax")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    shifted = x.double() - x.amax(dim, keepdim=True)
    return as_type(shifted - functions.log(sum_over(functions.exp(shifted), [dim], keepdim=True)), x)


@replaces("_log_softmax_backward_data")
def _log_softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    total = sum_over(gradient, [dim], keepdim=True)
    return (gradient.double() - functions.exp(output) * total).to(dtype)


def _weights_of(targets: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    counted = (targets != ignored).double()
    return counted if weight is None else counted * weight[targets.clamp(min=0)]


@replaces("nll_loss_forward")
def _nll_loss(x: Tensor, targets: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> tuple[Tensor, Tensor]:
    weights = _weights_of(targets, weight, ignored)
    losses = x.double().gather(1, targets.clamp(min=0)[:, None])[:, 0].neg_().mul_(weights)
    if reduction == 0:
        return as_type(losses, x), x.new_zeros(())
    total, of_weights = sum_over(losses, [0]), sum_over(weights, [0])
    return as_type(total / of_weights if reduction == 1 else total, x), as_type(of_weights, x)


@replaces("nll_loss_backward")
def _nll_loss_backward(
    gradient: Tensor, x: Tensor, targets: Tensor, weight: Tensor | None, reduction: int, ignored: int, total: Tensor
) -> Tensor:
    weights = _weights_of(targets, weight, ignored)
    factor = gradient.double() / total if reduction == 1 else gradient.double()
    share = (weights * factor).neg_()
    return torch.zeros_like(x).scatter_(1, targets.clamp(min=0)[:, None], as_type(share, x)[:, None])


@replaces("binary_cross_entropy_with_logits")
def _bce(
    x: Tensor, targets: Tensor, weight: Tensor | None = None, positive: Tensor | None = None, reduction: int = 1
) -> Tensor:
    wide = x.double()
    fall = functions.log(1 + functions.exp(-wide.abs())) + wide.clamp(max=0).neg_()  # log(1 + exp(-x))
    factor = 1 if positive is None else (positive.double() - 1) * targets + 1
    losses = (1 - targets) * wide + factor * fall
    losses = losses if weight is None else losses * weight
    return _reduced(losses, reduction, x)


def _reduced(losses: Tensor, reduction: int, like: Tensor) -> Tensor:
    """Losses in float64, or their mean (1) or sum (2), as the type of an operand."""
    return as_type(losses if reduction == 0 else (mean_over if reduction == 1 else sum_of)(losses), like)


@replaces("smooth_l1_loss")
def _smooth_l1(x: Tensor, targets: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    distance = (x.double() - targets).abs_()
    losses = torch.where(distance < beta, distance * distance * (0.5 / beta), distance - 0.5 * beta)
    return _reduced(losses, reduction, x)


@replaces("smooth_l1_loss_backward")
def _smooth_l1_backward(gradient: Tensor, x: Tensor, targets: Tensor, reduction: int, beta: float) -> Tensor:
    slope = ((x.double() - targets) / beta).clamp_(-1, 1).mul_(gradient)
    return as_type(slope.div_(x.numel()) if reduction == 1 else slope, x)


# Normalization


@replaces("native_batch_norm")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    if training or running_mean is None or running_var is None:
        variance, mean = variance_over(x, dims, 0, keepdim=False)
        count = x.numel() // x.shape[1]
        if running_mean is not None and running_var is not None:
            running_mean.copy_(running_mean.double() * (1 - momentum) + mean * momentum)
            running_var.copy_(running_var.double() * (1 - momentum) + variance * count / (count - 1) * momentum)
    else:
        mean, variance = running_mean.double(), running_var.double()
    inverse = 1 / (variance + eps).sqrt_()
    result = (x.double() - mean.view(shape)).mul_(inverse.view(shape))
    result = result if weight is None else result.mul_(weight.view(shape))
    result = result if bias is None else result.add_(bias.view(shape))
    kept = (mean, inverse) if training else (x.new_zeros(0), x.new_zeros(0))
    return as_type(result, x), as_type(kept[0], x), as_type(kept[1], x)


@replaces("native_batch_norm_backward")
def _batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    mean: Tensor | None, inverse: Tensor | None, training: bool, eps: float, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    if not training:
        assert running_mean is not None
        assert running_var is not None
        mean, inverse = running_mean, 1 / (running_var.double() + eps).sqrt_()
    assert mean is not None
    assert inverse is not None
    wide, inverse = gradient.double(), inverse.double()
    normal = (x.double() - mean.view(shape)).mul_(inverse.view(shape))
    of_bias, of_weight = sum_over(wide, dims), sum_over(wide * normal, dims)
    of_x = wide
    if training:
        count = x.numel() // x.shape[1]
        of_x = wide - (of_bias / count).view(shape) - normal * (of_weight / count).view(shape)
    of_x = of_x * (inverse if weight is None else inverse * weight).view(shape)
    found = (of_x, of_weight, of_bias)
    return tuple(as_type(each, x) if asked else None for each, asked in zip(found, wanted, strict=True))


@replaces("native_group_norm")
def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, images: int, channels: int, positions: int, groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    parts, shape = x.reshape(images, groups, -1), (1, -1, *[1] * (x.ndim - 2))
    variance, mean = variance_over(parts, [2], 0, keepdim=True)
    inverse = 1 / (variance + eps).sqrt_()
    result = (parts.double() - mean).mul_(inverse).view(x.shape)
    result = result if weight is None else result.mul_(weight.view(shape))
    result = result if bias is None else result.add_(bias.view(shape))
    return as_type(result, x), as_type(mean[..., 0], x), as_type(inverse[..., 0], x)


@replaces("native_group_norm_backward")
def _group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, images: int, channels: int,
    positions: int, groups: int, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    wide, dims, shape = gradient.double(), [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    scale = inverse.double()[..., None]
    normal = (x.reshape(images, groups, -1).double() - mean[..., None]).mul_(scale)
    inner = (wide if weight is None else wide * weight.view(shape)).reshape(images, groups, -1)
    count = inner.shape[2]
    of_x = inner - sum_over(inner, [2], keepdim=True) / count
    of_x = (of_x - normal * (sum_over(inner * normal, [2], keepdim=True) / count)) * scale
    found = (of_x.view(x.shape), sum_over(wide * normal.view(x.shape), dims), sum_over(wide, dims))
    return tuple(as_type(each, x) if asked else None for each, asked in zip(found, wanted, strict=True))


@replaces("native_layer_norm")
def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.ndim - len(shape), x.ndim))
    variance, mean = variance_over(x, dims, 0, keepdim=True)
    inverse = 1 / (variance + eps).sqrt_()
    result = (x.double() - mean).mul_(inverse)
    result = result if weight is None else result.mul_(weight)
    result = result if bias is None else result.add_(bias)
    return as_type(result, x), as_type(mean, x), as_type(inverse, x)


@replaces("native_layer_norm_backward")
def _layer_norm_backward(
    gradient: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, inverse: Tensor, weight: Tensor | None,
    bias: Tensor | None, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    dims = list(range(x.ndim - len(shape), x.ndim))
    others = list(range(x.ndim - len(shape)))
    wide = gradient.double()
    normal = (x.double() - mean).mul_(inverse.double())
    inner = wide if weight is None else wide * weight
    count = math.prod(shape)
    of_x = inner - sum_over(inner, dims, keepdim=True) / count
    of_x = (of_x - normal * (sum_over(inner * normal, dims, keepdim=True) / count)) * inverse
    found = (
        of_x,
        sum_over(wide * normal, others) if wanted[1] else None,
        sum_over(wide, others) if wanted[2] else None,
    )
    return tuple(
        None if each is None or not asked else as_type(each, x) for each, asked in zip(found, wanted, strict=True)
    )


# Random numbers


@replaces("uniform_")
def _uniform_(x: Tensor, low: float = 0, high: float = 1, *, generator: torch.Generator | None = None) -> Tensor:
    return x.copy_(functions.uniform(x, generator).mul_(high - low).add_(low))


@replaces("normal_")
def _normal_(x: Tensor, mean: float = 0, std: float = 1, *, generator: torch.Generator | None = None) -> Tensor:
    return x.copy_(functions.normal(x, generator).mul_(std).add_(mean))


@replaces("bernoulli_")
def _bernoulli_(x: Tensor, p: Any = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    return x.copy_(functions.uniform(x, generator) < p)


@replaces("randn")
def _randn(size: Sequence[int], *, generator: torch.Generator | None = None, **kwargs: Any) -> Tensor:
    result = torch.empty(size, **kwargs)
    return result.copy_(functions.normal(result, generator))


@replaces("randn_like")
def _randn_like(x: Tensor, **kwargs: Any) -> Tensor:
    return torch.empty_like(x, **kwargs).copy_(functions.normal(x))


@replaces("bernoulli")
def _bernoulli(x: Tensor, p: Any = None, *, generator: torch.Generator | None = None) -> Tensor:
    return _bernoulli_(torch.empty_like(x), x if p is None else p, generator=generator)


@replaces("multinomial")
def _multinomial(
    x: Tensor, number: int, replacement: bool = False, *, generator: torch.Generator | None = None
) -> Tensor:
    if number != 1 and not replacement:
        raise UsageError("A portable run cannot draw several times without replacement. Leave `portable` out.")
    ends = cumulated(x, x.ndim - 1)
    drawn = functions.uniform(x.new_empty(*x.shape[:-1], number), generator).mul_(ends[..., -1:])
    return torch.searchsorted(ends, drawn, right=True).clamp_(max=x.shape[-1] - 1)


@replaces("_sample_dirichlet")
def _dirichlet(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    logarithms = [_log_gamma_number(shape, generator) for shape in x.double().flatten().tolist()]
    return as_type(_softmax64(torch.tensor(logarithms, dtype=torch.float64).view(x.shape), x.ndim - 1), x)


def _log_gamma_number(shape: float, generator: torch.Generator | None) -> float:
    """The logarithm of a gamma-distributed number, which itself may be too small for a float.

    Source:
        G. Marsaglia and W. W. Tsang, "A simple method for generating gamma variables", ACM TOMS 2000.
    """
    one = torch.empty((), dtype=torch.float64)
    boost = 0.0
    if shape < 1:
        boost = _log(1 - functions.uniform(one, generator).item()) / shape
        shape += 1
    middle = shape - 1 / 3
    while True:
        normal = functions.normal(one, generator).item()
        side = 1 + normal / math.sqrt(9 * middle)
        cube = side * side * side
        chance = 1 - functions.uniform(one, generator).item()
        if cube > 0 and _log(chance) < normal * normal / 2 + middle * (1 - cube + _log(cube)):
            return _log(middle * cube) + boost


def _log(x: float) -> float:
    return functions.log(torch.tensor(x, dtype=torch.float64)).item()


@replaces("linspace")
def _linspace(start: float, end: float, steps: int, **kwargs: Any) -> Tensor:
    kwargs.pop("layout", None), kwargs.pop("pin_memory", None)
    return torch.tensor([start + (end - start) * step / max(steps - 1, 1) for step in range(steps)], **kwargs)
