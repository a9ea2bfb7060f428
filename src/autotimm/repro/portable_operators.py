"""Run torch with operators whose bits depend on neither the number of threads nor the instruction set.

Within :class:`PortableOperators` each operator of torch, those of backward passes and optimizers included, is one of
three kinds. What rounds nothing, or each number once as IEEE 754 prescribes, runs as it is. Sums, matrix products,
convolutions, normalization and functions such as GELU are replaced, by :mod:`autotimm.repro.exact_sums` and
:mod:`autotimm.repro.portable_functions`. Any other is refused by its name: nothing is assumed of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from autotimm.errors import UsageError
from autotimm.repro import portable_functions as functions
from autotimm.repro.exact_sums import convolution, convolution_gradients, matmul, sum_over, windows

__all__ = ["PortableOperators", "portable_operators"]

# They move, compare or count, or round each result once. A sum of whole numbers is exact in any order.
_AS_THEY_ARE = frozenset(
    """
    _local_scalar_dense _reshape_alias _to_copy _unsafe_view alias argmax argmin argsort as_strided as_strided_ cat clone
    constant_pad_nd contiguous copy_ detach detach_ diagonal empty empty_like empty_strided expand eye fill fill_ flip
    full full_like gather index index_fill_ index_put_ index_select is_same_size isfinite isinf isnan
    item lift_fresh lift_fresh_copy masked_fill masked_fill_ masked_select max max_pool2d_with_indices
    max_pool2d_with_indices_backward min narrow new_empty new_empty_strided new_full new_ones new_zeros nonzero ones
    ones_like permute pixel_shuffle pixel_unshuffle repeat repeat_interleave resize_ roll scalar_tensor
    scatter scatter_ select select_backward set_ slice slice_backward sort split split_with_sizes squeeze squeeze_
    stack t t_ topk transpose transpose_ triu tril unbind unfold unsqueeze unsqueeze_ view view_as_real where zero_
    zeros zeros_like random_ randperm randint bincount _unique2
    amax amin aminmax all any bitwise_and bitwise_not bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift
    eq eq_ ge ge_ gt gt_ le le_ lt lt_ ne ne_ equal logical_and logical_and_ logical_not logical_not_ logical_or
    logical_or_ logical_xor
    abs abs_ ceil ceil_ clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ div div_ floor floor_ floor_divide
    hardtanh hardtanh_ hardtanh_backward maximum minimum mul mul_ neg neg_ reciprocal reciprocal_ relu relu_ remainder
    round round_ sgn sign sign_ sqrt sqrt_ threshold threshold_backward trunc nan_to_num nan_to_num_ leaky_relu
    leaky_relu_ leaky_relu_backward arange embedding
    """.split()  # noqa: SIM905  # a list of so many strings is harder to read
)

_Handler = Callable[..., Any]
_REPLACED: dict[str, _Handler] = {}


def _replaces(*names: str) -> Callable[[_Handler], _Handler]:
    def note(handler: _Handler) -> _Handler:
        _REPLACED.update(dict.fromkeys(names, handler))
        return handler

    return note


@contextmanager
def portable_operators(on: bool = True) -> Iterator[None]:
    """Compute within this context with the same bits on every processor with IEEE 754 arithmetic.

    It affects the thread that enters it, and backward passes that begin there; on the CPU alone. Random numbers are
    others than without it, from the same generators. Within itself it does nothing.

    Args:
        on: Whether to do anything at all.

    Raises:
        UsageError: If an operator is used whose bits are not known to be the same everywhere; it names the operator.

    Example:
        >>> with portable_operators():
        ...     torch.tensor([1e8, 1.0, -1e8]).sum().item()
        1.0
    """
    if not on or getattr(_here, "within", False):
        yield
        return
    _here.within = True
    try:
        # Attention as products of matrices and a softmax, not in a kernel of its own.
        with sdpa_kernel(SDPBackend.MATH), PortableOperators():
            yield
    finally:
        _here.within = False


_here = local()  # one within another would replace the operators that replace others


class PortableOperators(TorchDispatchMode):
    """Replaces or refuses operators, see :func:`portable_operators`, which is what to use."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        name = name if func.namespace == "aten" else ""
        if _is_meta(args, kwargs):
            return func(*args, **kwargs)
        if name.startswith("_foreach_"):
            return _of_each(name.removeprefix("_foreach_"), args, kwargs)
        # In inference mode operators arrive here that consist of others.
        if not (name in _REPLACED or name in _AS_THEY_ARE) and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        return _run(name, func, args, kwargs)


