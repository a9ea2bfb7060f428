r"""The ledger of a run: a line per step, each with the digest of the line before.

A line is JSON with sorted keys and no spaces, in ASCII, and ends in ``\n``. Numbers with a fraction are written as
``float.hex()``: a decimal would hide the last bits, by which two runs are compared. ``prev`` is the digest of the line
before, so that a cut or an edit is detected::

    {"kind":"start","prev":"","run":"4f1c…","weights":"9a0b…","world_size":1}
    {"batch":0,"epoch":0,"ids":"77de…","inputs":"c01f…","kind":"step","loss":"0x1.19…p+0","lr":"0x1.0…p-10","prev":…}

The chain does not protect the last line, which has no successor: its digest is in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from autotimm.errors import RunError
from autotimm.serialization import parse_json

__all__ = ["FIELDS", "OPTIONAL", "Ledger", "Line", "ReadLedger", "digest16", "malformed", "read_ledger"]

Line = dict[str, Any]

# One encoder for all lines: json.dumps with arguments would create one per call, once a step.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def digest16(text: str | bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a text."""
    # surrogatepass: ids are file names, which need not be UTF-8.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).hexdigest()[:16]


def _exact(value: Any) -> Any:
    """Floats as hexadecimal text, which keeps every bit, infinities and NaN."""
    if isinstance(value, float):
        return float.hex(value)
    if isinstance(value, dict):
        return {name: _exact(item) for name, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, (list, tuple)) else value


