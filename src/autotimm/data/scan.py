"""Finding unreadable images before training does: every file is decoded once, and remembered."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import PIL
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from autotimm.data.read import BROKEN, read_rgb, reason

__all__ = ["Problem", "cache_file", "scan"]

_PATIENCE = 2.0  # seconds without a word
_BLOCK = 2048  # files per round: bounds memory, and what an interruption loses
# A release of Pillow may read what an older one could not, and the other way round.
_RULES = f"1 {PIL.__version__}"


class Problem(NamedTuple):
    """A file that cannot be used.

    Attributes:
        path: The file.
        reason: Why, in a few words.
    """

    path: Path
    reason: str


class _Stamp(NamedTuple):
    path: bytes
    size: int
    mtime_ns: int


def cache_file() -> Path:
    """Where the checked files are remembered: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "autotimm" / "readable.sqlite3"


def _connect() -> sqlite3.Connection:
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=1.0)
    connection.execute(
        "create table if not exists readable (path blob primary key, size integer, mtime_ns integer, rules text)"
    )
    return connection


def _remembered(stamps: Sequence[_Stamp]) -> set[_Stamp]:
    """Those of the files that were once read whole and have not changed. Nothing if the cache cannot be used."""
    found: set[_Stamp] = set()
    try:
        with closing(_connect()) as connection:
            for first in range(0, len(stamps), 500):
                block = [stamp.path for stamp in stamps[first : first + 500]]
                marks = ",".join("?" * len(block))
                rows = connection.execute(
                    f"select path, size, mtime_ns from readable where rules = ? and path in ({marks})", [_RULES, *block]
                )
                found.update(_Stamp(*row) for row in rows)
    except (OSError, sqlite3.Error):  # unwritable or broken: no cache, and nothing that a user must hear about
        return set()
    return found


def _remember(stamps: Sequence[_Stamp]) -> None:
    """Note files that were read whole. Broken ones are looked at again each time: a cure may not change the file."""
    try:
        with closing(_connect()) as connection, connection:
            connection.executemany(
                "insert or replace into readable values (?, ?, ?, ?)", [(*stamp, _RULES) for stamp in stamps]
            )
    except (OSError, sqlite3.Error):
        return


def _stamp(path: Path) -> _Stamp | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return _Stamp(os.fsencode(os.path.abspath(path)), info.st_size, info.st_mtime_ns)


def _try(path: Path) -> Problem | None:
    try:
        read_rgb(path)
    except BROKEN as error:
        return Problem(path, reason(path, error))
    return None


def _with_progress(results: Iterator[Problem | None], total: int, wanted: bool) -> Iterator[Problem | None]:
    """Pass results on; once it has taken long, and somebody may be watching, show how far it is."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    started, shown = time.monotonic(), False
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task("checking images", total=total)
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
    stamps = {path: _stamp(path) for path in dict.fromkeys(files)}
    known = _remembered([stamp for stamp in stamps.values() if stamp])
    # Permissions can change without a trace in size and time.
    todo = [path for path, stamp in stamps.items() if stamp not in known or not os.access(path, os.R_OK)]
    problems = [found for found in _with_progress(_decode(todo), len(todo), progress) if found]
    bad = {problem.path for problem in problems}
    if good := [stamp for path in todo if path not in bad and (stamp := stamps[path])]:
        _remember(good)
    return problems
