"""Objects as plain data, and back: what checkpoints and configuration files say of classes and functions.

Checkpoints load with ``weights_only=True``, so that nothing but plain data may enter them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["import_name", "import_object", "is_object", "plain_value"]

_OBJECT = "<object> "


def import_name(value: Any) -> str:
    """The import path of a class or function.

    Example:
        >>> import_name(Path)
        'pathlib.Path'
    """
    return f"{value.__module__}.{value.__qualname__}"


def import_object(path: str) -> Any:
    """Import ``package.module.Name``, or ``package.module.Class.method``.

    Raises:
        ImportError: If there is no such module or name; whoever asked knows how to say so.

    Example:
        >>> import_object("pathlib.Path") is Path
        True
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise ImportError(f"{path!r} names no module")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(str(error)) from None


def plain_value(value: Any) -> Any:
    """A constructor argument as plain data.

    Classes and functions become their import path. Any other object becomes a note that :func:`is_object` knows: it has
    to be given again by whoever wants it back.

    Example:
        >>> plain_value({"size": (1, 2), "path": Path("a/b")})
        {'size': [1, 2], 'path': 'a/b'}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    importable = inspect.isclass(value) or inspect.isfunction(value)
    if importable and "<" not in value.__qualname__ and value.__module__ != "__main__":
        return import_name(value)
    described = value.func if isinstance(value, functools.partial) else value if importable else type(value)
    return f"{_OBJECT}{import_name(described)}"


def is_object(value: Any) -> bool:
    """Whether a value stands for an object that :func:`plain_value` could not write down.

    Example:
        >>> is_object(plain_value(object())), is_object("cross_entropy")
        (True, False)
    """
    return isinstance(value, str) and value.startswith(_OBJECT)