class Ledger:
    """Writes the ledger of a run, append only.

    :meth:`add` touches no file, so that it costs microseconds; :meth:`flush` appends all added lines at once, and keeps
    the file open only for that moment. If the file already has lines, new ones are appended after the last complete
    line, unless :meth:`rewind` is called.

    Args:
        path: The file; with ``None`` nothing is written, but the chain is still computed.
        listener: Called with each line as it is added, without its ``prev``.

    Raises:
        RunError: From any method but :meth:`rewind`, if the file cannot be read or written.

    Example:
        >>> ledger = Ledger(None, listener=print)
        >>> ledger.add("val", epoch=0, step=8, metrics={"val/loss": 0.5})
        {'kind': 'val', 'epoch': 0, 'step': 8, 'metrics': {'val/loss': '0x1.0000000000000p-1'}}
        >>> ledger.last
        '3ea6f6a9b8a466d0'
    """

    def __init__(self, path: str | Path | None, listener: Callable[[Line], None] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._listener = listener
        self._buffer: list[bytes] = []
        self._scanned = self.path is None  # whether the lines already in the file have been read
        self._torn = False  # whether it ends in an incomplete line, left by a crash
        self._last = ""  # digest of the last line added
        self._position: dict[str, Any] = {"bytes": 0, "last": "", "lines": 0}

    def add(self, kind: str, /, **fields: Any) -> None:
        """Add a line: its kind and plain data, in which floats become hexadecimal text.

        Raises:
            TypeError: If a field is not plain data; then nothing is added.
        """
        self._scan()
        line = {"kind": kind} | {name: _exact(value) for name, value in fields.items()}
        data = _encode({**line, "prev": self._last}).encode("ascii")
        self._last = digest16(data)
        self._buffer.append(data + b"\n")
        if self._listener is not None:
            self._listener(line)

    def flush(self, sync: bool = False) -> None:
        """Append the added lines; with ``sync`` wait for the disk, as before a checkpoint that refers to them."""
        self._scan()
        data = b"".join(self._buffer)
        if self.path is not None and (data or sync):
            try:
                self._append(self.path, data, sync)
            except OSError as error:
                raise _unusable(self.path, "writable", error) from error
        self._set_position(self._position["bytes"] + len(data), self._last, self._position["lines"] + len(self._buffer))

    def _append(self, path: Path, data: bytes, sync: bool) -> None:
        # Unbuffered: else closing after a failed write would write the rest again.
        with open(path, "ab", buffering=0) as file:
            if self._torn:
                file.truncate(self._position["bytes"])
                self._torn = False
            end = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(end)  # an incomplete line would hide all lines after it
                raise

    @property
    def is_read(self) -> bool:
        """Whether anything sees the lines: a file, or a listener."""
        return self.path is not None or self._listener is not None

    @property
    def last(self) -> str:
        """The digest of the last added line, flushed or not; empty without lines."""
        self._scan()
        return self._last

    @property
    def position(self) -> dict[str, Any]:
        """The size after the last :meth:`flush`: ``bytes``, ``lines``, and the digest of the ``last`` line."""
        self._scan()
        return dict(self._position)

    def rewind(self, position: Mapping[str, Any]) -> bool:
        """Truncate the file to an earlier :attr:`position` and continue from there; unflushed lines are dropped.

        Args:
            position: An earlier :attr:`position`, for example of when a checkpoint was written.

        Returns:
            Whether it was done. If the file does not contain that position (it is shorter, or another line ends
            there), it is left unchanged, and the ledger continues after its last complete line.
        """
        try:
            size, last, lines = int(position["bytes"]), str(position["last"]), int(position["lines"])
            if self.path is not None and not _cut(self.path, size, last):
                return False
        except (OSError, KeyError, TypeError, ValueError, OverflowError):  # no such file, or no such position
            return False
        self._torn = False
        self._set_position(size, last, lines)
        return True

    def _scan(self) -> None:
        """Read once which lines the file already has."""
        if self._scanned or self.path is None:
            return
        size, last, lines = 0, b"", 0
        try:
            if self.path.exists():
                with open(self.path, "rb") as file:
                    for raw in file:
                        self._torn = not raw.endswith(b"\n")
                        if not self._torn:
                            size, last, lines = size + len(raw), raw[:-1], lines + 1
        except OSError as error:
            raise _unusable(self.path, "a file that can be read", error) from error
        self._set_position(size, digest16(last) if lines else "", lines)

    def _set_position(self, size: int, last: str, lines: int) -> None:
        """Take the file to have this size, and no line to be waiting."""
        self._scanned, self._last = True, last
        self._position = {"bytes": size, "last": last, "lines": lines}
        self._buffer.clear()


def _unusable(path: Path, must: str, error: OSError) -> RunError:
    return RunError(f"The ledger {path} must be {must}. It is not ({error.strerror}). Free some space, or repair it.")


def _cut(path: Path, size: int, last: str) -> bool:
    """Truncate a file to ``size`` if a line with this digest ends there."""
    if size == 0 and last == "" and not path.exists():
        return True
    with open(path, "rb+") as file:
        if size < 0 or size > file.seek(0, os.SEEK_END) or _last_before(file, size) != last:
            return False
        file.truncate(size)
        os.fsync(file.fileno())
    return True


def _last_before(file: BinaryIO, end: int) -> str | None:
    """The digest of the line that ends at ``end``: empty at the beginning, ``None`` where no line ends."""
    if end == 0:
        return ""
    length = 1 << 12  # a step's line has 250 bytes, a line with many metrics has more
    while True:
        start = max(0, end - length)
        file.seek(start)
        data = file.read(end - start)
        before = data.rfind(b"\n", 0, len(data) - 1)
        if before >= 0 or start == 0:
            return digest16(data[before + 1 : -1]) if data.endswith(b"\n") else None
        length *= 2


class ReadLedger(NamedTuple):
    """The readable part of a ledger.

    Attributes:
        lines: The lines up to the first damage, each with its ``prev``.
        problem: What is wrong with the file, such as ``line 40 is cut off``; ``None`` if nothing is.
        last: The digest of the last of ``lines``, to compare with the manifest; empty without lines.
    """

    lines: list[Line]
    problem: str | None
    last: str


def read_ledger(path: str | Path) -> ReadLedger:
    """Read a ledger and check its chain; no content of the file raises an error.

    Where the chain breaks, the line before the break is dropped too: either of the two may have been changed.
    """
    lines: list[Line] = []
    last = before = ""
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    return ReadLedger(lines, f"line {number} is cut off", last)
                if (line := _parse(raw[:-1])) is None:
                    return ReadLedger(lines, f"line {number} is not a record", last)
                if line["prev"] != last:
                    what = f"line {number - 1} was changed, or lines after it were removed"
                    return ReadLedger(lines[:-1], what if lines else "its first lines were removed", before)
                lines.append(line)
                before, last = last, digest16(raw[:-1])
    except OSError as error:
        return ReadLedger(lines, f"it cannot be read ({error.strerror})", last)
    return ReadLedger(lines, None if lines else "it is empty", last)


def _parse(raw: bytes) -> Line | None:
    try:
        line = parse_json(raw.decode())
        # Only in the form in which lines are written: JSON may name a field twice, and readers would see one of them.
        known = isinstance(line, dict) and _encode(line).encode("ascii") == raw
    except ValueError:  # not JSON, or not UTF-8
        return None
    return line if known and isinstance(line.get("kind"), str) and "prev" in line else None


_TEXT = (str,)
_WHOLE = (int,)
_KNOWN = (str, type(None))
_MAYBE_WHOLE = (int, type(None))
_METRICS = (dict,)
_AT = {"epoch": _WHOLE, "step": _WHOLE}
_DIGESTS = {"weights": _TEXT, "buffers": _TEXT}

#: The fields of each kind of line beside ``kind`` and ``prev``, with their types, by the version of the ledger.
FIELDS: dict[int, dict[str, dict[str, tuple[type, ...]]]] = {
    1: {
        "start": {"run": _TEXT, "weights": _TEXT, "world_size": _WHOLE},
        "step": {**_AT, "batch": _WHOLE, "ids": _KNOWN, "inputs": _KNOWN, "loss": _KNOWN, "lr": _TEXT},
        "weights": {"step": _WHOLE, **_DIGESTS},
        "val": {**_AT, "metrics": _METRICS},
        "epoch": {**_AT, "metrics": _METRICS, **_DIGESTS, "optimizer": _TEXT, "averaged": _KNOWN},
        "head": {"features": _TEXT, "penalty": _TEXT, "losses": _METRICS, "weights": _TEXT, "metrics": _METRICS},
        "choice": {"step": _WHOLE, "epochs": (list,), "metrics": _METRICS, "tried": _METRICS},
        "dropped": {**_AT, "batch": _MAYBE_WHOLE, "split": _TEXT, "ids": (list,), "by": (list,)},
        "gap": {"step": _WHOLE, "reason": _TEXT},
        "end": {"step": _WHOLE},
    }
}

#: The fields that a line of a kind may lack: those of a run with an option that earlier records do not know.
OPTIONAL: dict[str, dict[str, tuple[type, ...]]] = {"end": {"evidence": _TEXT, "calibration": (dict,)}}


def malformed(lines: Sequence[Line], version: int) -> tuple[int, str] | None:
    """The first line that does not have exactly the fields of its kind: its index, and what is wrong with it.

    Args:
        lines: The lines of a ledger.
        version: The version of the ledger; nothing is known of a later one.

    Example:
        >>> malformed([{"kind": "end", "prev": "", "step": 6, "note": "all is well"}], 1)
        (0, 'line 1 has a field `note`, which no line `end` has')
    """
    kinds = FIELDS.get(version)
    for index, line in enumerate(lines if kinds is not None else ()):
        if wrong := _wrong(line, kinds or {}):
            return index, f"line {index + 1} {wrong}"
    return None


def _wrong(line: Line, kinds: Mapping[str, Mapping[str, tuple[type, ...]]]) -> str:
    kind = line["kind"]
    if kind not in kinds:
        return f"is of an unknown kind `{kind}`"
    optional = {name: types for name, types in OPTIONAL.get(kind, {}).items() if name in line}
    fields = {**kinds[kind], **optional}
    for name in sorted(line.keys() - fields.keys() - {"kind", "prev"}):
        return f"has a field `{name}`, which no line `{kind}` has"
    for name, types in fields.items():
        if name not in line:
            return f"lacks the field `{name}`"
        if type(line[name]) not in types:  # not isinstance: True is an integer to Python
            return f"has a field `{name}` of another type"
    values = line.get("metrics", {}).values()
    return "" if all(isinstance(value, str) for value in values) else "has a metric that is no hexadecimal number"
