"""Facts about files, computed in threads before training and cached between runs.

Whether an image can be decoded, its size, which values a mask has, its digest. A fact is cached with the stamp of its
file, and computed again when the stamp has changed, or does not yet tell one content from another.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import PIL
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from autotimm.data.annotations.masks import MaskFacts, facts_of
from autotimm.data.annotations.object_ids import ObjectIds, object_ids
from autotimm.data.annotations.outlines import object_pixels
from autotimm.data.decoder_messages import heard, listening
from autotimm.data.image_channels import array_size, channel_range
from autotimm.data.image_io import (
    BROKEN,
    decoded,
    needs_conversion,
    open_image,
    reason,
    require_file,
    row_strips,
    size_of,
    strange_range,
    to_rgb,
)
from autotimm.data.image_reading import ARRAY_SUFFIX, UPRIGHT_RGB, ImageReading, current_reading
from autotimm.records.digest import file_digest
from autotimm.serialization import parse_json

__all__ = [
    "FileFacts",
    "Oddity",
    "Problem",
    "Stamp",
    "facts_per_reading",
    "file_digests",
    "image_sizes",
    "mask_facts",
    "object_bounds",
    "object_ids_of",
    "scan",
    "user_cache",
]

_PATIENCE = 2.0  # seconds before a progress bar appears
_BLOCK = 2048  # files per round: bounds memory, and what an interruption loses
_QUERY = 500  # paths per query: SQLite bounds the number of parameters
_SETTLED = 3 * 10**9  # nanoseconds: some file systems keep times in steps of two seconds
_LAST = 2**63 - 1  # of a signed integer of 64 bits, which SQLite and NumPy have: in nanoseconds, the year 2262
_Result = TypeVar("_Result")


def user_cache() -> Path:
    """The folder of what saves time and can be made again: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "autotimm"


class Problem(NamedTuple):
    """A file that cannot be used.

    Attributes:
        path: The file.
        reason: Why, in a few words.
    """

    path: Path
    reason: str


class Oddity(NamedTuple):
    """What is odd about a file that can be read.

    Attributes:
        range: The range of its numbers if they are not those of an image, see
            :func:`autotimm.data.image_io.strange_range`; empty if they are.
        message: What its decoder says; empty if it says nothing.
    """

    range: str
    message: str


class Stamp(NamedTuple):
    """Identifies the content of a file without reading it.

    Size and mtime are not enough: ``cp -p``, ``rsync -t`` and reproducible archives set them. No program can set ctime,
    and a file that was replaced has another inode.
    """

    path: bytes
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """The stamp of a file; ``None`` if there is no such file."""
        try:
            info = path.stat()
        except (OSError, ValueError):  # ValueError: a NUL in the name, which no system call takes
            return None
        # Integers here have 64 bits and a sign; inodes of some network file systems have none, and any time can be set.
        inode, device = info.st_ino % 2**63, info.st_dev % 2**63
        mtime, ctime = (max(-_LAST, min(time_ns, _LAST)) for time_ns in (info.st_mtime_ns, info.st_ctime_ns))
        name = os.fsencode(os.path.abspath(path))
        return cls(name, info.st_size, mtime, ctime, inode, device)

    def is_settled(self, now_ns: int) -> bool:
        """Whether any later change of the file gives it another stamp; only then can a fact be cached under this one.

        Two changes within one tick of a file system's clock leave one stamp for two contents. A time in the future
        comes from another clock, or from one that was set back and will come by the same time again.

        Args:
            now_ns: The time now, or when the stamp was taken, in nanoseconds since 1970.
        """
        return max(self.mtime_ns, self.ctime_ns) <= now_ns - _SETTLED


