"""Which operators a training step calls, and which modules call them, in the forward and in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from autotimm.doctor.documented import Entry, Operator, Rule, entries, rules

__all__ = ["ModuleTracker", "OperatorRecorder"]


class OperatorRecorder(TorchDispatchMode):
    """Records the operators that are called, and the calling modules of those that torch documents.

    Args:
        modules: Knows which module is running.

    Attributes:
        seen: The names of all operators.
    """

    def __init__(self, modules: ModuleTracker) -> None:
        super().__init__()
        self.modules = modules
        self.seen: set[str] = set()
        self._rules: dict[str, list[tuple[Rule, Entry]]] = rules(entries())
        # Modules by operator and documented name; a dict without values, as an ordered set.
        self._callers: dict[tuple[str, str], dict[str, None]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overload, name = func.name(), func._schema.name
        self.seen.add(name)
        for rule, entry in self._rules.get(overload, []) + (self._rules.get(name, []) if name != overload else []):
            names = [argument.name for argument in func._schema.arguments]
            if rule.applies(dict(zip(names, args, strict=False)) | kwargs):
                self._callers.setdefault((name, entry.name), {})[self.modules.current] = None
        return func(*args, **kwargs)

    def operators(self) -> list[Operator]:
        """The documented operators among those called, sorted by name."""
        return [Operator(*names, tuple(modules)) for names, modules in sorted(self._callers.items())]


class ModuleTracker:
    """Tracks which module of a network is running.

    torch numbers the nodes of the autograd graph in the order of their creation. A node whose number lies between the
    numbers at entry and at exit of a module was created by this module or by a submodule.

    Args:
        root: The module whose submodules are tracked.

    Attributes:
        current: The innermost module whose forward or backward pass is running, such as
            ``network.pool (AdaptiveAvgPool2d)``.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._open: list[tuple[str, int]] = []
        self._spans: list[tuple[int, int, str]] = []
        self.current = type(root).__name__

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Track a forward pass."""
        handles: list[RemovableHandle] = []
        for name, module in self._root.named_modules():
            shown = f"{name} ({type(module).__name__})"
            handles.append(module.register_forward_pre_hook(self._enter_hook(shown)))
            handles.append(module.register_forward_hook(self._leave_hook, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Set a name for calls that come from no module, such as those of the optimizer."""
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    def enter(self, node: Node) -> None:
        """Track a backward pass: ``node`` runs next."""
        unchecked: Any = node
        number = unchecked._sequence_nr()
        enclosing = [(end - start, name) for start, end, name in self._spans if start <= number < end]
        self.current = min(enclosing)[1] if enclosing else type(self._root).__name__

    def _enter_hook(self, name: str) -> Any:
        def enter(module: nn.Module, arguments: Any) -> None:
            self._open.append((name, _next_sequence_number()))
            self.current = name

        return enter

    def _leave_hook(self, module: nn.Module, arguments: Any, output: Any) -> None:
        name, start = self._open.pop()
        self._spans.append((start, _next_sequence_number(), name))
        self.current = self._open[-1][0] if self._open else type(self._root).__name__


def _next_sequence_number() -> int:
    number: int = torch._C._autograd._get_sequence_nr()
    return number
