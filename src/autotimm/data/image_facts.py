"""One pass over image files: each is read once, and its digest, its header and its check come from the same bytes.

A complete check decodes the image. A check of headers reads the size, and finds files that are empty, cut off or no
images; damage within the data is found by whoever decodes the image later.

What was found is remembered with the stamp of the file, by the rules of :mod:`autotimm.data.file_facts`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from autotimm.data.decoder_messages import heard, listening
from autotimm.data.file_facts import FactStore, Oddity, Problem, Stamp, file_digests, stamp_rows, stamps_of
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
from autotimm.data.jpeg import checked_jpeg
from autotimm.data.progress_bar import ProgressBar
from autotimm.data.texts import file_names
from autotimm.records.digest import file_digest

__all__ = [
    "MANY_BYTES",
    "MANY_IMAGES",
    "ImageFact",
    "checks_fully",
    "facts_of_rows",
    "image_digests",
    "image_facts",
    "scan",
]

MANY_IMAGES = 20_000
"""More images than these are not decoded before training, unless somebody asks for it."""

MANY_BYTES = 5 * 10**9
"""Nor are images that take more than these together."""

_RULES = 1  # raised with every change of our own code that finds something else
_BLOCK = 2048  # files per round: bounds memory, and what an interruption loses
_TASK = 32  # files that a thread takes at once
_THREADS = 16
_LARGEST = 1 << 26  # bytes of a file that is read as a whole
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait otherwise
_NO_DIGEST = bytes(32)
_PNG, _PNG_END = b"\x89PNG", b"IEND"

_STORE = FactStore(
    "images",
    "rules text, digest blob, width integer, height integer, decoded integer, range text, message text",
)


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


def checks_fully(check: str, files: Sequence[str]) -> bool:
    """Whether all images are decoded before training.

    Args:
        check: ``full``, ``headers``, or ``auto``: ``full`` up to :data:`MANY_IMAGES` and :data:`MANY_BYTES`.
        files: The files.
    """
    if check != "auto":
        return check == "full"
    if len(files) > MANY_IMAGES:
        return False
    return sum(stamp.size for stamp in stamps_of(files) if stamp is not None) <= MANY_BYTES


def scan(
    files: Sequence[Path], progress: bool = True, oddities: dict[Path, Oddity] | None = None, *, full: bool = True
) -> list[Problem]:
    """Check every file and list those that fail, in the order of ``files``.

    Args:
        files: The files; one that is listed twice is listed once.
        progress: Whether a bar may appear.
        oddities: Receives what is odd about files that can be read.
        full: Whether to decode them completely.
    """
    names = file_names(files)
    problems: dict[Path, Problem] = {}
    for name, fact in zip(names, image_facts(names, full=full, progress=progress), strict=True):
        if isinstance(fact, Problem):
            problems.setdefault(fact.path, fact)
        elif oddities is not None and (fact.range or fact.message):
            oddities[Path(name)] = Oddity(fact.range, fact.message)
    return list(problems.values())


def image_digests(
    files: Sequence[str], progress: bool = True, *, cached: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, Problem]]:
    """The SHA-256 of each file, (files, 32), the stamps before, and what cannot be read, by its place in ``files``.

    Args:
        files: The files.
        progress: Whether a bar may appear.
        cached: Whether what was found before may be used; if not, every file is read, and what was wrong forgotten.
    """
    digests = np.zeros((len(files), 32), np.uint8)
    unknown: list[int] = []
    problems: dict[int, Problem] = {}
    rows = [np.zeros((0, len(Stamp._fields) - 1), np.int64)]
    for start in range(0, len(files), _BLOCK):
        names = files[start : start + _BLOCK]
        stamps = _stamps(names)
        rows.append(stamp_rows(stamps.all))
        known = _remembered(names, stamps) if cached else [None] * len(names)
        unknown += [place for place, fact in enumerate(known, start) if fact is None]
        found = b"".join(_NO_DIGEST if fact is None else fact.digest for fact in known)
        digests[start : start + len(names)] = np.frombuffer(found, np.uint8).reshape(-1, 32)
    paths = [Path(files[place]) for place in unknown]
    read = file_digests(paths, progress, cached=cached) if paths else {}
    for place, path in zip(unknown, paths, strict=True):
        digest = read[path]
        if isinstance(digest, Problem):
            problems[place] = digest
        else:
            digests[place] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    if not cached:
        _forget_others(files, digests)
    return digests, np.concatenate(rows), problems


def _forget_others(files: Sequence[str], digests: NDArray[np.uint8]) -> None:
    """Forget what is known of files that have other digests."""
    for start in range(0, len(files), _BLOCK):
        names = files[start : start + _BLOCK]
        stamps = _stamps(names)
        known = zip(stamps.all, _remembered(names, stamps), digests[start : start + len(names)], strict=True)
        wrong = [stamp.path for stamp, fact, digest in known if stamp and fact and fact.digest != digest.tobytes()]
        if wrong:
            _STORE.remove(wrong)


def image_facts(
    files: Sequence[str], *, full: bool, progress: bool = True, title: str = "checking images"
) -> Iterator[ImageFact | Problem]:
    """What is known of each file, in order; what is not is found out in threads.

    Args:
        files: The files.
        full: Whether they must have been decoded completely.
        progress: Whether a progress bar may appear, on a terminal, if it takes more than 2 seconds.
        title: The title of the bar.
    """
    reading = current_reading()
    own = "" if reading.channels == 3 and reading.upright else f" {tuple(reading)}"
    rules = f"{_RULES} {PIL.__version__}{own}"
    # Decoding and hashing release the interpreter's lock.
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS), thread_name_prefix="images")
    try:
        with ProgressBar(len(files), progress, title) as bar:
            remaining = iter(files)
            while names := list(itertools.islice(remaining, _BLOCK)):
                yield from _of_block(names, pool, reading, rules, full, bar)
    finally:
        pool.shutdown(cancel_futures=True)


class _Stamps(NamedTuple):
    """The stamps of some files, and which of them tell one content from another."""

    all: list[Stamp | None]
    settled: list[bool]


def _stamps(names: Sequence[str]) -> _Stamps:
    now = time.time_ns()  # before the files are read: what happens to them later gives them other stamps
    stamps = list(stamps_of(names))
    return _Stamps(stamps, [stamp is not None and stamp.is_settled(now) for stamp in stamps])


def _remembered(
    names: Sequence[str], stamps: _Stamps, rules: str | None = None, *, full: bool = False
) -> list[ImageFact | None]:
    """What is known of some files; ``rules`` as it was found out, by default in any way: a digest is a digest."""
    usable = [stamp for stamp, settled in zip(*stamps, strict=True) if stamp is not None and settled]
    width = len(Stamp._fields)
    rows = {row[:width]: row[width:] for row in _STORE.rows([stamp.path for stamp in usable])}
    found: list[ImageFact | None] = []
    for name, stamp, settled in zip(names, *stamps, strict=True):
        row = rows.get(stamp) if settled and stamp is not None else None
        # A file that was read before may be unreadable for this user.
        fits = row is not None and rules in (None, row[0]) and row[4] >= full and os.access(name, os.R_OK)
        found.append(tuple.__new__(ImageFact, row[1:]) if row is not None and fits else None)
    return found


def _of_block(
    names: Sequence[str], pool: ThreadPoolExecutor, reading: ImageReading, rules: str, full: bool, bar: ProgressBar
) -> Iterator[ImageFact | Problem]:
    stamps = _stamps(names)
    facts: list[ImageFact | Problem | None] = [*_remembered(names, stamps, rules, full=full)]
    todo = [place for place, fact in enumerate(facts) if fact is None]
    bar.advance(len(names) - len(todo))
    parts = [todo[first : first + _TASK] for first in range(0, len(todo), _TASK)]
    look = partial(_look_at, reading, full)
    done: list[int] = []
    try:
        with listening():
            for part, found in zip(parts, pool.map(look, ([names[at] for at in part] for part in parts)), strict=True):
                for place, fact in zip(part, found, strict=True):
                    facts[place] = fact
                done += part
                bar.advance(len(part))
    finally:  # an interruption keeps what was found
        _remember(((stamps.all[at], facts[at]) for at in done if stamps.settled[at]), rules)
    yield from (fact for fact in facts if fact is not None)  # by now none is


def _remember(found: Iterable[tuple[Stamp | None, ImageFact | Problem | None]], rules: str) -> None:
    """Keep facts; a problem never, since the cure may leave the file as it is."""
    rows = [(*stamp, rules, *fact) for stamp, fact in found if stamp is not None and isinstance(fact, ImageFact)]
    if rows:
        _STORE.insert(rows)


def _look_at(reading: ImageReading, full: bool, names: Sequence[str]) -> list[ImageFact | Problem]:
    found: list[ImageFact | Problem] = []
    for name in names:
        try:
            found.append(_fact(name, reading, full))
        except BROKEN as error:
            found.append(Problem(Path(name), reason(name, error)))
    return found


def facts_of_rows(
    rows: Iterable[tuple[str, bytes]], total: int, *, full: bool, progress: bool = True
) -> Iterator[ImageFact | Problem]:
    """What is known of images that are in memory, in order; as :func:`image_facts`, and nothing is remembered.

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

    pool, remaining = ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS), thread_name_prefix="images"), iter(rows)
    try:
        with ProgressBar(total, progress, "checking images") as bar, listening():
            while some := list(itertools.islice(remaining, _TASK)):
                yield from pool.map(look, some)
                bar.advance(len(some))
    finally:
        pool.shutdown(cancel_futures=True)


def _fact(name: str, reading: ImageReading, full: bool) -> ImageFact:
    return _fact_of(name, _content(name), name, reading, full)


def _fact_of(name: str, data: bytes | None, place: str | bytes, reading: ImageReading, full: bool) -> ImageFact:
    """The fact of an image, by its content if it is not too large, or else by the place where that is."""
    digest = bytes.fromhex(file_digest(name)) if data is None else hashlib.sha256(data).digest()
    with heard() as messages:
        size = checked_jpeg(data, reading.upright, full=full) if data is not None and reading.is_rgb else None
        strange = ""
        if size is None:
            messages.clear()  # of a look that was not enough
            full = full or _is_cut_off(data or b"")
            size, strange = _checked(place, data, reading, full)
    more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
    return ImageFact(digest, *size, int(full), strange, "".join(messages[:1]) + more)


def _content(name: str) -> bytes | None:
    """All bytes of a file; ``None`` if they are too many to hold."""
    file = os.open(name, _READ)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is a folder, a pipe or a device, and no file")
        if status.st_size > _LARGEST:
            return None
        data = os.read(file, status.st_size + 1)
        while len(data) < status.st_size and (more := os.read(file, status.st_size + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(file)


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
