"""Atomic writing: a file has either its old content or its new one, never a part of it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "link_or_copy", "sweep", "write_text"]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]+\.tmp")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it is synced and renamed, on failure removed.

    A reader therefore never sees a partial file, and after a crash or with a full disk the old file is still there.
    """
    path = Path(path)
    # A name that nobody can know before: in a folder of somebody else it could be a link to a file of the user.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: str | Path) -> None:
    """Remove the temporary files of processes that were killed while writing; call it while no other can write."""
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for path in left:
        Path(path).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8 with the same line ends on every system."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode())


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
