"""Which operators a step calls, and which of them the documentation names."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from autotimm.doctor.documented import Entry, Operator, Rule, entries, rules
from autotimm.doctor.places import Places

__all__ = ["Recorder"]


class Recorder(TorchDispatchMode):
    """Notes which operators are called, and by which modules those that the documentation names.

    Args:
        places: Knows which module is at work.

    Attributes:
        seen: The names of all operators.
    """

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.seen: set[str] = set()
        self._rules: dict[str, list[tuple[Rule, Entry]]] = rules(entries())
        self._found: dict[tuple[str, str], dict[str, None]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        overload, name = func.name(), func._schema.name
        self.seen.add(name)
        for rule, entry in self._rules.get(overload, []) + (self._rules.get(name, []) if name != overload else []):
            names = [argument.name for argument in func._schema.arguments]
            if rule.applies(dict(zip(names, args, strict=False)) | kwargs):
                self._found.setdefault((name, entry.name), {})[self.places.current] = None
        return func(*args, **kwargs)

    def operators(self) -> list[Operator]:
        """What was found, by name."""
        return [Operator(*names, tuple(modules)) for names, modules in sorted(self._found.items())]
