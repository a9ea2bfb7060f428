"""What the bytes of an image file say: its digest, its size, and what is wrong or odd about it, from one reading."""

from __future__ import annotations

import io
import itertools
import operator
import os
import stat
import struct
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import numpy as np

from autotimm.data.decoder_messages import heard, listening
from autotimm.data.fact_pages import FACT, Known
from autotimm.data.file_facts import Problem, stamp_numbers
from autotimm.data.image_channels import array_size, channel_range, is_array
from autotimm.data.image_io import (
    BROKEN,
    decoded,
    needs_conversion,
    open_image,
    reason,
    row_strips,
    size_of,
    strange_range,
    to_rgb,
)
from autotimm.data.image_reading import ImageReading, current_reading
from autotimm.data.jpeg import checked_jpeg, plain_size
from autotimm.data.progress_bar import ProgressBar
from autotimm.records.digest import file_digest

__all__ = ["MOST_THREADS", "ImageFact", "Looked", "facts_of_rows", "look_at"]

MOST_THREADS = 16
"""Threads that read files at once."""

_AT_ONCE = 32  # images in memory that the threads are given
_LARGEST = 1 << 26  # bytes of a file that is read as a whole
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait otherwise
_FOLDER = os.O_PATH | os.O_DIRECTORY if hasattr(os, "O_PATH") else None  # of Linux: asks for no permission to list it
_PNG, _PNG_END = b"\x89PNG", b"IEND"
_RECORD = struct.Struct("<5q32s2q?H")  # of `FACT`
_NOTHING = bytes(FACT.itemsize)


class ImageFact(NamedTuple):
    """What is known of a file that can be read.

    Attributes:
        digest: The SHA-256 of its bytes.
        width: In pixels, upright unless EXIF tags are ignored.
        height: In pixels.
        decoded: Whether all of it was decoded.
        range: See :class:`autotimm.data.file_facts.Oddity`.
        message: See there.
    """

    digest: bytes
    width: int
    height: int
    decoded: int
    range: str
    message: str


class Looked(NamedTuple):
    """What was found out about some files.

    Attributes:
        records: What is known of each as the bytes of a :data:`FACT`, zeros for those that cannot be read.
        notes: See :class:`Known`.
        problems: Those that cannot be read, by their places.
        size: Bytes of all files.
    """

    records: bytes
    notes: dict[int, tuple[str, str]]
    problems: dict[int, Problem]
    size: int

    @classmethod
    def joined(cls, parts: Sequence[Looked]) -> Looked:
        """What was found out about several groups of files, one after the other."""
        notes: dict[int, tuple[str, str]] = {}
        problems: dict[int, Problem] = {}
        start = 0
        for part in parts:
            notes |= {start + place: note for place, note in part.notes.items()}
            problems |= {start + place: problem for place, problem in part.problems.items()}
            start += part.files
        return cls(b"".join(part.records for part in parts), notes, problems, sum(part.size for part in parts))

    def known(self, rules: str) -> Known:
        """What is known of them, by some rules."""
        return Known(np.frombuffer(self.records, FACT), ("", rules), self.notes)

    @property
    def files(self) -> int:
        """Their number."""
        return len(self.records) // FACT.itemsize


def look_at(reading: ImageReading, full: bool, names: Sequence[str]) -> Looked:
    """Read each of some files once. Their stamps are taken before: what happens later gives them other stamps.

    Args:
        reading: How images become pixels.
        full: Whether to decode them completely.
        names: The files.
    """
    records, total = bytearray(), 0
    problems: dict[int, Problem] = {}
    notes: dict[int, tuple[str, str]] = {}
    quick = reading.is_rgb and not full
    with _Files() as files:
        for place, name in enumerate(names):
            try:
                status, data = files.read(name)
                total += status.st_size
                # Nearly all files of many are such, so that nothing else is done for them.
                if quick and data is not None and (size := plain_size(data)) is not None:
                    found = (sha256(data).digest(), *size, 0)
                else:
                    fact = _fact_of(name, data, name, reading, full)
                    found = fact[:4]
                    if fact.range or fact.message:
                        notes[place] = (fact.range, fact.message)
                records += _record(status, found)
            except BROKEN as error:
                problems[place] = Problem(Path(name), reason(name, error))
                records += _NOTHING
    return Looked(bytes(records), notes, problems, total)


