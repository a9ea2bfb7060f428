"""The operators of one training step, with digests of their inputs and outputs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autotimm.records.digest import state_digest

__all__ = ["Operator", "OperatorLog", "first_operator", "missing"]

# Operators that return uninitialized memory: different every time, and overwritten before it is read.
_MEMORY = ("empty", "resize", "set_.source")
_MARKS = "profiler."  # operators that only mark a place
_PRIVATE = "torch.utils._debug_mode"


class Operator(NamedTuple):
    """One call of an operator.

    Attributes:
        name: The operator, for example ``aten.convolution.default``.
        phase: ``forward``, ``backward`` or ``optimizer``.
        module: The module that called it in the forward pass, if that is known.
        arguments: Types and shapes of tensors, and other arguments as text.
        inputs: The digest of the input tensors.
        outputs: The digest of the results, and of tensors that were changed in place.
    """

    name: str
    phase: str
    module: str
    arguments: str
    inputs: str
    outputs: str


def _debug_mode() -> Any:
    """Torch's ``DebugMode``, or ``None`` if this version has none with hooks before and after an operator."""
    try:
        # Private to torch: it was renamed between releases, and may be removed.
        mode = getattr(importlib.import_module(_PRIVATE), "DebugMode", None)
    except ImportError:
        return None
    hooks = getattr(mode, "dispatch_hooks", None)
    fits = hooks is not None and {"log_hook", "pre_log_hook"} <= inspect.signature(hooks).parameters.keys()
    return mode if fits else None


def missing() -> str:
    """Why operators cannot be recorded with this version of torch; empty if they can."""
    if _debug_mode() is not None:
        return ""
    return (f"The first operator that differs cannot be named: torch {torch.__version__} lacks the private module "
            f"{_PRIVATE} with hooks.")  # fmt: skip


class OperatorLog:
    """Records operators while it is open.

    Attributes:
        operators: The recorded operators, in order.
        phase: The part of the step that is running; the caller sets it.
    """

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.phase = "forward"
        self._mode: Any = None
        self._inputs = ""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record every operator of the block, in this thread and in the backward passes that it starts."""
        kind = _debug_mode()
        assert kind is not None, missing()
        self._mode = kind(record_nn_module=True)
        hooks: AbstractContextManager[None] = kind.dispatch_hooks(log_hook=self._after, pre_log_hook=self._before)
        with self._mode, hooks:
            yield

    def _before(self, func: Any, types: Any, args: Any, kwargs: Any, call: Any) -> None:
        self._inputs = _digest([args, kwargs])  # now: the operator may change them

    def _after(self, func: Any, types: Any, args: Any, kwargs: Any, result: Any) -> None:
        if str(func).startswith(_MARKS) or any(name in str(func) for name in _MEMORY):
            return
        changed = [args, kwargs] if func._schema.is_mutable else []
        call = next((call for call in reversed(self._mode.operators) if getattr(call, "op", None) is func), None)
        modules = self._mode.current_nn_module_stack if self.phase == "forward" else []
        self.operators.append(
            Operator(
                str(func), self.phase, modules[-1] if modules else "",
                f"{getattr(call, 'args_str', '')}{getattr(call, 'kwargs_str', '')}",
                self._inputs, _digest([result, *changed]),
            )
        )  # fmt: skip


def _digest(value: Any) -> str:
    return state_digest({"all": list(_parts(value))})[:16]


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        # Tensors without plain memory are described by their shapes.
        plain = value.layout is torch.strided and value.device.type != "meta"
        # Copied: a single element may have any stride, and then cannot be read as bytes.
        copy = value.detach().clone(memory_format=torch.contiguous_format) if plain else None
        yield copy if copy is not None else f"{value.layout}{tuple(value.shape)}"
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, (bool, int, float, str)):
        yield repr(value)


def first_operator(restored: Sequence[Operator], replayed: Sequence[Operator]) -> str:
    """Name the first operator of a step that differs, in a sentence.

    Args:
        restored: The operators of the step with the factor set back.
        replayed: Those without it.
    """
    for operator, other in zip(restored, replayed, strict=False):
        if operator.name != other.name:
            return f"The two runs call other operators from here on: {_called(operator)}, and {_called(other)}."
        if operator.outputs == other.outputs:
            continue
        if operator.arguments != other.arguments:
            return f"The first operator that differs: {_called(operator)}, called with other numbers."
        if operator.inputs != other.inputs:
            return f"The first operator that differs: {_called(operator)}. Its inputs differ before the step begins."
        return f"The first operator that differs: {_called(operator)}, with equal inputs."
    if len(restored) != len(replayed):
        return f"One of the two runs calls more operators: {len(restored)} and {len(replayed)}."
    return "No operator of that step differs: the difference arises outside of it."


def _called(operator: Operator) -> str:
    where = f" of {operator.module}" if operator.module else ""
    return f"{operator.name}{where} ({operator.phase})"
