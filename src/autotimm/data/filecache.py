"""What is remembered of files between runs, by path, size and time of change; and a bar while they are read."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

__all__ = ["Stamp", "cache_file", "stamp", "use_cache", "with_progress"]

_PATIENCE = 2.0  # seconds without a word
_Result = TypeVar("_Result")


class Stamp(NamedTuple):
    """What tells whether a file is still the one that was read."""

    path: bytes
    size: int
    mtime_ns: int


def cache_file(name: str) -> Path:
    """Where something is remembered: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "autotimm" / f"{name}.sqlite3"


def use_cache(name: str, table: str, use: Callable[[sqlite3.Connection], _Result], otherwise: _Result) -> _Result:
    """Do something with a cache; where it cannot be used, nobody must hear about it.

    A file that is damaged is removed, to be made again; one that is locked or cannot be written is left alone.

    Args:
        name: The cache.
        table: The statement that makes its table if it is not there.
        use: What to do with the connection, in one transaction.
        otherwise: What to return if the cache cannot be used.
    """
    path = cache_file(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=1.0)) as connection, connection:
            connection.execute("pragma synchronous=off")  # a cache that is lost with the power is made again
            connection.execute(table)
            return use(connection)
    except sqlite3.OperationalError:
        return otherwise
    except sqlite3.DatabaseError:
        with suppress(OSError):
            path.unlink()
        return otherwise
    except OSError:
        return otherwise


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file, ``None`` if there is no such file."""
    try:
        info = path.stat()
    except OSError:
        return None
    return Stamp(os.fsencode(os.path.abspath(path)), info.st_size, info.st_mtime_ns)


def with_progress(results: Iterator[_Result], total: int, wanted: bool, what: str) -> Iterator[_Result]:
    """Pass results on; once it has taken long, and somebody may be watching, show how far it is."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    started, shown = time.monotonic(), False
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(what, total=total)
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
