"""Decoded pictures in one file per data set, which any number of processes read and write at the same time.

A data set has a folder with ``pixels``, to which pictures are only ever appended, and ``index.sqlite3``, which says
where each of them begins. Each picture stands behind a head with its key, its shape and a checksum, and is compared
with these whenever it is read. So nothing has to be believed: a process that is killed while it writes leaves bytes
that no row points to; a file that was cut off, or an index that holds nonsense, costs the time to decode again.

Pictures are read into memory of their own and not mapped. A copy of half a megabyte from the page cache takes 24 µs,
less than the page faults of a mapping (41 µs); a mapping would count as memory of the process, page by page for
the whole data set; and a disk that fails would kill the process where reading raises an error.

Locks are those of ``flock``, which the system releases with the process that holds them:

- ``lock`` in a data set's folder is held in common by all who use it; to remove the folder one must hold it alone;
- ``write`` above all data sets is held by the one process that adds something, or makes room for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from autotimm.config.byte_size import written_bytes
from autotimm.data.file_facts import Stamp

try:
    import fcntl
except ImportError:  # Windows has no locks that end with a process
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LOCKS", "Decoded", "PixelStore", "bytes_by_name", "clear", "free_bytes", "held_in_common", "own_folder",
    "removed_if_unused",
]  # fmt: skip

LOCKS = fcntl is not None
"""Whether this system has the locks that a store needs."""

_MAGIC = b"pixels\0\1"  # the last byte counts versions of the format, together with `_INDEX`
_HEAD = struct.Struct("<8s32s3II")  # magic, key, height, width, channels, checksum
_ALIGNED = 64  # bytes: where a head begins, and how long it is
_PIXELS, _INDEX, _LOCK, _WRITE = "pixels", "index.sqlite3", "lock", "write"
_MOST = 256 * 2**20  # bytes of a picture that is kept: larger ones would be held twice while they are written
_PER_ROW = 512  # bytes that the index may grow by for each picture
_LEAST_FREE, _LEAST_SHARE = 10**9, 0.05  # bytes, or this share of a disk, that others can always write
_PATIENCE, _PAUSE = 1.0, 20.0  # seconds to wait for another process, and to do without if it may have been stopped
_ATTEMPTS = 5
_Pixels = NDArray[np.uint8]
_Result = TypeVar("_Result")


class Decoded(NamedTuple):
    """A picture to be kept.

    Attributes:
        stamp: That of its file, which has not changed while it was read.
        digest: SHA-256 of the file.
        key: 32 bytes that stand for the digest and for everything else that decides the pixels.
        pixels: ``uint8`` (H, W, C) in its own memory; ``None`` if only the stamp is new.
    """

    stamp: Stamp
    digest: bytes
    key: bytes
    pixels: _Pixels | None


class _Handles(NamedTuple):
    """What a process has open."""

    lock: FileIO
    data: FileIO
    rows: sqlite3.Connection


class PixelStore:
    """The pictures of one data set, within a folder that other data sets share.

    It can be handed to another process, by a fork or pickled: each opens the files for itself. Whatever goes wrong with
    them, nothing is found, and nothing is kept.

    Args:
        home: The folder of all data sets.
        name: That of this one.
        limit: The number of bytes that all of them may take.

    Attributes:
        trouble: Why nothing is added any more; empty while something may be.
    """

    def __init__(self, home: Path, name: str, limit: int) -> None:
        self.home, self.name, self.limit = home, name, limit
        self._forget()

    def __getstate__(self) -> tuple[Path, str, int]:
        return self.home, self.name, self.limit

    def __setstate__(self, state: tuple[Path, str, int]) -> None:
        self.home, self.name, self.limit = state
        self._forget()

    def __del__(self) -> None:
        if self._pid == os.getpid():
            self._close()
        else:
            _INHERITED.append(self._opened)

    def _forget(self) -> None:
        self.trouble, self._is_broken = "", False
        self._pid, self._mutex, self._not_before = os.getpid(), threading.Lock(), 0.0
        self._opened: _Handles | None = None

    def _use(self, use: Callable[[_Handles], _Result], otherwise: _Result) -> _Result:
        """Use the files of this process, one thread at a time."""
        if self._pid != os.getpid():
            _INHERITED.append(self._opened)  # closing a connection of the parent could disturb the parent
            self._forget()
        with self._mutex:
            if self._is_broken or time.monotonic() < self._not_before:
                return otherwise
            try:
                if self._opened is None:
                    self._opened = _open(self.home, self.name)
                return use(self._opened)
            except sqlite3.OperationalError:  # another process has locked the index for long
                self._not_before = time.monotonic() + _PAUSE
            except (OSError, sqlite3.Error) as error:
                self.trouble, self._is_broken = _reason(error), True
                self._close()
            return otherwise

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            for part in (opened.rows, opened.data, opened.lock):
                with suppress(OSError, sqlite3.Error):
                    part.close()

    def close(self) -> None:
        """Close the files, so that other processes may remove them; the next use opens them again."""
        with self._mutex:
            if self._pid == os.getpid():
                self._close()

    def digest(self, stamp: Stamp) -> bytes | None:
        """The digest that a file with a stamp had; ``None`` if that is not known."""
        where = " and ".join(f"{field} = ?" for field in Stamp._fields)
        row = self._use(
            lambda opened: opened.rows.execute(f"select digest from files where {where}", stamp).fetchone(), None
        )
        return row[0] if row is not None and isinstance(row[0], bytes) else None

    def picture(self, key: bytes) -> _Pixels | None:
        """A picture, in memory of its own; ``None`` if it is not there as it was written."""
        return self._use(lambda opened: _read(opened, key), None)

    def add(self, pictures: Sequence[Decoded]) -> None:
        """Keep pictures, as far as there is room; those that another process has kept meanwhile are not kept again."""
        if pictures and not self.trouble:
            self._use(lambda opened: self._add(opened, pictures), None)

    def _add(self, opened: _Handles, pictures: Sequence[Decoded]) -> None:
        with _alone(self.home / _WRITE) as is_alone:
            if is_alone:
                self._append(opened, pictures)
            else:
                self._not_before = time.monotonic() + _PAUSE

    def _append(self, opened: _Handles, pictures: Sequence[Decoded]) -> None:
        end = os.fstat(opened.data.fileno()).st_size
        try:
            self._append_from(-(-end // _ALIGNED) * _ALIGNED, opened, pictures)
        except (OSError, sqlite3.Error) as error:  # most often the disk is full; what was kept before can be read
            self.trouble = _reason(error)
            with suppress(OSError):
                opened.data.truncate(end)

    def _append_from(self, start: int, opened: _Handles, pictures: Sequence[Decoded]) -> None:
        places: dict[bytes, tuple[bytes, int, int]] = {}
        room = self._room(sum(_size(each.pixels) for each in pictures))
        for _, _, key, pixels in pictures:
            if pixels is None or key in places or pixels.nbytes > _MOST or _read(opened, key) is not None:
                continue
            if (room := room - _size(pixels)) < 0:
                self.trouble = f"the limit of {written_bytes(self.limit)}, or that of the disk, is reached"
                break
            _write(opened.data, start, _head(key, pixels))
            _write(opened.data, start + _ALIGNED, pixels.data.cast("B"))
            places[key] = key, start, pixels.nbytes
            start += _ALIGNED - (-pixels.nbytes // _ALIGNED) * _ALIGNED
        marks = ", ".join("?" * (len(Stamp._fields) + 1))
        opened.rows.execute("begin immediate")
        with opened.rows:
            opened.rows.executemany("insert or replace into pictures values (?, ?, ?)", places.values())
            opened.rows.executemany(
                f"insert or replace into files values ({marks})", [(*each.stamp, each.digest) for each in pictures]
            )

    def _room(self, wanted: int) -> int:
        """How many bytes may be added; removes data sets that nobody uses if that makes enough room."""
        sizes = bytes_by_name(self.home)
        room = min(self.limit - sum(sizes.values()), free_bytes(self.home))
        for name in sorted(sizes.keys() - {self.name}, key=lambda name: _last_use(self.home / name)):
            if room >= wanted:
                break
            if removed_if_unused(self.home / name):
                room += sizes[name]
        return room


_INHERITED: list[_Handles | None] = []
"""What a parent process had open: neither used here nor closed."""


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()


def _size(pixels: _Pixels | None) -> int:
    """The bytes that a picture takes in its file and in the index."""
    return _PER_ROW if pixels is None else pixels.nbytes + 2 * _ALIGNED + _PER_ROW


def _head(key: bytes, pixels: _Pixels) -> bytes:
    height, width, channels = pixels.shape
    return _HEAD.pack(_MAGIC, key, height, width, channels, _checksum(key, pixels)).ljust(_ALIGNED, b"\0")


def _checksum(key: bytes, pixels: _Pixels) -> int:
    return zlib.crc32(pixels.data.cast("B"), zlib.crc32(repr((key, pixels.shape)).encode()))


def _write(file: FileIO, position: int, content: bytes | memoryview) -> None:
    file.seek(position)
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _read(opened: _Handles, key: bytes) -> _Pixels | None:
    row = opened.rows.execute("select start, length from pictures where key = ?", (key,)).fetchone()
    if row is None:
        return None
    start, length = row
    if not (isinstance(start, int) and isinstance(length, int) and start >= 0 and 0 < length <= _MOST):
        return None
    if start + _ALIGNED + length > os.fstat(opened.data.fileno()).st_size:
        return None
    content = np.empty(_ALIGNED + length, np.uint8)
    opened.data.seek(start)
    if opened.data.readinto(content.data) != len(content):
        return None
    magic, named, height, width, channels, checksum = _HEAD.unpack_from(content.data)
    if (magic, named, height * width * channels) != (_MAGIC, key, length):
        return None
    pixels = content[_ALIGNED:].reshape(height, width, channels)
    return pixels if _checksum(key, pixels) == checksum else None


def _open(home: Path, name: str) -> _Handles:
    """Open the files of a data set, and make those that are not there.

    Raises:
        OSError: If that is not possible.
        sqlite3.Error: If the index cannot be used.
    """
    own_folder(home)
    folder = home / name
    lock = held_in_common(folder)
    try:
        os.utime(folder / _LOCK)
        return _files(folder, lock)
    except sqlite3.OperationalError:
        lock.close()
        raise
    except sqlite3.DatabaseError:  # it is no index
        try:
            # Under another process a file must not be removed: SQLite would mix up the old one and a new one.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _empty(folder)
            fcntl.flock(lock, fcntl.LOCK_SH)
            return _files(folder, lock)
        except BaseException:
            lock.close()
            raise
    except BaseException:
        lock.close()
        raise


def held_in_common(folder: Path) -> FileIO:
    """Hold the lock of a folder in common with others, until the file is closed; nobody removes the folder then.

    Raises:
        OSError: If that is not possible.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PATIENCE / _ATTEMPTS)
        with suppress(FileNotFoundError, BlockingIOError):
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = _private(folder / _LOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if _is_at(lock, folder / _LOCK):
                    return lock
            except OSError:
                lock.close()
                raise
            lock.close()
    raise OSError(f"{folder} is being removed")


def _is_at(file: FileIO, path: Path) -> bool:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


def _files(folder: Path, lock: FileIO) -> _Handles:
    data = _private(folder / _PIXELS)
    _private(folder / _INDEX).close()
    index = sqlite3.connect(folder / _INDEX, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        index.execute("pragma journal_mode = truncate")
        index.execute("pragma synchronous = normal")
        others = ", ".join(f"{field} integer" for field in Stamp._fields[1:])
        index.execute(f"create table if not exists files (path blob primary key, {others}, digest blob)")
        index.execute("create table if not exists pictures (key blob primary key, start integer, length integer)")
    except BaseException:
        index.close()
        data.close()
        raise
    return _Handles(lock, data, index)


def _private(path: Path) -> FileIO:
    """Open a file to read and write, and make it for this user alone if it is not there."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+")


def own_folder(folder: Path) -> None:
    """Make a folder that nobody else can read or write: whoever writes there decides what is trained on.

    Raises:
        OSError: If it is somebody else's, or no folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise OSError(f"{folder} is not a folder of this user's own")
    if stat.S_IMODE(info.st_mode) != 0o700:
        folder.chmod(0o700)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock alone; ``False`` if another process does so for too long: it may have been stopped."""
    with closing(_private(path)) as file:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    yield False
                    return
                time.sleep(0.002)
            else:
                yield True  # closing the file releases the lock
                return


def bytes_by_name(home: Path) -> dict[str, int]:
    """The bytes that each data set of a folder takes; nothing if there is no such folder."""
    sizes: dict[str, int] = {}
    for name in os.listdir(home) if home.is_dir() else ():
        with suppress(OSError):  # it is no folder, or is being removed
            sizes[name] = sum(entry.stat().st_size for entry in os.scandir(home / name))
    return sizes


def free_bytes(folder: Path) -> int:
    """The bytes that may be written to the disk of a folder; the last 5 % of it, or 1 GB, are left to others."""
    info = os.statvfs(folder)
    return max(0, info.f_frsize * info.f_bavail - min(_LEAST_FREE, round(_LEAST_SHARE * info.f_frsize * info.f_blocks)))


def _last_use(folder: Path) -> float:
    try:
        return (folder / _LOCK).stat().st_mtime
    except OSError:
        return 0.0


def removed_if_unused(folder: Path) -> bool:
    """Remove a folder with all that it holds unless somebody holds its lock; whether it is gone."""
    try:
        with closing(_private(folder / _LOCK)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(lock, folder / _LOCK):  # removed, and perhaps made again, since it was opened
                return False
            _empty(folder)
            shutil.rmtree(folder)
        return True
    except OSError:
        return False


def _empty(folder: Path) -> None:
    """Remove the files of a data set, whose lock is held alone: a journal first, which would spoil another index."""
    for name in (f"{_INDEX}-journal", _INDEX, _PIXELS):
        (folder / name).unlink(missing_ok=True)


def clear(home: Path) -> list[str]:
    """Remove all data sets of a folder, and return the names of those that are in use and stay."""
    return [name for name in sorted(bytes_by_name(home)) if not (LOCKS and removed_if_unused(home / name))]
