"""Fake CUDA tensors with values, for steps that branch on values.

A detector needs to know how many anchors match a box, which a fake tensor cannot tell. So each fake tensor here keeps a
CPU tensor with its values. Its device is CUDA, so that torch chooses the operators of CUDA (``cudnn_batch_norm``, the
alternatives for a deterministic backward pass), and each operator is calculated on the CPU. Operators that the CPU
lacks are replaced by the equivalent one of the CPU.

Experimental: it relies on private switches of torch, as :mod:`autotimm.doctor.trace` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["Numbers"]

_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)


def _batch_norm(
    x: Tensor, weight: Tensor, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    outputs = torch.ops.aten.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
    return (*outputs, x.new_empty(0, dtype=torch.uint8))  # cuDNN's workspace for the backward pass


def _batch_norm_backward(
    x: Tensor, grad: Tensor, weight: Tensor, mean: Any, var: Any, saved: Any, inverse: Any, eps: float, _: Tensor
) -> Any:
    mask = [True, True, True]
    return torch.ops.aten.native_batch_norm_backward(grad, x, weight, mean, var, saved, inverse, True, eps, mask)


# CPU replacements, by the name of the CUDA operator.
_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "aten::cudnn_batch_norm": _batch_norm,
    "aten::cudnn_batch_norm_backward": _batch_norm_backward,
    "aten::_fused_sdp_choice": lambda *args, **kwargs: 0,  # 0 is plain matrix products, see trace.py
}


class Numbers:
    """Fake CUDA tensors with values on the CPU."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode()

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Context in which they can be used."""
        before = torch._C._only_lift_cpu_tensors()
        with self._fake, _Calculator(self):  # FakeTensorMode keeps torch from looking for a GPU
            # On a machine with a GPU, `torch.tensor(..., device="cuda")` would make a real tensor on it.
            torch._C._set_only_lift_cpu_tensors(True)
            try:
                yield
            finally:
                torch._C._set_only_lift_cpu_tensors(before)

    def stand_in(self, tensor: Tensor) -> Tensor:
        """A fake tensor with a copy of a CPU tensor's values."""
        return self.around(tensor.detach().clone())

    def around(self, numbers: Tensor) -> Tensor:
        """A fake tensor that shares a CPU tensor's memory."""
        with torch._C._DisableTorchDispatch():
            shape = torch.empty_strided(numbers.shape, numbers.stride(), dtype=numbers.dtype, device="meta")
            # Attached to the storage: `as_subclass` and the like make another tensor object of the same storage.
            storage: Any = shape.untyped_storage()
            storage.numbers = numbers
        return FakeTensor(self._fake, shape, _CUDA)

    @staticmethod
    def behind(fake: Tensor) -> Tensor:
        """The values of a fake tensor, on the CPU."""
        with torch._C._DisableTorchDispatch():
            storage: Any = fake.untyped_storage()
        numbers: Tensor = storage.numbers
        return numbers


class _Calculator(TorchDispatchMode):
    """Runs operators on fake CUDA tensors with their values on the CPU."""

    def __init__(self, owner: Numbers) -> None:
        super().__init__()
        self._owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # called by torch's own code
            return args[0].device
        given: dict[int, Tensor] = {}  # fake tensors by the identity of their values
        kwargs = kwargs or {}

        def numbers(value: Any) -> Any:
            if not isinstance(value, FakeTensor):
                return _CPU if isinstance(value, torch.device) else value
            there = self._owner.behind(value)
            given[id(there)] = value
            return there

        there, named = tree_map(numbers, args), tree_map(numbers, kwargs)
        on_cuda = kwargs["device"].type == "cuda" if kwargs.get("device") is not None else bool(given)

        def stand_in(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in given:  # changed in place
                return given[id(value)]
            return self._owner.around(value) if on_cuda else value

        with torch._C._DisableTorchDispatch():
            outputs = _REPLACEMENTS.get(func._schema.name, func)(*there, **named)
        return tree_map(stand_in, outputs)
