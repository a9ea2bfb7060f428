"""Decoded pictures that are kept from one epoch, run or process to the next: the same pixels, without decoding.

What :func:`autotimm.data.image_channels.read_as` returns is kept, nothing before and nothing after: a picture has the
same bits with a cache and without. It is kept by the content of its file and by all that decides how a file becomes
pixels: channels, orientation, scale, and the versions of the decoders.

A file is recognized by its stamp. One that was changed, replaced or only touched since its digest was taken is read
again, and so is every file that changed less than three seconds ago.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

import autotimm
from autotimm.config.byte_size import written_bytes
from autotimm.data.file_facts import Stamp, user_cache
from autotimm.data.image_channels import read_as
from autotimm.data.image_reading import ARRAY_SUFFIX, ImageReading
from autotimm.data.pixel_store import (
    LOCKS,
    Decoded,
    PixelStore,
    bytes_by_name,
    free_bytes,
    held_in_common,
    own_folder,
    removed_if_unused,
)  # fmt: skip
from autotimm.errors import DataError
from autotimm.records.bit_factors import PIXEL_FACTORS, Place
from autotimm.records.digest import file_digest

__all__ = ["Opened", "PixelCache", "cache_folder", "open_cache"]

_RULES = 1  # raised with every change of our own code that gives a file other pixels
_PENDING = 64 * 2**20  # bytes of pictures that wait to be written together
_SHARE = 0.1  # of what would be free without it: what `auto` fills of a disk
_SHARE_OF_MEMORY = 0.5  # of the available memory: what `ram` fills, and what the system keeps of files that it has read
_DISK, _MEMORY = 500e6, 5e9  # bytes per second that are read from a disk, and from memory
_WORTH = 2.0  # times faster than decoding: what reading back must be for `auto`
_SAMPLED = 16  # pictures that `auto` decodes to estimate size and time
_RAM = Path("/dev/shm")


class PixelCache:
    """Reads image files, and keeps the pictures in a :class:`autotimm.data.pixel_store.PixelStore`.

    It may be handed to other processes, see there.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: PixelStore) -> None:
        self.store = store
        self._forget()

    def __getstate__(self) -> PixelStore:
        return self.store

    def __setstate__(self, store: PixelStore) -> None:
        self.store = store
        self._forget()

    def _forget(self) -> None:
        self._pid, self._bytes, self._has_warned = os.getpid(), 0, False
        self._pending: list[Decoded] = []

    def read(self, path: str | Path, reading: ImageReading) -> tv_tensors.Image:
        """Read a file as :func:`autotimm.data.image_channels.read_as` does, from what is kept if it is there.

        Raises:
            DataError: If it cannot be read, or has another number of channels.
        """
        if self._pid != os.getpid():
            self._forget()  # the parent keeps what it has decoded
        stamp = _usable_stamp(path)
        if stamp is None:
            return read_as(path, reading)
        if (digest := self.store.digest(stamp)) is not None:
            pixels = self.store.picture(_key(digest, reading))
            return self._decoded(path, reading, stamp, digest) if pixels is None else _image(pixels)
        try:
            digest = bytes.fromhex(file_digest(path))
        except OSError:
            return read_as(path, reading)  # which says what is wrong
        # The stamp is new, but the same file may have been decoded in another place.
        pixels = self.store.picture(_key(digest, reading))
        if pixels is None:
            return self._decoded(path, reading, stamp, digest)
        self._keep(path, Decoded(stamp, digest, _key(digest, reading), None))
        return _image(pixels)

    def _decoded(self, path: str | Path, reading: ImageReading, stamp: Stamp, digest: bytes) -> tv_tensors.Image:
        """Decode a file, and keep its picture."""
        image = read_as(path, reading)
        # A copy, since a transform may change the image before it is written.
        pixels = np.array(image.permute(1, 2, 0).numpy(), order="C")
        self._keep(path, Decoded(stamp, digest, _key(digest, reading), pixels))
        return image

    def _keep(self, path: str | Path, picture: Decoded) -> None:
        """Keep a picture until it is written, unless its file has changed since its stamp was taken."""
        if self.store.trouble or Stamp.of(Path(path)) != picture.stamp:
            return
        self._pending.append(picture)
        self._bytes += 0 if picture.pixels is None else picture.pixels.nbytes
        if self._bytes > _PENDING:
            self.flush()

    def flush(self) -> None:
        """Write what has been decoded since the last time; called once per batch."""
        if self._pid != os.getpid():
            return
        if self._pending:
            pending, self._pending, self._bytes = self._pending, [], 0
            self.store.add(pending)
        if self.store.trouble and not self._has_warned:
            self._has_warned = True
            if (worker := get_worker_info()) is None or worker.id == 0:  # once, and not by each loading process
                warnings.warn(
                    f"No more decoded pictures are kept: {self.store.trouble}. The training goes on without.",
                    stacklevel=2,
                )


