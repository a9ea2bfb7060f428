"""What is looked up in files before training, in threads, and remembered: sizes, and which values a mask holds."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from autotimm.data.filecache import Stamp, stamp, use_cache, with_progress
from autotimm.data.maskcode import MaskFacts, facts_of
from autotimm.data.outline import object_pixels
from autotimm.data.read import BROKEN, reason
from autotimm.data.scan import Problem

__all__ = ["image_sizes", "mask_facts", "object_bounds"]

_BLOCK = 2048  # files per round: bounds what an interruption loses
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def image_sizes(files: Sequence[Path], progress: bool = True) -> dict[Path, tuple[int, int]]:
    """Width and height of upright images, from their headers; nothing about files that cannot be read."""
    named = [path for path in files if "\0" not in str(path)]  # no system call takes such a name
    found = _looked_up("sizes", named, _size, progress)
    return {path: (fact[0], fact[1]) for path, fact in found.items() if not isinstance(fact, Problem)}


def mask_facts(files: Sequence[Path], progress: bool = True) -> dict[Path, MaskFacts | Problem]:
    """What each mask holds, or why it cannot be read."""
    return {
        path: fact if isinstance(fact, Problem) else MaskFacts(*(_tuples(part) for part in fact))
        for path, fact in _looked_up("masks", files, facts_of, progress).items()
    }


def object_bounds(files: Sequence[Path], progress: bool = True) -> dict[Path, tuple[int, ...] | Problem]:
    """Width and height of masks of one object, then the box around it: x1, y1, x2, y2; zeros if there is nothing."""
    return {
        path: fact if isinstance(fact, Problem) else tuple(fact)
        for path, fact in _looked_up("objects", files, _bounds, progress).items()
    }


def _tuples(part: Any) -> Any:
    return tuple(part) if isinstance(part, list) else part


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        width, height = image.size
        # Pillow decodes a whole PNG to look for a tag behind its pixels, where nobody writes one.
        written = image.format != "PNG" or "exif" in image.info
        orientation = 1
        if written:
            with contextlib.suppress(*BROKEN):  # a broken tag says nothing of the orientation
                orientation = image.getexif().get(0x0112, 1)
    return (height, width) if orientation in _TURNED else (width, height)


def _bounds(path: Path) -> tuple[int, ...]:
    pixels = object_pixels(path)
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
    return (pixels.shape[1], pixels.shape[0], *map(int, box))


def _looked_up(name: str, files: Sequence[Path], look: Callable[[Path], Any], progress: bool) -> dict[Path, Any]:
    """Look into every file once, unless it was done before and the file has its size and time of change."""
    stamps = {path: stamp(path) for path in dict.fromkeys(files)}
    known = _remembered(name, [one for one in stamps.values() if one])
    todo = [path for path, one in stamps.items() if one not in known]
    looked = with_progress(_map(look, todo), len(todo), progress, "checking annotations")
    fresh = dict(zip(todo, looked, strict=True))
    # Broken files are looked at again each time: a cure may not change the file.
    good = {path: fact for path, fact in fresh.items() if not isinstance(fact, Problem)}
    _remember(name, [(one, fact) for path, fact in good.items() if (one := stamps[path])])
    found = fresh | {path: known[one] for path, one in stamps.items() if one in known}
    return {path: found[path] for path in stamps}


def _map(look: Callable[[Path], Any], paths: Sequence[Path]) -> Iterator[Any]:
    def attempt(path: Path) -> Any:
        try:
            return look(path)
        except BROKEN as error:
            return Problem(path, reason(path, error))

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="peek")
    try:
        for first in range(0, len(paths), _BLOCK):
            yield from pool.map(attempt, paths[first : first + _BLOCK])
    finally:
        pool.shutdown(cancel_futures=True)


def _table(name: str) -> str:
    columns = "path blob primary key, size integer, mtime_ns integer, rules text, fact text"
    return f"create table if not exists {name} ({columns})"


# What is noted of a file has changed once; and a release of Pillow may read a file otherwise than an older one.
_RULES = f"2 {PIL.__version__}"


def _remembered(name: str, stamps: Sequence[Stamp]) -> Mapping[Stamp | None, Any]:
    def find(connection: sqlite3.Connection) -> dict[Stamp | None, Any]:
        found: dict[Stamp | None, Any] = {}
        for first in range(0, len(stamps), 500):
            block = [one.path for one in stamps[first : first + 500]]
            marks = ",".join("?" * len(block))
            rows = connection.execute(f"select * from {name} where rules = ? and path in ({marks})", [_RULES, *block])
            found |= {Stamp(*row[:3]): json.loads(row[4]) for row in rows}
        return found

    return use_cache(name, _table(name), find, {})


def _remember(name: str, facts: Sequence[tuple[Stamp, Any]]) -> None:
    rows = [(*one, _RULES, json.dumps(fact)) for one, fact in facts]
    statement = f"insert or replace into {name} values (?, ?, ?, ?, ?)"
    use_cache(name, _table(name), lambda connection: connection.executemany(statement, rows), None)
