"""Compare the files of two run folders by what they say: text, JSON, weights and checkpoints.

Files that are equal byte by byte are not opened. Others are read as data, never as code, and what differs is named.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Container, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autotimm.errors import ModelError
from autotimm.serialization import current_path
from autotimm.tasks.checkpoint import read_checkpoint

__all__ = [
    "Finding",
    "checkpoint_findings",
    "checkpoint_tensors",
    "data_findings",
    "differs",
    "dotted",
    "leaves",
    "printable",
    "read_data",
    "read_rows",
    "read_tensors",
    "same",
    "same_bytes",
    "text_findings",
    "weights_findings",
]

_MOST = 5  # differences of a file that are named; a training that went another way differs in every tensor


class Finding(NamedTuple):
    """Something in the files of a run that is not as it should be.

    Attributes:
        place: The file, and what in it.
        what: What is wrong, as the rest of a sentence.
        damage: Whether something is missing or unreadable, rather than different.
    """

    place: str
    what: str
    damage: bool = False

    def __str__(self) -> str:
        return printable(f"{self.place}: {self.what}")


def printable(text: str) -> str:
    """A text with escapes for what a terminal would obey rather than show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_NOTHING = object()


def differs(place: str, recorded: Any = _NOTHING, found: Any = _NOTHING) -> Finding:
    """The finding that a value differs from that of the replay; without a value, that it is missing on that side."""
    return Finding(place, f"{_shown(recorded)} was recorded, {_shown(found)} found")


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def same(a: Any, b: Any) -> bool:
    """Whether two pieces of data are equal, bits of numbers and types included; NaN equals itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_raw(a), _raw(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or a.hex() == b.hex()
    return bool(a == b)


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: equality of numbers would not tell 0.0 from -0.0, nor see that NaN equals itself."""
    flat = tensor.detach().cpu().contiguous()
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The values in nested data with their paths: keys, and numbers in lists. An empty container is a value too."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):  # a key that is no text must not be taken for one, nor for a place in a list
        pairs = [(key if isinstance(key, str) else (key,), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = list(enumerate(value))
    if not pairs:
        yield path, value
    for key, item in pairs:
        yield from leaves(item, (*path, key))


def dotted(path: tuple[Any, ...]) -> str:
    """A path in words."""
    return ".".join(str(key[0]) if isinstance(key, tuple) else str(key) for key in path)


def data_findings(file: str, recorded: Any, found: Any) -> Iterator[Finding]:
    """The values in which nested data differ."""
    a, b = dict(leaves(recorded)), dict(leaves(found))
    for path in dict.fromkeys([*a, *b]):
        if path not in a or path not in b or not same(a[path], b[path]):
            yield differs(f"{file}: {dotted(path)}", a.get(path, _NOTHING), b.get(path, _NOTHING))


def read_data(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: If it is no JSON, with the reason as part of a sentence.
    """
    try:
        return json.loads(path.read_bytes().decode())
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ValueError("it is damaged: it is not JSON") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text.

    Raises:
        ValueError: If it is no such file, with the reason as part of a sentence.
    """
    try:
        table = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True))
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error):
        raise ValueError("it is damaged: it is not a table") from None
    if not table or any(len(row) != len(table[0]) for row in table):
        raise ValueError("it is damaged: its rows are of different length" if table else "it is empty")
    return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


def same_bytes(a: Path, b: Path) -> bool:
    """Whether two files have the same bytes; a missing file equals none."""
    try:
        if a.samefile(b):
            return True
        if a.stat().st_size != b.stat().st_size:
            return False
        with a.open("rb") as first, b.open("rb") as second:
            while block := first.read(1 << 20):
                if block != second.read(1 << 20):
                    return False
    except OSError:
        return False
    return True


def text_findings(file: str, recorded: Path, found: Path) -> Iterator[Finding]:
    """The first line in which two text files differ."""
    if same_bytes(recorded, found):
        return
    a, b = (path.read_bytes().split(b"\n") for path in (recorded, found))
    pairs = zip(a, b, strict=False)
    number = next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(a), len(b)))
    texts = [lines[number].decode(errors="backslashreplace") if number < len(lines) else _NOTHING for lines in (a, b)]
    yield differs(f"{file}: line {number + 1}", *texts)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, and nothing else.

    Raises:
        ValueError: If it cannot be read or holds something else, with the reason as part of a sentence.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata():
                raise ValueError(f"it holds notes beside its tensors ({_shown(file.metadata())})")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it cannot be read ({str(error).splitlines()[0]})") from None


def checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return dict(read_checkpoint(path)["state_dict"])
    except ModelError as error:
        raise ValueError(str(error)) from None


def weights_findings(file: str, recorded: Path, found: Path) -> Iterator[Finding]:
    """What differs in two files of exported weights."""
    if same_bytes(recorded, found):
        return
    try:
        yield from _first(file, read_tensors(recorded), read_tensors(found))
    except ValueError as error:
        yield Finding(file, str(error))


def checkpoint_findings(
    file: str, recorded: Path, found: Path, ignored: Container[tuple[Any, ...]] = ()
) -> Iterator[Finding]:
    """What differs in two checkpoints: weights, optimizers, schedules, callbacks, loops and arguments.

    Args:
        file: What to call them.
        recorded: The checkpoint of the record.
        found: That of the replay.
        ignored: The paths of values that are not compared.
    """
    if same_bytes(recorded, found):
        return
    try:
        contents = [read_checkpoint(path) for path in (recorded, found)]
    except ModelError as error:
        yield Finding(file, str(error))
        return
    values = ({path: _now(value) for path, value in leaves(each) if path not in ignored} for each in contents)
    yield from _first(file, *values)


def _now(value: Any) -> Any:
    """A value with the present path of a class that has moved since it was recorded."""
    return current_path(value) if isinstance(value, str) else value


def _first(file: str, recorded: Mapping[Any, Any], found: Mapping[Any, Any]) -> Iterator[Finding]:
    """The first few differences, and the number of the others."""
    differing = (
        name
        for name in dict.fromkeys([*recorded, *found])
        if name not in recorded or name not in found or not same(recorded[name], found[name])
    )
    for name in islice(differing, _MOST):
        a, b = recorded.get(name, _NOTHING), found.get(name, _NOTHING)
        both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
        place = f"{file}: {name if isinstance(name, str) else dotted(name)}"
        yield Finding(place, "the tensor has other values") if both else differs(place, a, b)
    if rest := sum(1 for _ in differing):
        yield Finding(file, f"{rest} more of its values differ{'s' if rest == 1 else ''}")
