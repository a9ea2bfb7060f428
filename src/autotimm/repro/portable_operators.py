"""Run torch with operators whose bits depend on neither the number of threads nor the instruction set.

Within :class:`PortableOperators` each operator of torch, those of backward passes and optimizers included, is one of
three kinds. What rounds nothing, or each number once as IEEE 754 prescribes, runs as it is. Sums, matrix products,
convolutions, normalization and functions such as GELU are replaced, by :mod:`autotimm.repro.exact_sums` and
:mod:`autotimm.repro.portable_functions`. Any other is refused by its name: nothing is assumed of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from autotimm.errors import UsageError
from autotimm.repro import portable_layers, portable_regions  # noqa: F401  # they add to the table
from autotimm.repro.portable_arithmetic import REPLACED

__all__ = ["PortableOperators", "portable_operators"]

# They move, compare or count, or round each result once. A sum of whole numbers is exact in any order.
_AS_THEY_ARE = frozenset(
    """
    _local_scalar_dense _reshape_alias _to_copy _unsafe_view alias argmax argmin as_strided as_strided_ cat
    clone constant_pad_nd contiguous copy_ detach detach_ diagonal empty empty_like empty_strided expand eye fill fill_
    flip full full_like gather index index_fill_ index_select is_same_size isfinite isinf isnan
    item lift_fresh lift_fresh_copy masked_fill masked_fill_ masked_select max max_pool2d_with_indices
    max_pool2d_with_indices_backward min narrow new_empty new_empty_strided new_full new_ones new_zeros nonzero ones
    ones_like permute pixel_shuffle pixel_unshuffle repeat repeat_interleave resize_ roll scalar_tensor _unique2
    scatter scatter_ select select_backward set_ slice slice_backward split split_with_sizes squeeze squeeze_
    stack t t_ transpose transpose_ triu tril unbind unfold unsqueeze unsqueeze_ view view_as_real where zero_
    zeros zeros_like random_ randperm randint
    amax amin aminmax all any bitwise_and bitwise_not bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift
    eq eq_ ge ge_ gt gt_ le le_ lt lt_ ne ne_ equal logical_and logical_and_ logical_not logical_not_ logical_or
    logical_or_ logical_xor
    abs abs_ ceil ceil_ clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ div div_ floor floor_
    hardtanh hardtanh_ hardtanh_backward maximum minimum mul mul_ neg neg_ reciprocal reciprocal_ relu relu_
    round round_ sgn sign sign_ sqrt sqrt_ threshold threshold_backward trunc nan_to_num nan_to_num_ leaky_relu
    leaky_relu_ leaky_relu_backward arange embedding rand rand_like
    bucketize searchsorted diagonal_copy _unsafe_index
    """.split()  # noqa: SIM905  # a list of so many strings is harder to read
)


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
        name = name if func.namespace == "aten" else f"{func.namespace}::{name}"
        if _is_meta(args, kwargs):
            return func(*args, **kwargs)
        if name.startswith("_foreach_"):
            return _of_each(name.removeprefix("_foreach_"), args, kwargs)
        # In inference mode operators arrive here that consist of others.
        if not (name in REPLACED or name in _AS_THEY_ARE) and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        return _run(name, func, args, kwargs)


def _run(name: str, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """Run an operator or what replaces it; in-place ones that are in no table write what others return."""
    if (handler := REPLACED.get(name)) is not None:
        return handler(*args, **kwargs)
    if name in _AS_THEY_ARE:
        return func(*args, **kwargs)
    if name.endswith("_") and (handler := REPLACED.get(name[:-1])) is not None and _computes(args):
        return args[0].copy_(handler(*args, **kwargs))
    if not _computes(args):
        result = func(*args, **kwargs)
        if not _computes(result if isinstance(result, (list, tuple)) else (result,)):
            return result  # the cosine of whole numbers has fractions
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
    """Whether numbers with a fraction are among arguments or results: whole numbers have one result."""
    return any(each.is_floating_point() or each.is_complex() for each in _tensors(args))


def _is_meta(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether shapes alone are computed."""
    device = kwargs.get("device")
    return any(each.is_meta for each in _tensors(args)) or (device is not None and torch.device(device).type == "meta")
