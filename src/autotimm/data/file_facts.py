"""Facts about files, computed in threads before training and cached between runs.

Whether an image can be decoded, its size, which values a mask has, its digest. A fact is cached with the stamp of its
file, and computed again when the stamp has changed, or does not yet tell one content from another.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from autotimm.data.annotations.masks import MaskFacts, facts_of
from autotimm.data.annotations.object_ids import ObjectIds, object_ids
from autotimm.data.annotations.outlines import object_pixels
from autotimm.data.decoder_messages import heard, listening
from autotimm.data.image_channels import array_size
from autotimm.data.image_io import BROKEN, open_image, reason, require_file, size_of
from autotimm.data.image_reading import ARRAY_SUFFIX, UPRIGHT_RGB, ImageReading, current_reading
from autotimm.data.progress_bar import ProgressBar
from autotimm.records.digest import file_digest
from autotimm.serialization import parse_json

__all__ = [
    "CacheFile",
    "FactStore",
    "FileFacts",
    "Oddity",
    "Problem",
    "Stamp",
    "absolute_paths",
    "are_settled",
    "facts_per_reading",
    "file_digests",
    "image_sizes",
    "mask_facts",
    "object_bounds",
    "object_ids_of",
    "stamp_numbers",
    "stamp_rows",
    "stamps_of",
    "user_cache",
]

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
        return next(stamps_of([os.fspath(path)]))

    def is_settled(self, now_ns: int) -> bool:
        """Whether any later change of the file gives it another stamp; only then can a fact be cached under this one.

        Two changes within one tick of a file system's clock leave one stamp for two contents. A time in the future
        comes from another clock, or from one that was set back and will come by the same time again.

        Args:
            now_ns: The time now, or when the stamp was taken, in nanoseconds since 1970.
        """
        return max(self.mtime_ns, self.ctime_ns) <= now_ns - _SETTLED


def stamp_numbers(info: os.stat_result) -> tuple[int, int, int, int, int]:
    """What a stamp has beside the path."""
    # Integers here have 64 bits and a sign; inodes of some network file systems have none, and any time can be set.
    mtime, ctime = info.st_mtime_ns, info.st_ctime_ns
    if not (-_LAST <= mtime <= _LAST and -_LAST <= ctime <= _LAST):
        mtime, ctime = (max(-_LAST, min(time_ns, _LAST)) for time_ns in (mtime, ctime))
    return info.st_size, mtime, ctime, info.st_ino % 2**63, info.st_dev % 2**63


def stamps_of(names: Iterable[str]) -> Iterator[Stamp | None]:
    """The stamps of files; ``None`` for each that is not there."""
    folders: dict[str, bytes] = {}
    for name in names:
        try:
            info = os.stat(name)
        except (OSError, ValueError):  # ValueError: a NUL in the name, which no system call takes
            yield None
            continue
        # Not by its own constructor, which takes twice the time.
        yield tuple.__new__(Stamp, (_absolute(name, folders), *stamp_numbers(info)))


def stamp_rows(names: Iterable[str]) -> NDArray[np.int64]:
    """The stamps of files without their paths as an array, (files, 5); zeros for a file that is not there."""
    rows, pack, nothing = bytearray(), struct.Struct("<5q").pack, bytes(40)
    for name in names:
        try:
            info = os.stat(name)
        except (OSError, ValueError):
            rows += nothing
            continue
        try:
            rows += pack(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev)
        except struct.error:  # of 64 bits each
            rows += pack(*stamp_numbers(info))
    return np.frombuffer(rows, "<i8").astype(np.int64, copy=False).reshape(-1, len(Stamp._fields) - 1)


def are_settled(rows: NDArray[np.int64], now_ns: int) -> NDArray[np.bool_]:
    """:meth:`Stamp.is_settled` of each row of stamps without paths; ``False`` for a file that is not there."""
    settled: NDArray[np.bool_] = rows.any(axis=1) & (rows[:, 1:3].max(axis=1) <= now_ns - _SETTLED)
    return settled


def absolute_paths(names: Sequence[str]) -> list[bytes]:
    """The absolute paths of files, as in their stamps; an empty one for a name that no file can have."""
    text = "\0".join(["", *names])
    absolute = text.count("\0/")
    is_plain = text.count("\0") == len(names) and not any(detour in text for detour in _DETOURS)
    if os.sep == "/" and is_plain and absolute in (0, len(names)):
        if not absolute:
            text = text.replace("\0", "\0" + os.path.join(os.getcwd(), ""))
        with suppress(UnicodeEncodeError):
            return os.fsencode(text).split(b"\0")[1:]
    folders: dict[str, bytes] = {}
    paths: list[bytes] = []
    for name in names:
        try:
            paths.append(b"" if "\0" in name else _absolute(name, folders))
        except UnicodeEncodeError:  # half of a surrogate pair, in an annotation
            paths.append(b"")
    return paths


# In a name after NUL. Those at its end matter no more: it is that of no file.
_DETOURS = ("//", "/./", "/../", "\0.")


def _absolute(name: str, folders: dict[str, bytes]) -> bytes:
    """The absolute path of a file; ``folders`` keeps those of folders, which cost more than the rest."""
    folder, separator, last = name.rpartition(os.sep)
    if last in ("", os.curdir, os.pardir):
        return os.fsencode(os.path.abspath(name))
    if folder + separator not in folders:
        whole = os.path.abspath(folder + separator or os.curdir)
        folders[folder + separator] = os.fsencode(os.path.join(whole, ""))
    return folders[folder + separator] + os.fsencode(last)


class CacheFile:
    """A SQLite file of the user's cache folder.

    It only saves time: where it cannot be read or written it is empty, silently. A damaged file is removed, a locked
    one is left alone.

    Args:
        name: The name of the file.
        statements: SQL that is executed whenever it is opened.
    """

    def __init__(self, name: str, *statements: str) -> None:
        self.name, self._statements = name, statements

    @property
    def path(self) -> Path:
        """The file."""
        return user_cache() / f"{self.name}.sqlite3"

    def use(self, use: Callable[[sqlite3.Connection], Any], otherwise: Any) -> Any:
        """Use it in one transaction; a ``ValueError`` says that it is damaged."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=1.0)) as connection, connection:
                connection.execute("pragma synchronous=off")  # a cache lost in a power cut is built again
                for statement in self._statements:
                    connection.execute(statement)
                return use(connection)
        except sqlite3.OperationalError:
            return otherwise
        except (sqlite3.DatabaseError, ValueError):
            self.discard()
            return otherwise
        except OSError:
            return otherwise

    def discard(self) -> None:
        """Remove the file, which is damaged."""
        with suppress(OSError):
            self.path.unlink()


