"""Showing the options that all tasks share in the signature of each task that takes them as ``**options``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["show_shared_options"]


def show_shared_options(task: type[Any], shared: Callable[..., None]) -> None:
    """Put the keyword arguments of the base's constructor in place of ``**options``, for ``help()`` and editors.

    Args:
        task: A task class, whose signature is set.
        shared: The base's constructor.
    """
    own = list(inspect.signature(task.__init__).parameters.values())[1:]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
        return
    named = {parameter.name: parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD}
    others = inspect.signature(shared).parameters.values()
    # Only what can be given by name as an option: neither self nor the network nor its weights.
    options = {one.name: one for one in others if one.kind is one.KEYWORD_ONLY and one.name != "weights"}
    task.__signature__ = inspect.Signature(
        [*named.values(), *(one for name, one in options.items() if name not in named)]
    )
