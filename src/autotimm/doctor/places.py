"""Which module an operator belongs to, in the forward and in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

__all__ = ["Places"]


class Places:
    """Knows where a training step is.

    torch numbers the nodes of its graph in the order in which they are made. A node whose number lies between those at
    the entry and at the exit of a module was made by it, or by one inside of it.

    Args:
        root: The module whose submodules are told apart.

    Attributes:
        current: The innermost module that runs, or whose backward pass runs: ``network.pool (AdaptiveAvgPool2d)``.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._open: list[tuple[str, int]] = []
        self._spans: list[tuple[int, int, str]] = []
        self.current = type(root).__name__

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow a forward pass."""
        handles: list[RemovableHandle] = []
        for name, module in self._root.named_modules():
            shown = f"{name} ({type(module).__name__})"
            handles.append(module.register_forward_pre_hook(self._enterer(shown)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Be somewhere that is no module."""
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    def enter(self, node: Node) -> None:
        """Follow a backward pass: this node comes next."""
        unchecked: Any = node
        number = unchecked._sequence_nr()
        inside = [(end - start, name) for start, end, name in self._spans if start <= number < end]
        self.current = min(inside)[1] if inside else type(self._root).__name__

    def _enterer(self, name: str) -> Any:
        def enter(module: nn.Module, arguments: Any) -> None:
            self._open.append((name, _next_number()))
            self.current = name

        return enter

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        name, start = self._open.pop()
        self._spans.append((start, _next_number(), name))
        self.current = self._open[-1][0] if self._open else type(self._root).__name__


def _next_number() -> int:
    number: int = torch._C._autograd._get_sequence_nr()
    return number