def _record(status: os.stat_result, found: tuple[bytes, int, int, int]) -> bytes:
    try:
        return _RECORD.pack(*_stamp(status), *found, 1)
    except struct.error:  # a time or an inode of more than 63 bits
        return _RECORD.pack(*stamp_numbers(status), *found, 1)


_stamp = operator.attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev")


class _Files:
    """Reads files one after the other; those of one folder by their names alone, which takes less time."""

    def __init__(self) -> None:
        self._folder, self._opened = "", cast("int | None", None)

    def read(self, name: str) -> tuple[os.stat_result, bytes | None]:
        """The status of a file, and all its bytes; ``None`` if they are too many to hold."""
        folder, _, last = name.rpartition("/")
        if folder != self._folder:
            self._enter(folder)
        inside = self._opened is not None and last != ""
        file = os.open(last, _READ, dir_fd=self._opened) if inside else os.open(name, _READ)
        try:
            status = os.fstat(file)
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is a folder, a pipe or a device, and no file")
            if size > _LARGEST:
                return status, None
            data = os.read(file, size + 1)
            while len(data) < size and (more := os.read(file, size + 1 - len(data))):
                data += more
            return status, data
        finally:
            os.close(file)

    def _enter(self, folder: str) -> None:
        self._leave()
        if _FOLDER is not None and folder:
            with suppress(*BROKEN):  # the error of its files says more
                self._opened = os.open(folder, _FOLDER)
        self._folder = folder

    def _leave(self) -> None:
        if self._opened is not None:
            os.close(self._opened)
        self._folder, self._opened = "", None

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()


def facts_of_rows(
    rows: Iterable[tuple[str, bytes]], total: int, *, full: bool, progress: bool = True
) -> Generator[ImageFact | Problem, None, None]:
    """What is known of images that are in memory, in order; nothing is remembered.

    Args:
        rows: Name and content of each.
        total: Their number, for the progress bar.
        full: Whether to decode them completely.
        progress: Whether a progress bar may appear.
    """
    reading = current_reading()

    def look(row: tuple[str, bytes]) -> ImageFact | Problem:
        try:
            return _fact_of(*row, row[1], reading, full)
        except BROKEN as error:
            return Problem(Path(row[0]), reason(row[0], error))

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), thread_name_prefix="images")
    remaining = iter(rows)
    try:
        with ProgressBar(total, progress, "checking images") as bar, listening():
            while some := list(itertools.islice(remaining, _AT_ONCE)):
                yield from pool.map(look, some)
                bar.advance(len(some))
    finally:
        pool.shutdown(cancel_futures=True)


def _fact_of(name: str, data: bytes | None, place: str | bytes, reading: ImageReading, full: bool) -> ImageFact:
    """The fact of an image, by its content if it is not too large, or else by the place where that is."""
    digest = bytes.fromhex(file_digest(name)) if data is None else sha256(data).digest()
    with heard() as messages:
        size = checked_jpeg(data, reading.upright, full=full) if data is not None and reading.is_rgb else None
        strange = ""
        if size is None:
            messages.clear()  # of a look that was not enough
            full = full or _is_cut_off(data or b"")
            size, strange = _checked(place, data, reading, full)
    more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
    return ImageFact(digest, *size, int(full), strange, "".join(messages[:1]) + more)


def _is_cut_off(data: bytes) -> bool:
    """Whether a file may be incomplete; of formats that nothing is known of, none is."""
    if data.startswith(b"\xff\xd8"):
        return True  # else it would have been accepted
    if data.startswith(_PNG):
        return _PNG_END not in data[-64:]
    if data.startswith(b"RIFF") and len(data) >= 8:
        return len(data) < 8 + int(struct.unpack_from("<I", data, 4)[0])
    return False


def _checked(place: str | bytes, data: bytes | None, reading: ImageReading, full: bool) -> tuple[tuple[int, int], str]:
    """Width and height of an image, and the range of its numbers if they are not those of an image."""
    if not reading.is_rgb and is_array(place):
        return array_size(place, reading), channel_range(place, reading) if full else ""
    source: Any = place if data is None else io.BytesIO(data)
    if full and reading.is_rgb:
        with decoded(source, reading.upright) as image:
            for _, strip in row_strips(image) if needs_conversion(image) else ():
                to_rgb(strip)  # in strips, since nobody needs the whole
            return image.size, strange_range(image)
    with open_image(source) as image:
        size = size_of(image, reading.upright)
    return size, channel_range(place, reading) if full else ""
