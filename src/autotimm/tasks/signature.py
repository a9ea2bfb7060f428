"""The options that all tasks share: shown in the signature of each task, and which of them nobody gave."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import Any

__all__ = ["note_defaults", "show_shared_options", "takes_options"]


def takes_options(task: type[Any]) -> bool:
    """Whether a class takes the options of its base as ``**options``."""
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(task.__init__).parameters.values())


def show_shared_options(task: type[Any], shared: Callable[..., None]) -> None:
    """Put the keyword arguments of the base in place of ``**options``, for ``help()`` and editors.

    Args:
        task: A task class, whose signature is set. Without one of its own it would show that of its base.
        shared: The constructor of the base of all tasks.
    """
    own = [*inspect.signature(task.__init__).parameters.values()][1:]
    named = {one.name: one for one in own if one.kind is not one.VAR_KEYWORD}
    if takes_options(task):
        above = next((vars(one)["__signature__"] for one in task.__mro__[1:] if "__signature__" in vars(one)), None)
        options = _shared_options(shared) if above is None else _keyword_only(above)
        named |= {name: one for name, one in options.items() if name not in named}
    task.__signature__ = inspect.Signature([*named.values()])


def _keyword_only(signature: inspect.Signature) -> dict[str, Parameter]:
    return {name: one for name, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY}


def _shared_options(shared: Callable[..., None]) -> dict[str, Parameter]:
    """What can be given by name as an option: neither self nor the network nor its weights."""
    return {name: one for name, one in _keyword_only(inspect.signature(shared)).items() if name != "weights"}


def note_defaults(shared: Callable[..., None]) -> Callable[..., None]:
    """Let the constructor of the base note the options that did not reach it, with their defaults.

    Those can be given when the task is made again. An option that a subclass fixes reaches the base, and would then be
    given twice.
    """
    defaults = {name: one.default for name, one in _shared_options(shared).items()}

    @wraps(shared)
    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_left_open"] = {name: value for name, value in defaults.items() if name not in kwargs}
        shared(self, *args, **kwargs)

    return noting