class FactStore:
    """A table of facts about files, a row for each, in a :class:`CacheFile`.

    Args:
        name: The name of the file.
        columns: The columns beside those of a stamp, as SQL.
    """

    def __init__(self, name: str, columns: str) -> None:
        self._width = len(Stamp._fields) + columns.count(",") + 1
        of_stamp = ", ".join(f"{field} integer" for field in Stamp._fields[1:])
        self.file = CacheFile(name, f"create table if not exists facts (path blob primary key, {of_stamp}, {columns})")

    def rows(self, paths: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """The rows of some files, in no order: those of a stamp, then the columns; files without one are left out."""

        def select(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = []
            for first in range(0, len(paths), _QUERY):
                some = paths[first : first + _QUERY]
                rows += connection.execute(f"select * from facts where path in ({','.join('?' * len(some))})", some)
            return rows

        found: list[tuple[Any, ...]] = self.file.use(select, []) if len(paths) else []
        return found

    def insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows, or replace those of the same files."""
        marks = ", ".join("?" * self._width)
        self.file.use(
            lambda connection: connection.executemany(f"insert or replace into facts values ({marks})", rows), None
        )


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
        self._store = FactStore(name, "rules text, fact text")

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
        unique = list(dict.fromkeys(files))
        stamps = dict(zip(unique, stamps_of(map(os.fspath, unique)), strict=True))
        settled = {stamp for stamp in stamps.values() if stamp is not None and stamp.is_settled(now)}
        usable = [stamp for stamp in stamps.values() if stamp in settled] if cached else []
        known = self._known(usable)
        # A file that was read before may be unreadable for this user.
        todo = [path for path, stamp in stamps.items() if stamp not in known or not os.access(path, os.R_OK)]
        fresh: dict[Path, _Result | Problem] = {}
        try:
            with ProgressBar(len(todo), progress, title) as bar:
                for path, fact in zip(todo, self._map(todo), strict=True):
                    fresh[path] = fact
                    bar.advance()
        finally:  # an interruption keeps what was computed
            rows = [(*stamp, self.rules, json.dumps(fact)) for path, fact in fresh.items()
                    if not isinstance(fact, Problem) and (stamp := stamps[path]) and stamp in settled]  # fmt: skip
            if rows:
                self._store.insert(rows)
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

    def _known(self, stamps: Sequence[Stamp]) -> dict[Stamp | None, _Result]:
        width = len(Stamp._fields)
        rows = self._store.rows([stamp.path for stamp in stamps])
        try:
            return {Stamp(*row[:width]): parse_json(row[-1]) for row in rows if row[width] == self.rules}
        except ValueError:
            self._store.file.discard()
            return {}


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
