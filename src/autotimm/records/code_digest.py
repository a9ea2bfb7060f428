"""The code of a callable as plain data, so that a changed transform is detected.

Classes of libraries are named only, since the manifest holds the library's version; other code is included as text.
"""

from __future__ import annotations

import functools
import inspect
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from autotimm.records.digest import config_digest, tensor_digest
from autotimm.serialization import first_path

__all__ = ["code_digest", "describe_code"]

# Our own code counts as a library's: the manifest holds the digest of the whole package.
_OURS = str(Path(__file__).parent.parent)
_LIBRARIES = (_OURS, *{sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_DEPTH = 8  # containers within containers


def describe_code(value: Any, _depth: int = 0) -> Any:
    """Describe a callable or an object by its name, its source unless a library owns it, and its attributes.

    Example:
        >>> describe_code(len)
        {'name': 'builtins.len'}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if _depth > _DEPTH:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(name): describe_code(item, _depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe_code(item, _depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(describe_code(item, _depth + 1)) for item in value)
    if isinstance(value, functools.partial):
        held = {"args": value.args, "keywords": value.keywords}
        return {"partial": describe_code(value.func, _depth + 1), "held": describe_code(held, _depth + 1)}
    if inspect.ismethod(value):
        return {"method": describe_code(value.__func__, _depth + 1), "of": describe_code(value.__self__, _depth + 1)}
    if inspect.isclass(value) or inspect.isroutine(value):
        closure = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        held = {"closure": describe_code(closure, _depth + 1)} if closure else {}
        return {**_named(value), **held}
    variables = getattr(value, "__dict__", None)
    if variables and _is_of_library(type(value)):
        # What a library computes from its arguments, such as the logarithms of torchvision's aspect ratios, has other
        # last bits on another processor.
        variables = {
            name: held for name, held in variables.items() if not (name[0] == "_" and isinstance(held, Tensor))
        }
    state = describe_code(variables, _depth + 1) if variables else _ADDRESS.sub("", repr(value))
    return {"object": _named(type(value)), "state": state}


def code_digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the digest of :func:`describe_code`."""
    return config_digest(describe_code(value))[:16]


def _is_of_library(value: Any) -> bool:
    """Whether a class or function is ours, a library's or built into the interpreter."""
    try:
        return inspect.getfile(value).startswith(_LIBRARIES)
    except (TypeError, OSError):  # built into the interpreter
        return True


def _named(value: Any) -> dict[str, Any]:
    path = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', repr(value))}"
    named = {"name": first_path(path)}
    if _is_of_library(value):
        return named
    try:
        return named | {"source": inspect.getsource(value)}
    except (OSError, TypeError):  # typed into an interpreter: only the compiled code exists
        code = getattr(value, "__code__", None)
        return named | ({"code": [code.co_code.hex(), _ADDRESS.sub("", repr(code.co_consts))]} if code else {})