def _run(name: str, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """Run an operator or what replaces it; in-place ones that are in no table write what others return."""
    if (handler := _REPLACED.get(name)) is not None:
        return handler(*args, **kwargs)
    if name in _AS_THEY_ARE or not _computes(args):
        return func(*args, **kwargs)
    if name.endswith("_") and (handler := _REPLACED.get(name[:-1])) is not None:
        return args[0].copy_(handler(*args, **kwargs))
    raise UsageError(
        f"A portable run must use operators whose bits are known to be the same everywhere. Got {func} instead. "
        "Choose a backbone of `autotimm backbones --portable`, other options, or leave `portable` out."
    )


def _of_each(name: str, args: Sequence[Any], kwargs: Any) -> Any:
    """Run an operator for each tensor of a list, as optimizers and the clipping of gradients do."""
    name = {"norm": "linalg_vector_norm"}.get(name, name)
    func = getattr(torch.ops.aten, name)
    cut = [[arg[i] if isinstance(arg, (list, tuple)) else arg for arg in args] for i in range(len(args[0]))]
    results = [_run(name, func, each, kwargs) for each in cut]
    return None if name.endswith("_") else results


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    given = [each for arg in args for each in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    return [each for each in given if isinstance(each, Tensor)]


def _computes(args: Sequence[Any]) -> bool:
    """Whether numbers with a fraction are among the arguments: whole numbers have one result."""
    return any(each.is_floating_point() or each.is_complex() for each in _tensors(args))


def _is_meta(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether shapes alone are computed."""
    device = kwargs.get("device")
    return any(each.is_meta for each in _tensors(args)) or (device is not None and torch.device(device).type == "meta")


def _as(result: Tensor, like: Tensor) -> Tensor:
    """Round a float64 result to the data type of an operand."""
    return result.to(like.dtype)


def _all_dims(x: Tensor, dims: int | Sequence[int] | None) -> list[int]:
    if isinstance(dims, int):
        dims = [dims]
    return [dim % x.ndim for dim in dims] if dims and x.ndim else list(range(x.ndim))


# Sums


@_replaces("sum")
def _sum(x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    if not (x.is_floating_point() or (dtype is not None and dtype.is_floating_point)) or not x.ndim:
        return torch.sum(x, dtype=dtype) if not x.ndim else torch.sum(x, _all_dims(x, dims), keepdim, dtype=dtype)
    return sum_over(x, _all_dims(x, dims), keepdim=keepdim).to(dtype or x.dtype)


@_replaces("mean")
def _mean(x: Tensor, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    dims = _all_dims(x, dims)
    count = math.prod(x.shape[dim] for dim in dims)
    return _sum(x.double(), dims, keepdim).div_(count).to(dtype or x.dtype)


@_replaces("linalg_vector_norm")
def _norm(
    x: Tensor, order: float = 2, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    dims, wide = _all_dims(x, dims), x.double()
    if order == math.inf:
        return torch.linalg.vector_norm(x, order, dims, keepdim, dtype=dtype)
    if order not in (1, 2):
        raise UsageError(f"The norm of a portable run must be 1, 2 or inf. Got {order} instead. Give one of these.")
    total = _sum(wide.abs() if order == 1 else wide * wide, dims, keepdim)
    return (total if order == 1 else total.sqrt_()).to(dtype or x.dtype)


def _variance(x: Tensor, dims: Sequence[int], correction: float | None, keepdim: bool) -> tuple[Tensor, Tensor]:
    wide = x.double()
    count = math.prod(x.shape[dim] for dim in dims)
    mean = sum_over(wide, dims, keepdim=True).div_(count)
    centered = wide - mean
    variance = sum_over(centered.mul_(centered), dims, keepdim=True).div_(max(count - (1 if correction is None else correction), 0))
    if not keepdim:
        kept = [size for dim, size in enumerate(x.shape) if dim not in dims]
        mean, variance = mean.reshape(kept), variance.reshape(kept)
    return variance, mean


@_replaces("var_mean")
def _var_mean(
    x: Tensor, dims: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: float | None = None
) -> tuple[Tensor, Tensor]:
    if isinstance(unbiased, bool):
        correction = float(unbiased)
    variance, mean = _variance(x, _all_dims(x, dims), correction, keepdim)
    return _as(variance, x), _as(mean, x)


@_replaces("var")
def _var(*args: Any, **kwargs: Any) -> Tensor:
    return _var_mean(*args, **kwargs)[0]


@_replaces("std")
def _std(*args: Any, **kwargs: Any) -> Tensor:
    return _var_mean(*args, **kwargs)[0].sqrt_()


# Products of matrices, and convolutions


@_replaces("mm", "bmm")
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _as(matmul(a, b), a)


@_replaces("addmm", "baddbmm")
def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = matmul(a, b)
    return _as((product if alpha == 1 else product.mul_(alpha)) + (bias if beta == 1 else bias * beta), a)


@_replaces("mv")
def _mv(a: Tensor, b: Tensor) -> Tensor:
    return _mm(a, b[:, None])[:, 0]


@_replaces("dot")
def _dot(a: Tensor, b: Tensor) -> Tensor:
    return _mm(a[None], b[:, None])[0, 0]


@_replaces("convolution")
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    _refuse_transposed(transposed)
    result = convolution(x, weight, stride, padding, dilation, groups)
    if bias is not None:
        result += bias.view(1, -1, *[1] * (x.ndim - 2))
    return _as(result, x)


@_replaces("convolution_backward")
def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    _refuse_transposed(transposed)
    found = convolution_gradients(gradient, x, weight, stride, padding, dilation, groups, wanted)
    of_bias = sum_over(gradient, [0, *range(2, gradient.ndim)]) if wanted[2] else None
    return tuple(None if each is None else _as(each, x) for each in (*found, of_bias))


def _refuse_transposed(transposed: bool) -> None:
    if transposed:
        raise UsageError("A portable run cannot use transposed convolutions. Leave `portable` out.")


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


_REPLACED |= {"add": _add, "add_": _add_, "sub": _sub, "sub_": _sub_, "rsub": _rsub}


@_replaces("addcmul")
def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b).mul_(value)


@_replaces("addcdiv")
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a / b).mul_(value)


@_replaces("lerp")
def _lerp(x: Tensor, end: Tensor, weight: Any) -> Tensor:
    return x + (end - x) * weight


@_replaces("rsqrt")
def _rsqrt(x: Tensor) -> Tensor:
    return 1 / x.sqrt()


@_replaces("pow")
def _pow(x: Any, exponent: Any) -> Tensor:
    if isinstance(x, Tensor) and exponent == 2:
        return x * x
    if isinstance(x, Tensor) and exponent == 3:
        return x * x * x
    if isinstance(x, Tensor) and exponent == 1:
        return x.clone()
    if isinstance(x, Tensor) and exponent == 0.5:
        return x.sqrt()
    raise UsageError(f"A portable run cannot compute the power {exponent}. Leave `portable` out.")


def _wide(function: Callable[[Tensor], Tensor]) -> _Handler:
    return lambda x: _as(function(x), x)


def _sigmoid64(x: Tensor) -> Tensor:
    return 1 / (1 + functions.exp(-x.double()))


def _tanh64(x: Tensor) -> Tensor:
    return 1 - 2 / (functions.exp(2 * x.double()) + 1)


_REPLACED |= {
    "exp": _wide(functions.exp), "log": _wide(functions.log), "erf": _wide(functions.erf),
    "erfinv": _wide(functions.erfinv), "sigmoid": _wide(_sigmoid64), "tanh": _wide(_tanh64),
}  # fmt: skip


@_replaces("sigmoid_backward")
def _sigmoid_backward(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * ((1 - output) * output)


@_replaces("tanh_backward")
def _tanh_backward(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient * (1 - output * output)


@_replaces("silu")
def _silu(x: Tensor) -> Tensor:
    return _as(x * _sigmoid64(x), x)


@_replaces("silu_backward")
def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    gate = _sigmoid64(x)
    return _as(gradient * (gate * (1 + x * (1 - gate))), x)


@_replaces("hardsigmoid")
def _hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp_(0, 6).div_(6)


@_replaces("hardsigmoid_backward")
def _hardsigmoid_backward(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.where((x > -3) & (x < 3), gradient / 6, 0)


@_replaces("hardswish")
def _hardswish(x: Tensor) -> Tensor:
    return x * _hardsigmoid(x)


@_replaces("hardswish_backward")
def _hardswish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    inner = torch.where(x < 3, gradient * (x / 3 + 0.5), gradient)
    return torch.where(x < -3, 0, inner)


@_replaces("gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    wide = x.double()
    if approximate == "tanh":
        return _as(wide * _sigmoid64(_inner(wide) * 2), x)
    return _as(wide * functions.erfc(wide * -math.sqrt(0.5)) * 0.5, x)


def _inner(x: Tensor) -> Tensor:
    return (x * x * x * 0.044715 + x) * math.sqrt(2 / math.pi)


@_replaces("gelu_backward")
def _gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    wide = x.double()
    if approximate == "tanh":
        gate = _sigmoid64(_inner(wide) * 2)
        slope = (wide * wide * (3 * 0.044715) + 1) * (2 * math.sqrt(2 / math.pi))
        return _as(gradient * (gate + wide * gate * (1 - gate) * slope), x)
    share = functions.erfc(wide * -math.sqrt(0.5)) * 0.5
    density = functions.exp(wide * wide * -0.5) * (1 / math.sqrt(2 * math.pi))
    return _as(gradient * (share + wide * density), x)


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


@_replaces("avg_pool2d")
def _avg_pool(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), ceil_mode: bool = False, include: bool = True,
    divisor: int | None = None,
) -> Tensor:  # fmt: skip
    out = torch.ops.aten.avg_pool2d(x[:1, :1], kernel, stride, padding, ceil_mode, include, divisor).shape[2:]
    kernel, stride, padding = _pair(kernel), _pair(stride or kernel), _pair(padding)
    total = torch.zeros(*x.shape[:2], *out, dtype=torch.float64)
    for each in windows(x, kernel, stride, padding, (1, 1), out)[1]:
        total += each
    return _as(total.div_(_counts(x, kernel, stride, padding, out, include, divisor)), x)


@_replaces("avg_pool2d_backward")
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
    return _as(inside, x)


# Losses and attention


@_replaces("_softmax")
def _softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    return _as(_softmax64(x, dim), x)


@_replaces("_safe_softmax")
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    blocked = (x == -math.inf).all(dim, keepdim=True)
    return _softmax64(x, dim).masked_fill_(blocked, 0).to(dtype or x.dtype)


def _softmax64(x: Tensor, dim: int) -> Tensor:
    power = functions.exp(x.double() - x.amax(dim, keepdim=True))
    return power / sum_over(power, [dim], keepdim=True)


@_replaces("_softmax_backward_data")
def _softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    product = gradient.double() * output
    return (product - sum_over(product, [dim], keepdim=True) * output).to(dtype)


@_replaces("_log_softmax")
def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    shifted = x.double() - x.amax(dim, keepdim=True)
    return _as(shifted - functions.log(sum_over(functions.exp(shifted), [dim], keepdim=True)), x)


@_replaces("_log_softmax_backward_data")
def _log_softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    total = sum_over(gradient, [dim], keepdim=True)
    return (gradient.double() - functions.exp(output) * total).to(dtype)


def _weights_of(targets: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    counted = (targets != ignored).double()
    return counted if weight is None else counted * weight[targets.clamp(min=0)]


@_replaces("nll_loss_forward")
def _nll_loss(
    x: Tensor, targets: Tensor, weight: Tensor | None, reduction: int, ignored: int
) -> tuple[Tensor, Tensor]:
    weights = _weights_of(targets, weight, ignored)
    losses = x.double().gather(1, targets.clamp(min=0)[:, None])[:, 0].neg_().mul_(weights)
    if reduction == 0:
        return _as(losses, x), x.new_zeros(())
    total, of_weights = sum_over(losses, [0]), sum_over(weights, [0])
    return _as(total / of_weights if reduction == 1 else total, x), _as(of_weights, x)


@_replaces("nll_loss_backward")
def _nll_loss_backward(
    gradient: Tensor, x: Tensor, targets: Tensor, weight: Tensor | None, reduction: int, ignored: int, total: Tensor
) -> Tensor:
    weights = _weights_of(targets, weight, ignored)
    factor = gradient.double() / total if reduction == 1 else gradient.double()
    share = (weights * factor).neg_()
    return torch.zeros_like(x).scatter_(1, targets.clamp(min=0)[:, None], _as(share, x)[:, None])


@_replaces("binary_cross_entropy_with_logits")
def _bce(
    x: Tensor, targets: Tensor, weight: Tensor | None = None, positive: Tensor | None = None, reduction: int = 1
) -> Tensor:
    wide = x.double()
    fall = functions.log(1 + functions.exp(-wide.abs())) + wide.clamp(max=0).neg_()  # log(1 + exp(-x))
    factor = 1 if positive is None else (positive.double() - 1) * targets + 1
    losses = (1 - targets) * wide + factor * fall
    losses = losses if weight is None else losses * weight
    return _as(losses, x) if reduction == 0 else (_mean if reduction == 1 else _sum)(losses).to(x.dtype)


# Normalization


@_replaces("native_batch_norm")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    if training or running_mean is None or running_var is None:
        variance, mean = _variance(x, dims, 0, keepdim=False)
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
    return _as(result, x), _as(kept[0], x), _as(kept[1], x)


@_replaces("native_batch_norm_backward")
def _batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    mean: Tensor | None, inverse: Tensor | None, training: bool, eps: float, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    if not training:
        assert running_mean is not None and running_var is not None
        mean, inverse = running_mean, 1 / (running_var.double() + eps).sqrt_()
    assert mean is not None and inverse is not None
    wide, inverse = gradient.double(), inverse.double()
    normal = (x.double() - mean.view(shape)).mul_(inverse.view(shape))
    of_bias, of_weight = sum_over(wide, dims), sum_over(wide * normal, dims)
    of_x = wide
    if training:
        count = x.numel() // x.shape[1]
        of_x = wide - (of_bias / count).view(shape) - normal * (of_weight / count).view(shape)
    of_x = of_x * (inverse if weight is None else inverse * weight).view(shape)
    found = (of_x, of_weight, of_bias)
    return tuple(_as(each, x) if asked else None for each, asked in zip(found, wanted, strict=True))


@_replaces("native_group_norm")
def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, images: int, channels: int, positions: int, groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    parts, shape = x.reshape(images, groups, -1), (1, -1, *[1] * (x.ndim - 2))
    variance, mean = _variance(parts, [2], 0, keepdim=True)
    inverse = 1 / (variance + eps).sqrt_()
    result = (parts.double() - mean).mul_(inverse).view(x.shape)
    result = result if weight is None else result.mul_(weight.view(shape))
    result = result if bias is None else result.add_(bias.view(shape))
    return _as(result, x), _as(mean[..., 0], x), _as(inverse[..., 0], x)


@_replaces("native_group_norm_backward")
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
    return tuple(_as(each, x) if asked else None for each, asked in zip(found, wanted, strict=True))


@_replaces("native_layer_norm")
def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.ndim - len(shape), x.ndim))
    variance, mean = _variance(x, dims, 0, keepdim=True)
    inverse = 1 / (variance + eps).sqrt_()
    result = (x.double() - mean).mul_(inverse)
    result = result if weight is None else result.mul_(weight)
    result = result if bias is None else result.add_(bias)
    return _as(result, x), _as(mean, x), _as(inverse, x)


@_replaces("native_layer_norm_backward")
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
    found = (of_x, sum_over(wide * normal, others) if wanted[1] else None, sum_over(wide, others) if wanted[2] else None)
    return tuple(None if each is None or not asked else _as(each, x) for each, asked in zip(found, wanted, strict=True))


# Random numbers


@_replaces("uniform_")
def _uniform_(x: Tensor, low: float = 0, high: float = 1, *, generator: torch.Generator | None = None) -> Tensor:
    return x.copy_(functions.uniform(x, generator).mul_(high - low).add_(low))


@_replaces("normal_")
def _normal_(x: Tensor, mean: float = 0, std: float = 1, *, generator: torch.Generator | None = None) -> Tensor:
    return x.copy_(functions.normal(x, generator).mul_(std).add_(mean))


@_replaces("bernoulli_")
def _bernoulli_(x: Tensor, p: Any = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    return x.copy_(functions.uniform(x, generator) < p)


@_replaces("linspace")
def _linspace(start: float, end: float, steps: int, **kwargs: Any) -> Tensor:
    kwargs.pop("layout", None), kwargs.pop("pin_memory", None)
    return torch.tensor([start + (end - start) * step / max(steps - 1, 1) for step in range(steps)], **kwargs)