class FileFacts(Generic[_Result]):
    """One fact per file, computed in threads and cached in a SQLite file of the user's cache folder.

    The cache only saves time: where it cannot be read or written, facts are computed again, silently.

    Args:
        name: The name of the fact and of the cache file, such as ``"sizes"``.
        look_up: Reads one file. Its result must be JSON; an exception of ``BROKEN`` becomes a :class:`Problem`, which
            is never cached, since the cure may leave the file as it is.
        rules: The version of ``look_up``; facts of other versions are not used.
        threads: The maximum number of files that are read at once.
    """

    def __init__(self, name: str, look_up: Callable[[Path], _Result], rules: str, threads: int = 16) -> None:
        self.name, self.look_up, self.rules, self.threads = name, look_up, rules, threads

    @property
    def path(self) -> Path:
        """The cache file."""
        return user_cache() / f"{self.name}.sqlite3"

    def __call__(
        self, files: Sequence[Path], progress: bool, title: str, *, cached: bool = True
    ) -> dict[Path, _Result | Problem]:
        """The fact of each file, in the order of ``files``; one that is listed twice is read once.

        Args:
            files: The files.
            progress: Whether a progress bar may appear, on a terminal, if it takes more than 2 seconds.
            title: The title of the bar.
            cached: Whether facts of the cache may be used; if not, every file is read, and the cache corrected.
        """
        now = time.time_ns()  # before the files are read: what happens to them later gives them other stamps
        stamps = {path: Stamp.of(path) for path in dict.fromkeys(files)}
        settled = {stamp for stamp in stamps.values() if stamp is not None and stamp.is_settled(now)}
        usable = [stamp for stamp in stamps.values() if stamp in settled] if cached else []
        known = self._use(lambda connection: self._select(connection, usable), {})
        # A file that was read before may be unreadable for this user.
        todo = [path for path, stamp in stamps.items() if stamp not in known or not os.access(path, os.R_OK)]
        fresh: dict[Path, _Result | Problem] = {}
        try:
            for path, fact in zip(todo, _with_progress(self._map(todo), len(todo), progress, title), strict=True):
                fresh[path] = fact
        finally:  # an interruption keeps what was computed
            rows = [(*stamp, self.rules, json.dumps(fact)) for path, fact in fresh.items()
                    if not isinstance(fact, Problem) and (stamp := stamps[path]) and stamp in settled]  # fmt: skip
            if rows:
                self._use(lambda connection: self._insert(connection, rows), None)
        return {path: fresh[path] if path in fresh else known[stamp] for path, stamp in stamps.items()}

    def _map(self, paths: Sequence[Path]) -> Iterator[_Result | Problem]:
        def attempt(path: Path) -> _Result | Problem:
            try:
                require_file(path)
                with heard():  # messages without a file name are no use; `scan` reports them with it
                    return self.look_up(path)
            except BROKEN as error:
                return Problem(path, reason(path, error))

        # Decoding and hashing release the interpreter's lock.
        pool = ThreadPoolExecutor(min(os.cpu_count() or 1, self.threads), thread_name_prefix=self.name)
        try:
            for first in range(0, len(paths), _BLOCK):
                with listening():
                    yield from pool.map(attempt, paths[first : first + _BLOCK])
        finally:
            pool.shutdown(cancel_futures=True)

    def _select(self, connection: sqlite3.Connection, stamps: Sequence[Stamp]) -> dict[Stamp | None, _Result]:
        known: dict[Stamp | None, _Result] = {}
        width = len(Stamp._fields)
        for first in range(0, len(stamps), _QUERY):
            paths = [stamp.path for stamp in stamps[first : first + _QUERY]]
            marks = ",".join("?" * len(paths))
            rows = connection.execute(
                f"select * from facts where rules = ? and path in ({marks})", [self.rules, *paths]
            )
            known |= {Stamp(*row[:width]): parse_json(row[-1]) for row in rows}
        return known

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * (len(Stamp._fields) + 2))
        connection.executemany(f"insert or replace into facts values ({marks})", rows)

    def _use(self, use: Callable[[sqlite3.Connection], Any], otherwise: Any) -> Any:
        """Use the cache in one transaction. A damaged cache file is removed, a locked one is left alone."""
        columns = ", ".join(f"{field} integer" for field in Stamp._fields[1:])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=1.0)) as connection, connection:
                connection.execute("pragma synchronous=off")  # a cache lost in a power cut is built again
                connection.execute(
                    f"create table if not exists facts (path blob primary key, {columns}, rules text, fact text)"
                )
                return use(connection)
        except sqlite3.OperationalError:
            return otherwise
        except (sqlite3.DatabaseError, ValueError):
            with suppress(OSError):
                self.path.unlink()
            return otherwise
        except OSError:
            return otherwise