def _usable_stamp(path: str | Path) -> Stamp | None:
    """The stamp by which a file is looked up; ``None`` if it is to be read without the cache."""
    if os.path.splitext(path)[1].lower() == ARRAY_SUFFIX:  # as good as decoded
        return None
    now = time.time_ns()  # before the stamp: a change after it is a later one
    stamp = Stamp.of(Path(path))
    # A file whose picture is kept may be unreadable for this user.
    is_usable = stamp is not None and stamp.is_settled(now) and os.access(path, os.R_OK)
    return stamp if is_usable else None


def _image(pixels: np.ndarray) -> tv_tensors.Image:
    """As :func:`autotimm.data.image_io.to_tensor` lays it out in memory: channels last."""
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def _key(digest: bytes, reading: ImageReading) -> bytes:
    return hashlib.sha256(digest + _recipe(reading)).digest()


@functools.lru_cache(maxsize=64)
def _recipe(reading: ImageReading) -> bytes:
    """All that decides the pixels of a file beside its content."""
    return repr((tuple(reading), _versions())).encode()


@functools.cache
def _versions() -> tuple[str, ...]:
    """The versions of all that takes part in decoding."""
    own = (f"rules {_RULES}", f"autotimm {autotimm.__version__}", platform.machine())
    here = Place(1, ())  # on the CPU, with any number of threads
    return *own, *(f"{factor.name} {factor.read(here)}" for factor in PIXEL_FACTORS)


class Opened(NamedTuple):
    """What became of the option ``cache``.

    Attributes:
        cache: The cache; ``None`` if there is none.
        line: What was decided and why, for people; empty if nobody asked for a cache.
    """

    cache: PixelCache | None
    line: str


def cache_folder() -> Path:
    """The folder of decoded pictures on disk, within the user's cache folder."""
    return user_cache() / "pixels"


def open_cache(mode: str, size: int, files: Sequence[Path], reading: ImageReading) -> Opened:
    """Open the cache of a data set.

    Args:
        mode: ``off``, ``disk``, ``ram`` or ``auto``.
        size: The number of bytes that all data sets may take together.
        files: The image files of the data set.
        reading: How images are read for training.
    """
    if mode != "ram":
        _sweep()
    if mode == "off":
        return Opened(None, "")
    if not LOCKS or not files:
        why = "the images are no files" if LOCKS else "this system has no locks that end with a process"
        return Opened(None, f"cache: off, since {why}")
    try:
        return {"disk": _on_disk, "ram": _in_memory, "auto": _automatic}[mode](size, files, reading)
    except OSError as error:
        return Opened(None, f"cache: off, since {error.strerror or error}")


def _on_disk(size: int, files: Sequence[Path], reading: ImageReading) -> Opened:
    home = cache_folder()
    own_folder(home)
    cache = PixelCache(PixelStore(home, _name(files), size))
    return Opened(cache, f"cache: disk, {_filled(home, size)} in {home}")


def _in_memory(size: int, files: Sequence[Path], reading: ImageReading) -> Opened:
    home = _ram_folder()
    _hold(home)
    limit = min(size, _used(home) + round(_SHARE_OF_MEMORY * _available_memory(home)))
    cache = PixelCache(PixelStore(home, _name(files), limit))
    return Opened(cache, f"cache: ram, {_filled(home, limit)} in {home} until the program ends")


