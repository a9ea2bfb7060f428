"""Finding unreadable images before training does: every file is decoded once, and remembered."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL

from autotimm.data.filecache import Stamp, stamp, use_cache, with_progress
from autotimm.data.read import BROKEN, read_rgb, reason

__all__ = ["Problem", "scan"]

_BLOCK = 2048  # files per round: bounds memory, and what an interruption loses
# A release of Pillow may read what an older one could not, and the other way round.
_RULES = f"1 {PIL.__version__}"
_TABLE = "create table if not exists readable (path blob primary key, size integer, mtime_ns integer, rules text)"


class Problem(NamedTuple):
    """A file that cannot be used.

    Attributes:
        path: The file.
        reason: Why, in a few words.
    """

    path: Path
    reason: str


def _remembered(stamps: Sequence[Stamp]) -> set[Stamp]:
    """Those of the files that were once read whole and have not changed. Nothing if the cache cannot be used."""

    def look(connection: sqlite3.Connection) -> set[Stamp]:
        found: set[Stamp] = set()
        for first in range(0, len(stamps), 500):
            block = [one.path for one in stamps[first : first + 500]]
            marks = ",".join("?" * len(block))
            rows = connection.execute(
                f"select path, size, mtime_ns from readable where rules = ? and path in ({marks})", [_RULES, *block]
            )
            found.update(Stamp(*row) for row in rows)
        return found

    return use_cache("readable", _TABLE, look, set())


def _remember(stamps: Sequence[Stamp]) -> None:
    """Note files that were read whole. Broken ones are looked at again each time: a cure may not change the file."""
    rows = [(*one, _RULES) for one in stamps]
    statement = "insert or replace into readable values (?, ?, ?, ?)"
    use_cache("readable", _TABLE, lambda connection: connection.executemany(statement, rows), None)


def _try(path: Path) -> Problem | None:
    try:
        read_rgb(path)
    except BROKEN as error:
        return Problem(path, reason(path, error))
    return None


def _decode(paths: Sequence[Path]) -> Iterator[Problem | None]:
    workers = min(os.cpu_count() or 1, 16)  # decoding releases the interpreter's lock
    pool = ThreadPoolExecutor(workers, thread_name_prefix="scan")
    try:
        for first in range(0, len(paths), _BLOCK):
            yield from pool.map(_try, paths[first : first + _BLOCK])
    finally:
        pool.shutdown(cancel_futures=True)


def scan(files: Sequence[Path], progress: bool = True) -> list[Problem]:
    """Decode every file completely and list those that fail.

    A file that was read whole before and still has its size and time of change is not read again. A progress bar
    appears on a terminal if it takes more than 2 seconds.

    Args:
        files: The files; one that is listed twice is read once.
        progress: Whether a bar may appear.

    Returns:
        The problems, in the order of ``files``.
    """
    stamps = {path: stamp(path) for path in dict.fromkeys(files)}
    known = _remembered([one for one in stamps.values() if one])
    # Permissions can change without a trace in size and time.
    todo = [path for path, one in stamps.items() if one not in known or not os.access(path, os.R_OK)]
    problems = [found for found in with_progress(_decode(todo), len(todo), progress, "checking images") if found]
    bad = {problem.path for problem in problems}
    if good := [one for path in todo if path not in bad and (one := stamps[path])]:
        _remember(good)
    return problems