def _with_progress(results: Iterator[_Result], total: int, wanted: bool, title: str) -> Iterator[_Result]:
    """Pass results on, with a progress bar once it has taken 2 seconds."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    started, shown = time.monotonic(), False
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(title, total=total)
    try:
        for result in results:
            progress.advance(task)
            if wanted and not shown and console.is_terminal and time.monotonic() - started > _PATIENCE:
                progress.start()
                shown = True
            yield result
    finally:
        if shown:
            progress.stop()


def scan(files: Sequence[Path], progress: bool = True, oddities: dict[Path, Oddity] | None = None) -> list[Problem]:
    """Decode every file completely and list those that fail, in the order of ``files``.

    Args:
        files: The files; one that is listed twice is read once.
        progress: Whether a bar may appear.
        oddities: Receives what is odd about files that can be read.
    """
    facts = facts_per_reading("readable", _decode)(files, progress, "checking images")
    if oddities is not None:
        oddities |= {path: Oddity(*fact) for path, fact in facts.items() if not isinstance(fact, Problem) and any(fact)}
    return [fact for fact in facts.values() if isinstance(fact, Problem)]


def image_sizes(files: Sequence[Path], progress: bool = True) -> dict[Path, tuple[int, int]]:
    """Width and height of images, from their headers; files that cannot be read are left out.

    Upright, or as they are stored where :func:`autotimm.data.image_reading.reading_as` says so.
    """
    sizes = facts_per_reading("sizes", _size)(files, progress, "checking annotations")
    return {path: (size[0], size[1]) for path, size in sizes.items() if not isinstance(size, Problem)}


def mask_facts(files: Sequence[Path], progress: bool = True) -> dict[Path, MaskFacts | Problem]:
    """The values in each mask, or why it cannot be read."""
    return {
        path: fact if isinstance(fact, Problem) else MaskFacts(*(_tuples(part) for part in fact))
        for path, fact in _MASKS(files, progress, "checking annotations").items()
    }


def object_bounds(files: Sequence[Path], progress: bool = True) -> dict[Path, tuple[int, ...] | Problem]:
    """Width and height of masks of one object, then its box: x1, y1, x2, y2; zeros if the mask is empty."""
    return {
        path: fact if isinstance(fact, Problem) else tuple(fact)
        for path, fact in _BOUNDS(files, progress, "checking annotations").items()
    }


def object_ids_of(files: Sequence[Path], progress: bool = True) -> dict[Path, ObjectIds | Problem]:
    """The objects of each label image of ids, or why it cannot be read."""
    return {
        path: fact if isinstance(fact, Problem) else ObjectIds(*(_tuples(part) for part in fact))
        for path, fact in _IDS(files, progress, "checking annotations").items()
    }


def file_digests(files: Sequence[Path], progress: bool = True, *, cached: bool = True) -> dict[Path, str | Problem]:
    """SHA-256 of each file; ``cached=False`` reads every file, also where the cache knows a digest."""
    return _DIGESTS(files, progress, "reading images", cached=cached)


def _tuples(part: Any) -> Any:
    return tuple(part) if isinstance(part, list) else part


def _decode(reading: ImageReading, path: Path) -> Oddity:
    with heard() as messages:
        strange = _range(reading, path)
    more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
    return Oddity(strange, "".join(messages[:1]) + more)


def _range(reading: ImageReading, path: Path) -> str:
    """The range of the numbers in a file if they are not those of an image, otherwise empty."""
    if not reading.is_rgb:
        return channel_range(path, reading)
    with decoded(path) as image:
        for _, strip in row_strips(image) if needs_conversion(image) else ():
            to_rgb(strip)  # in strips, since nobody needs the whole
        return strange_range(image)


def _size(reading: ImageReading, path: Path) -> tuple[int, int]:
    if path.suffix.lower() == ARRAY_SUFFIX:
        return array_size(path, reading)
    with open_image(path) as image:
        return size_of(image, reading.upright)


def facts_per_reading(
    name: str, look_up: Callable[[ImageReading, Path], _Result], rules: str = "3"
) -> FileFacts[_Result]:
    """Facts that depend on how images are read now.

    Args:
        name: See :class:`FileFacts`.
        look_up: Reads one file, as its first argument says.
        rules: The version of ``look_up``.
    """
    reading = current_reading()
    own = "" if reading == UPRIGHT_RGB else f" {tuple(reading)}"
    return FileFacts(name, partial(look_up, reading), f"{rules} {PIL.__version__}{own}")


def _bounds(path: Path) -> tuple[int, ...]:
    pixels = object_pixels(path)
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
    return (pixels.shape[1], pixels.shape[0], *map(int, box))


# A release of Pillow may read a file differently from an older one. The number counts changes of our own code.
_MASKS: FileFacts[Any] = FileFacts("masks", facts_of, f"4 {PIL.__version__}")
_BOUNDS: FileFacts[tuple[int, ...]] = FileFacts("objects", _bounds, f"4 {PIL.__version__}")
_IDS: FileFacts[Any] = FileFacts("ids", object_ids, f"2 {PIL.__version__}")
_DIGESTS: FileFacts[str] = FileFacts("digests", file_digest, "1", threads=8)
