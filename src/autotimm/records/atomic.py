"""Atomic writing: a file has either its old content or its new one, never a part of it; nothing into a sealed run."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotimm.errors import UsageError

__all__ = ["SEAL", "SIGNATURE", "atomic_path", "link_or_copy", "refuse_sealed", "sealed_folder", "sweep", "write_text"]

SEAL = "seal.json"
"""The file that seals a run folder: the SHA-256 of all others, see :mod:`autotimm.records.run_seal`."""

SIGNATURE = "model.sig"
"""The signature of a sealed run folder."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]+\.tmp")
_OF_RUN = ("config.yaml", "manifest.json", "checkpoints")
_DEEP = 4  # a file of a run lies at most this many folders below it


def sealed_folder(path: str | Path) -> Path | None:
    """The sealed run folder that a path is or lies in; ``None`` if there is none."""
    path = Path(path).absolute()
    for folder in (path, *path.parents[:_DEEP]):
        if all(any(os.path.lexists(folder / name) for name in names) for names in ((SEAL, SIGNATURE), _OF_RUN)):
            return folder
    return None


def refuse_sealed(path: str | Path, cure: str = "Write elsewhere, or work on a copy without its seal.") -> None:
    """Refuse to write to a path in a sealed run.

    Args:
        path: A file or folder that would be written.
        cure: What to do instead, as a sentence.

    Raises:
        UsageError: If it lies in a sealed run.
    """
    if (folder := sealed_folder(path)) is not None:
        raise UsageError(
            f"The run {folder} must stay as it is. It is sealed, and nothing may be written into it. {cure}"
        )


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it is synced and renamed, on failure removed.

    A reader therefore never sees a partial file, and after a crash or with a full disk the old file is still there.

    Raises:
        UsageError: If it lies in a sealed run.
    """
    path = Path(path)
    refuse_sealed(path)
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
