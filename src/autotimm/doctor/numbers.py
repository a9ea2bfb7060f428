"""Fake CUDA tensors that carry numbers: for steps that branch on what they have calculated.

A detector asks how many anchors match a box, and a fake tensor does not know. So here each fake tensor keeps a tensor
on the CPU with the numbers that it stands for. Whoever asks for its device is told CUDA, and torch chooses the
operators of CUDA (``cudnn_batch_norm``, the way around of a deterministic backward pass), each calculated on the CPU.
The few that the CPU does not have are calculated by its own operator for the same. Experimental: it relies on torch's
private switches, as :mod:`autotimm.doctor.backward` does.
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
    found = torch.ops.aten.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
    return (*found, x.new_empty(0, dtype=torch.uint8))  # what cuDNN sets aside for the way back


def _batch_norm_backward(
    x: Tensor, grad: Tensor, weight: Tensor, mean: Any, var: Any, saved: Any, inverse: Any, eps: float, _: Tensor
) -> Any:
    mask = [True, True, True]
    return torch.ops.aten.native_batch_norm_backward(grad, x, weight, mean, var, saved, inverse, True, eps, mask)


# By the CUDA operator's name.
_INSTEAD: dict[str, Callable[..., Any]] = {
    "aten::cudnn_batch_norm": _batch_norm,
    "aten::cudnn_batch_norm_backward": _batch_norm_backward,
    "aten::_fused_sdp_choice": lambda *args, **kwargs: 0,  # which is "by matrix products"; see trace.py
}


class Numbers:
    """Fake CUDA tensors that carry numbers."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode()

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Where they can be calculated with."""
        before = torch._C._only_lift_cpu_tensors()
        with self._fake, _Calculator(self):  # the former keeps torch from looking for a GPU
            # Where there is one, `torch.tensor(..., device="cuda")` would make a real tensor on it.
            torch._C._set_only_lift_cpu_tensors(True)
            try:
                yield
            finally:
                torch._C._set_only_lift_cpu_tensors(before)

    def stand_in(self, tensor: Tensor) -> Tensor:
        """One for a tensor on the CPU, which is left alone."""
        return self.around(tensor.detach().clone())

    def around(self, numbers: Tensor) -> Tensor:
        """One that takes a tensor's memory for its own."""
        with torch._C._DisableTorchDispatch():
            shape = torch.empty_strided(numbers.shape, numbers.stride(), dtype=numbers.dtype, device="meta")
            # Not at the tensor, of which `as_subclass` and the like make another around the same storage.
            storage: Any = shape.untyped_storage()
            storage.numbers = numbers
        return FakeTensor(self._fake, shape, _CUDA)

    @staticmethod
    def behind(fake: Tensor) -> Tensor:
        """The numbers of one, on the CPU."""
        with torch._C._DisableTorchDispatch():
            storage: Any = fake.untyped_storage()
        numbers: Tensor = storage.numbers
        return numbers


class _Calculator(TorchDispatchMode):
    """Calculates on the CPU what is asked of fake CUDA tensors."""

    def __init__(self, owner: Numbers) -> None:
        super().__init__()
        self._owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # torch's own code asks so
            return args[0].device
        given: dict[int, Tensor] = {}  # by the identity of their numbers
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
            found = _INSTEAD.get(func._schema.name, func)(*there, **named)
        return tree_map(stand_in, found)
