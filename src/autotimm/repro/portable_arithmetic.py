"""The table of operators of torch that are computed in another way in a portable run, and its arithmetic.

Sums, products of matrices, convolutions and functions of single numbers; see :mod:`autotimm.repro.portable_layers` for
layers. Within the functions here operators are those of torch: they must use what rounds each number once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from autotimm.errors import UsageError
from autotimm.repro import portable_functions as functions
from autotimm.repro.exact_sums import add_at, convolution, convolution_gradients, cumulated, matmul, sum_over

__all__ = ["REPLACED", "all_dims", "as_type", "mean_over", "replaces", "sigmoid64", "sum_of", "variance_over"]

_Handler = TypeVar("_Handler", bound=Callable[..., Any])
REPLACED: dict[str, Callable[..., Any]] = {}
"""What computes an operator, with the same arguments: by its name in ``aten``, else with its namespace in front."""


def replaces(*names: str) -> Callable[[_Handler], _Handler]:
    """Note a function as that which computes some operators."""

    def note(handler: _Handler) -> _Handler:
        REPLACED.update(dict.fromkeys(names, handler))
        return handler

    return note


def as_type(result: Tensor, like: Tensor) -> Tensor:
    """Round a float64 result to the data type of an operand."""
    return result.to(like.dtype)


def all_dims(x: Tensor, dims: int | Sequence[int] | None) -> list[int]:
    """The dimensions of an argument, from 0; all of them if none is given."""
    if isinstance(dims, int):
        dims = [dims]
    return [dim % x.ndim for dim in dims] if dims and x.ndim else list(range(x.ndim))


# Sums


@replaces("sum")
def sum_of(x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """The sum over dimensions, or over all, of any type of number."""
    if not (x.is_floating_point() or (dtype is not None and dtype.is_floating_point)) or not x.ndim:
        return torch.sum(x, dtype=dtype) if not x.ndim else torch.sum(x, all_dims(x, dims), keepdim, dtype=dtype)
    return sum_over(x, all_dims(x, dims), keepdim=keepdim).to(dtype or x.dtype)


@replaces("nansum")
def _nansum(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return sum_of(torch.where(x.isnan(), 0, x), *args, **kwargs)


@replaces("mean")
def mean_over(x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """The mean over dimensions, or over all."""
    dims = all_dims(x, dims)
    count = math.prod(x.shape[dim] for dim in dims)
    return sum_of(x.double(), dims, keepdim).div_(count).to(dtype or x.dtype)


@replaces("trace")
def _trace(x: Tensor) -> Tensor:
    return sum_of(x.diagonal())


@replaces("scatter_add")
def _scatter_add(x: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
    if not x.is_floating_point():
        return torch.scatter_add(x, dim, index, values)
    values = values[tuple(slice(size) for size in index.shape)]
    places: list[Tensor] = list(torch.meshgrid(*map(torch.arange, index.shape), indexing="ij"))
    places[dim] = index
    return as_type(add_at(x, places, values), x)


@replaces("linalg_vector_norm")
def _norm(
    x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    dims, wide = all_dims(x, dims), x.double()
    if order == math.inf:
        largest: Tensor = torch.linalg.vector_norm(x, order, dims, keepdim, dtype=dtype)
        return largest
    if order not in (1, 2):
        raise UsageError(f"The norm of a portable run must be 1, 2 or inf. Got {order} instead. Give one of these.")
    total = sum_of(wide.abs() if order == 1 else wide * wide, dims, keepdim)
    return (total if order == 1 else total.sqrt_()).to(dtype or x.dtype)


def variance_over(x: Tensor, dims: Sequence[int], correction: float | None, keepdim: bool) -> tuple[Tensor, Tensor]:
    """The variance and the mean over dimensions, in float64."""
    wide = x.double()
    count = math.prod(x.shape[dim] for dim in dims)
    mean = sum_over(wide, dims, keepdim=True).div_(count)
    centered = wide - mean
    variance = sum_over(centered.mul_(centered), dims, keepdim=True).div_(
        max(count - (1 if correction is None else correction), 0)
    )
    if not keepdim:
        kept = [size for dim, size in enumerate(x.shape) if dim not in dims]
        mean, variance = mean.reshape(kept), variance.reshape(kept)
    return variance, mean


@replaces("var_mean")
def _var_mean(
    x: Tensor, dims: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: float | None = None
) -> tuple[Tensor, Tensor]:
    if isinstance(unbiased, bool):
        correction = float(unbiased)
    variance, mean = variance_over(x, all_dims(x, dims), correction, keepdim)
    return as_type(variance, x), as_type(mean, x)


@replaces("var")
def _var(*args: Any, **kwargs: Any) -> Tensor:
    return _var_mean(*args, **kwargs)[0]


@replaces("std")
def _std(*args: Any, **kwargs: Any) -> Tensor:
    return _var_mean(*args, **kwargs)[0].sqrt_()


@replaces("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False, unsafe: bool = False) -> Tensor:
    if accumulate and x.is_floating_point():
        return as_type(add_at(x, indices, values), x)
    result: Tensor = torch.ops.aten.index_put(x, indices, values, accumulate)
    return result


@replaces("cumsum")
def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    if not (x.is_floating_point() or (dtype is not None and dtype.is_floating_point)):
        return torch.cumsum(x, dim, dtype=dtype)
    return cumulated(x, dim).to(dtype or x.dtype)


@replaces("sort")
def _sort(x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> Any:
    # Otherwise instruction sets put equal numbers in another order.
    return torch.sort(x, dim=dim, descending=descending, stable=True)


@replaces("topk")
def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not x.ndim:
        return torch.topk(x, k, dim, largest, sorted)
    return tuple(each.narrow(dim, 0, k) for each in _sort(x, dim, largest))  # of equal numbers the first ones


# Products of matrices, and convolutions


@replaces("mm", "bmm")
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return as_type(matmul(a, b), a)


@replaces("addmm", "baddbmm")
def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = matmul(a, b)
    return as_type((product if alpha == 1 else product.mul_(alpha)) + (bias if beta == 1 else bias * beta), a)


@replaces("mv")
def _mv(a: Tensor, b: Tensor) -> Tensor:
    return _mm(a, b[:, None])[:, 0]


@replaces("dot")
def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _mm(a[None], b[:, None])[0, 0]


@replaces("convolution")
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    if transposed:
        result = _transposed(x, weight, stride, padding, dilation, output_padding, groups)
    else:
        result = convolution(x, weight, stride, padding, dilation, groups)
    if bias is not None:
        result += bias.view(1, -1, *[1] * (x.ndim - 2))
    return as_type(result, x)


def _transposed(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """What a convolution with this weight would give its images as a gradient."""
    size = [
        (length - 1) * step - 2 * before + gap * (width - 1) + more + 1
        for length, step, before, gap, width, more in zip(
            x.shape[2:], stride, padding, dilation, weight.shape[2:], output_padding, strict=True
        )
    ]
    images = x.new_zeros(x.shape[0], weight.shape[1] * groups, *size)
    result = convolution_gradients(x, images, weight, stride, padding, dilation, groups, [True, False])[0]
    assert result is not None
    return result


@replaces("convolution_backward")
def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    settings = (stride, padding, dilation, groups)
    if transposed:
        of_x = convolution(gradient, weight, *settings) if wanted[0] else None
        found = of_x, convolution_gradients(x, gradient, weight, *settings, [False, wanted[1]])[1]
    else:
        found = convolution_gradients(gradient, x, weight, *settings, wanted)
    of_bias = sum_over(gradient, [0, *range(2, gradient.ndim)]) if wanted[2] else None
    return tuple(None if each is None else as_type(each, x) for each in (*found, of_bias))


# Elementwise operators of more than one rounding


def _add(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    return torch.add(a, b) if alpha == 1 else torch.add(a, torch.mul(b, alpha))


def _sub(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    return torch.sub(a, b) if alpha == 1 else torch.sub(a, torch.mul(b, alpha))


def _rsub(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    return _sub(b, a, alpha)


def _add_(a: Tensor, b: Any, alpha: Any = 1) -> Tensor:
    return a.add_(b if alpha == 1 else torch.mul(b, alpha))


def _sub_(a: Tensor, b: Any, alpha: Any = 1) -> Tensor:
    return a.sub_(b if alpha == 1 else torch.mul(b, alpha))


REPLACED |= {"add": _add, "add_": _add_, "sub": _sub, "sub_": _sub_, "rsub": _rsub}


@replaces("addcmul")
def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b).mul_(value)


@replaces("addcdiv")
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a / b).mul_(value)


@replaces("lerp")
def _lerp(x: Tensor, end: Tensor, weight: Any) -> Tensor:
    result: Tensor = x + (end - x) * weight
    return result


@replaces("rsqrt")
def _rsqrt(x: Tensor) -> Tensor:
    return 1 / x.sqrt()


@replaces("pow")
def _pow(x: Any, exponent: Any) -> Tensor:
    if isinstance(x, Tensor) and isinstance(exponent, Tensor):
        return power(x.double(), exponent.double()).to(torch.result_type(x, exponent))
    if isinstance(x, Tensor) and exponent == 2:
        return x * x
    if isinstance(x, Tensor) and exponent == 3:
        return x * x * x
    if isinstance(x, Tensor) and exponent == 1:
        return x.clone()
    if isinstance(x, Tensor) and exponent == 0.5:
        return x.sqrt()
    if not isinstance(x, Tensor):  # of a number, as for the widths of layers
        powers = [x**each for each in exponent.flatten().tolist()]
        return torch.tensor(powers, dtype=exponent.dtype).view(exponent.shape)
    return power(x.double(), torch.tensor(exponent, dtype=torch.float64)).to(torch.result_type(x, exponent))


def power(x: Tensor, exponent: Tensor) -> Tensor:
    """A power in float64; NaN for a negative base unless the exponent is whole."""
    result = functions.exp(functions.log(x.abs()) * exponent)
    odd = exponent.fmod(2).abs()
    result = torch.where(x < 0, torch.where(odd == 1, -result, torch.where(odd == 0, result, math.nan)), result)
    return torch.where(exponent == 0, 1.0, result)


def _wide(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: as_type(function(x), x)


def sigmoid64(x: Tensor) -> Tensor:
    """The logistic function, in float64."""
    return 1 / (1 + functions.exp(-x.double()))


def _tanh64(x: Tensor) -> Tensor:
    return 1 - 2 / (functions.exp(2 * x.double()) + 1)


REPLACED |= {
    "exp": _wide(functions.exp), "log": _wide(functions.log), "erf": _wide(functions.erf),
    "log2": _wide(lambda x: functions.log(x).div_(math.log(2))),
    "erfinv": _wide(functions.erfinv), "sigmoid": _wide(sigmoid64), "tanh": _wide(_tanh64),
}  # fmt: skip


@replaces("sigmoid_backward")
def _sigmoid_backward(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * ((1 - output) * output)


@replaces("tanh_backward")
def _tanh_backward(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * (1 - output * output)


@replaces("silu")
def _silu(x: Tensor) -> Tensor:
    return as_type(x * sigmoid64(x), x)


@replaces("silu_backward")
def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    gate = sigmoid64(x)
    return as_type(gradient * (gate * (1 + x * (1 - gate))), x)


@replaces("hardsigmoid")
def _hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp_(0, 6).div_(6)


@replaces("hardsigmoid_backward")
def _hardsigmoid_backward(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.where((x > -3) & (x < 3), gradient / 6, 0)


@replaces("hardswish")
def _hardswish(x: Tensor) -> Tensor:
    return x * _hardsigmoid(x)


@replaces("hardswish_backward")
def _hardswish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    inner = torch.where(x < 3, gradient * (x / 3 + 0.5), gradient)
    return torch.where(x < -3, 0, inner)


@replaces("gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    wide = x.double()
    if approximate == "tanh":
        return as_type(wide * sigmoid64(_inner(wide) * 2), x)
    return as_type(wide * functions.erfc(wide * -math.sqrt(0.5)) * 0.5, x)


def _inner(x: Tensor) -> Tensor:
    return (x * x * x * 0.044715 + x) * math.sqrt(2 / math.pi)


@replaces("gelu_backward")
def _gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    wide = x.double()
    if approximate == "tanh":
        gate = sigmoid64(_inner(wide) * 2)
        slope = (wide * wide * (3 * 0.044715) + 1) * (2 * math.sqrt(2 / math.pi))
        return as_type(gradient * (gate + wide * gate * (1 - gate) * slope), x)
    share = functions.erfc(wide * -math.sqrt(0.5)) * 0.5
    density = functions.exp(wide * wide * -0.5) * (1 / math.sqrt(2 * math.pi))
    return as_type(gradient * (share + wide * density), x)