def _automatic(size: int, files: Sequence[Path], reading: ImageReading) -> Opened:
    """A cache on disk if all pictures fit in, and reading them back is clearly faster than decoding."""
    home = cache_folder()
    own_folder(home)
    store = PixelStore(home, _name(files), size)
    limit = min(size, round(_SHARE * (free_bytes(home) + _used(home))))
    needed, seconds = _estimated(files, reading)
    bytes_each = needed / len(files)
    # Where all of them fit into memory, the system reads them from the disk once.
    fits_memory = needed <= _SHARE_OF_MEMORY * _available_memory(home)
    seconds_back = bytes_each / (_MEMORY if fits_memory else _DISK)
    decoding = f"decoding takes {seconds * 1e3:.1f} ms per image"
    if needed > limit:
        why = f"{written_bytes(needed)} are needed, and {written_bytes(limit)} is what it may take of the disk"
        return Opened(None, f"cache: off (auto: {why})")
    if seconds < _WORTH * seconds_back:
        why = f"{decoding}, and reading {written_bytes(bytes_each)} back takes {seconds_back * 1e3:.1f} ms"
        return Opened(None, f"cache: off (auto: {why})")
    store.limit = limit
    own = bytes_by_name(home).get(store.name, 0)
    line = f"cache: disk, about {written_bytes(needed)} in {home}, of which {written_bytes(own)} are there"
    return Opened(PixelCache(store), f"{line} (auto: {decoding})")


def _filled(home: Path, limit: int) -> str:
    return f"{written_bytes(_used(home))} of at most {written_bytes(limit)}"


def _used(home: Path) -> int:
    return sum(bytes_by_name(home).values())


def _ram_folder() -> Path:
    """A folder in memory, or the temporary folder where there is none: one per user, for all runs at the same time."""
    place = _RAM if os.access(_RAM, os.W_OK) else Path(tempfile.gettempdir())
    return place / f"autotimm-pixels-{os.getuid()}"


_HELD: dict[Path, FileIO] = {}
"""The locks on folders in memory that this process holds until it ends."""


def _hold(home: Path) -> None:
    own_folder(home)
    if home not in _HELD:
        _HELD[home] = held_in_common(home)
        atexit.register(_release, home, os.getpid())


def _release(home: Path, pid: int) -> None:
    """Let a folder in memory go, and remove it if no other program uses it."""
    if pid == os.getpid() and home in _HELD:  # not in a copy of the process
        _HELD.pop(home).close()
        removed_if_unused(home)


def _sweep() -> None:
    """Remove what a program that was killed has left in memory."""
    if LOCKS and (home := _ram_folder()).is_dir():
        with suppress(OSError):
            own_folder(home)
            removed_if_unused(home)


def _name(files: Sequence[Path]) -> str:
    """The name of a data set: where all its files are, and what decodes them; what another version left is not used."""
    place = os.fsencode(os.path.commonpath([os.path.abspath(path) for path in files]))
    return hashlib.sha256(place + b"\0" + repr(_versions()).encode()).hexdigest()[:16]


def _estimated(files: Sequence[Path], reading: ImageReading) -> tuple[float, float]:
    """The bytes of all decoded pictures, and the seconds that it takes to decode one, from some of them."""
    sampled = files
    if len(files) > _SAMPLED:  # evenly, since images of one folder are alike
        sampled = [files[index * len(files) // _SAMPLED] for index in range(_SAMPLED)]
    total, decoded = 0, 0
    started = time.thread_time()  # other threads and processes do not count
    for path in sampled:
        with suppress(DataError):
            total += read_as(path, reading).nbytes
            decoded += 1
    decoded = max(decoded, 1)
    return total / decoded * len(files), (time.thread_time() - started) / decoded


def _available_memory(home: Path) -> int:
    """The bytes of memory that this process and the files of a folder in memory may still take."""
    free = [free_bytes(home)] if _RAM in home.parents else []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # of a container
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(free, default=0), 0)
