"""Read the files of a run as data that somebody else may have written, edited or damaged.

The readers of records call these functions, so that a file of another encoding, with other columns or with values of
other types ends in one sentence and exit code 4, wherever it is read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from autotimm import serialization
from autotimm.errors import ModelError, sentence

__all__ = ["EachOf", "Fields", "Misfit", "misfit", "read_json", "read_table", "read_text", "require_shape"]

_LONGEST_CELL = 2**31 - 1  # Python's own limit of 131,072 characters is one of memory, and of all readers in a process


@dataclass(frozen=True)
class EachOf:
    """The shape of a mapping with any names.

    Attributes:
        shape: That of each value.
    """

    shape: Any


@dataclass(frozen=True)
class Fields:
    """The shape of a mapping whose fields are known; it may have others.

    Attributes:
        shapes: That of each field.
        required: The fields that may not be missing.
    """

    shapes: Mapping[str, Any]
    required: tuple[str, ...] = ()


class Misfit(NamedTuple):
    """A value that has not the shape that it must have.

    Attributes:
        name: Its place, with dots.
        must: What it must be.
        got: What it is.
    """

    name: str
    must: str
    got: Any


_WORDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null", dict: "an object",
    list: "a list",
}  # fmt: skip


def misfit(value: Any, shape: Any, name: str = "") -> Misfit | None:
    """The first part of plain data that has another shape than it must have; ``None`` if there is none.

    Args:
        value: The data.
        shape: A type; a tuple of shapes, of which one must fit; a list with the shape of each item;
            :class:`Fields`, for which a dictionary may stand if no field is required; or :class:`EachOf`.
        name: Its place, with dots.

    Example:
        >>> misfit({"best": {"val/loss": "low"}}, EachOf(EachOf(float)))
        Misfit(name='best.val/loss', must='a number', got='low')
    """
    if isinstance(shape, tuple):
        wrong = [misfit(value, option, name) for option in shape]
        if None in wrong:
            return None
        # The option that is right on the outside says what is wrong inside.
        inner = next((each for each in wrong if each is not None and each.name != name), None)
        return inner or Misfit(name, " or ".join(each.must for each in wrong if each is not None), value)
    if isinstance(shape, type):
        fits = isinstance(value, (int, float) if shape is float else shape)
        fits = fits and (shape is bool or not isinstance(value, bool))  # True is an integer to Python
        return None if fits else Misfit(name, _WORDS[shape], value)
    shape = Fields(shape) if isinstance(shape, dict) else shape
    kind = list if isinstance(shape, list) else Mapping
    if not isinstance(value, kind):
        return Misfit(name, _WORDS[list if kind is list else dict], value)
    items: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else dict(value)
    if isinstance(shape, Fields):
        if missing := [field for field in shape.required if field not in items]:
            return Misfit(f"{name}.{missing[0]}".lstrip("."), "given", None)
        shapes = {field: inner for field, inner in shape.shapes.items() if field in items}
    else:
        shapes = dict.fromkeys(items, shape.shape if isinstance(shape, EachOf) else shape[0])
    found = (misfit(items[field], inner, f"{name}.{field}".lstrip(".")) for field, inner in shapes.items())
    return next((wrong for wrong in found if wrong is not None), None)


def require_shape(value: Any, shape: Any, owner: str) -> None:
    """Refuse data of another shape, see :func:`misfit`.

    Raises:
        ModelError: If a part of it has another shape.
    """
    if (wrong := misfit(value, shape)) is not None:
        do = "Use an intact copy of the run."
        if not wrong.name:
            raise ModelError(f"{owner[0].upper()}{owner[1:]} must be {wrong.must}. It is something else. {do}")
        raise ModelError(sentence(wrong.name, owner, wrong.must, wrong.got, do))


def read_text(path: Path, what: str) -> str:
    """The text of a file.

    Args:
        path: The file.
        what: What it is called in errors, such as ``"the results"``.

    Raises:
        ModelError: If it cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ModelError(f"{_named(what, path)} must be readable. It is not ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ModelError(
            f"{_named(what, path)} must be UTF-8 text. It is not. Use an intact copy of the run."
        ) from None


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        ModelError: If it cannot be read, or is not JSON.
    """
    try:
        return serialization.read_json(path)
    except OSError as error:
        raise ModelError(f"{_named(what, path)} must be readable. It is not ({error.strerror}).") from None
    except ValueError as error:
        why = serialization.json_problem(error)
        raise ModelError(
            f"{_named(what, path)} must be JSON. It is damaged ({why}). Use an intact copy of the run."
        ) from None


def read_table(path: Path, columns: Sequence[str], what: str) -> list[tuple[str, ...]]:
    """The rows of a CSV file with exactly these columns.

    Raises:
        ModelError: If it cannot be read, is not UTF-8 text, or has other columns or rows of another length.
    """
    text = io.StringIO(read_text(path, what), newline="")  # not splitlines(): it also splits at separators in names
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        rows = [tuple(row) for row in csv.reader(text, strict=True)]
    except csv.Error as error:
        raise ModelError(f"{_named(what, path)} must be CSV. It is damaged ({error}). Use an intact copy.") from None
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows or [()], 1):
        if len(row) != len(columns) or (number == 1 and row != tuple(columns)):
            raise ModelError(
                f"{_named(what, path)} must have the columns {', '.join(columns)}. Row {number} has other ones. "
                "Use an intact copy of the run."
            )
    return rows[1:]


def _named(what: str, path: Path) -> str:
    return f"{what[0].upper()}{what[1:]} {path}"
