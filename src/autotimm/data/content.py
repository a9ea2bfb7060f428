"""The content of a data set: a digest per sample, so that a change of one pixel shows, and in which file.

A file is read once for its digest and remembered with its size and time of change.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autotimm.data.filecache import Stamp, stamp, use_cache, with_progress
from autotimm.data.formats.walk import some
from autotimm.data.table import Table
from autotimm.repro.digest import file_digest, state_digest
from autotimm.repro.streams import scope

__all__ = ["Content", "content", "seen_in_training"]

_TABLE = "create table if not exists digests (path blob primary key, size integer, mtime_ns integer, sha256 text)"


class Content(dict[str, str]):
    """SHA-256 of every sample by id, in byte order of the ids.

    That of the image file; with boxes and masks, which lie in other files, of its digest and theirs; and of image and
    target where samples are not files.
    """

    @property
    def digest(self) -> str:
        """One digest of them all."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in self.items())
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()

    def changed(self, now: Content) -> list[str]:
        """What is different ``now``, a line per sample: changed, missing or new.

        Example:
            >>> Content(a="1", b="2").changed(Content(a="1", b="3", c="4"))
            ['changed: b', 'new: c']
        """
        names = sorted({*self, *now}, key=lambda name: name.encode("utf-8", "surrogatepass"))
        return [
            f"{'new' if name not in self else 'missing' if name not in now else 'changed'}: {name}"
            for name in names
            if self.get(name) != now.get(name)
        ]


def content(tables: Sequence[Table], progress: bool = True) -> Content:
    """Digest all samples of some tables: files in parallel, with a bar if it takes long.

    Args:
        tables: The tables; their ids are taken together.
        progress: Whether a bar may appear.
    """
    found: dict[str, str] = {}
    for table in tables:
        files = table.files()
        digests = _with_targets(table, _digests(files, progress)) if files else _samples(table)
        found |= zip(table.ids, digests, strict=True)
    return Content({name: found[name] for name in sorted(found, key=lambda one: one.encode("utf-8", "surrogatepass"))})


def seen_in_training(trained: Mapping[str, str], measured: Mapping[str, str], what: str) -> list[str]:
    """Say which samples that a model is measured on were trained on too, byte for byte; no line if none was.

    Args:
        trained: Digests of the training samples by id, as :class:`Content` has them.
        measured: Those of the others.
        what: What the others are called, such as ``"test images"``.

    Example:
        >>> seen_in_training({"train/a": "1", "train/b": "2"}, {"test/c": "2", "test/d": "3"}, "test images")
        ['1 of 2 test images were trained on too, so that models look too good there: test/c (train/b).']
    """
    origin = {digest: name for name, digest in trained.items()}
    both = [f"{name} ({origin[digest]})" for name, digest in measured.items() if digest in origin]
    if not both:
        return []
    return [
        f"{len(both)} of {len(measured)} {what} were trained on too, so that models look too good there: {some(both)}."
    ]


def _with_targets(table: Table, images: Sequence[str]) -> Iterator[str]:
    for index, image in enumerate(images):
        target = table.target_digest(index)
        yield hashlib.sha256(f"{image} {target}".encode()).hexdigest() if target else image


def _samples(table: Table) -> Iterator[str]:
    for index, name in enumerate(table.ids):
        with scope(0, "content", name):  # a table of the caller's own may draw while it loads
            sample = table.load(index)
        yield state_digest({"image": sample.image, "target": sample.target})


def _digests(files: Sequence[Path], progress: bool) -> list[str]:
    stamps = {path: stamp(path) for path in dict.fromkeys(files)}
    known = _remembered([one for one in stamps.values() if one])
    found = {path: known[one] for path, one in stamps.items() if one and one in known}
    todo = [path for path in stamps if path not in found]
    with ThreadPoolExecutor(8, thread_name_prefix="digest") as pool:  # hashing releases the interpreter's lock
        digests = with_progress(pool.map(file_digest, todo), len(todo), progress, "reading images")
        fresh = dict(zip(todo, digests, strict=True))
    _remember([(one, digest) for path, digest in fresh.items() if (one := stamps[path])])
    found |= fresh
    return [found[path] for path in files]


def _remembered(stamps: Sequence[Stamp]) -> dict[Stamp, str]:
    def look(connection: sqlite3.Connection) -> dict[Stamp, str]:
        found: dict[Stamp, str] = {}
        for first in range(0, len(stamps), 500):
            block = [one.path for one in stamps[first : first + 500]]
            marks = ",".join("?" * len(block))
            rows = connection.execute(f"select * from digests where path in ({marks})", block)
            found |= {Stamp(*row[:3]): row[3] for row in rows}
        return found

    return use_cache("digests", _TABLE, look, {})


def _remember(digests: Sequence[tuple[Stamp, str]]) -> None:
    rows = [(*one, digest) for one, digest in digests]
    statement = "insert or replace into digests values (?, ?, ?, ?)"
    use_cache("digests", _TABLE, lambda connection: connection.executemany(statement, rows), None)
