"""A cache of facts about image files, in pages of neighbouring paths.

A row of SQLite per file takes longer than reading a small file. Here up to two thousand files are one row: a page,
sorted by path, with one array of all that is known of them. A path belongs to the last page that begins at it or before
it, as in the leaves of a B-tree, so that few files are looked up as well as a million.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.data.file_facts import CacheFile
from autotimm.serialization import parse_json

__all__ = ["FACT", "FactPages", "Known"]

FACT = np.dtype([("stamp", "<i8", 5), ("digest", "u1", 32), ("size", "<i8", 2), ("decoded", "?"), ("rules", "<u2")])
"""What is known of a file: its stamp without the path, the SHA-256 of its bytes, width and height, whether it was
decoded completely, and by which rules, as an index of :attr:`Known.rules`."""

_MOST = 2048  # files of a page
_PAGES = (
    "create table if not exists pages"
    " (first blob primary key, last blob, number integer, paths blob, facts blob, more text)"
)
_OF_BEFORE = "drop table if exists facts"  # a row per file, of earlier development versions


class Known(NamedTuple):
    """What is known of some files.

    Attributes:
        facts: An array of :data:`FACT`, (files,).
        rules: The rules by which something was found out; the first stand for files of which nothing is known.
        notes: What is odd about some of the files, by their places, see :class:`autotimm.data.file_facts.Oddity`.
    """

    facts: NDArray[Any]
    rules: tuple[str, ...]
    notes: dict[int, tuple[str, str]]

    @classmethod
    def nothing(cls, files: int) -> Known:
        """Of so many files."""
        return cls(np.zeros(files, FACT), ("",), {})

    def has_rules(self, rules: str) -> NDArray[np.bool_]:
        """Whether something was found out by some rules."""
        index = self.rules.index(rules) if rules in self.rules else len(self.rules)
        by_them: NDArray[np.bool_] = self.facts["rules"] == index
        return by_them

    def at(self, places: NDArray[np.int64]) -> Known:
        """What is known of some of the files; each place occurs once."""
        if not self.notes:
            return Known(self.facts[places], self.rules, {})
        noted = {place: self.notes[old] for place, old in enumerate(places.tolist()) if old in self.notes}
        return Known(self.facts[places], self.rules, noted)

    def put(self, places: NDArray[np.int64], others: Known) -> Known:
        """Write what is known of others at some places, into the same array."""
        rules = (*self.rules, *(rule for rule in others.rules if rule not in self.rules))
        self.facts[places] = others.facts
        self.facts["rules"][places] = np.array([rules.index(rule) for rule in others.rules])[others.facts["rules"]]
        return Known(self.facts, rules, self.notes | {int(places[old]): note for old, note in others.notes.items()})


class _Page(NamedTuple):
    """A page without what is in it.

    Attributes:
        first: The path that it begins at.
        last: Its last path.
        number: The number of its files.
    """

    first: bytes
    last: bytes
    number: int


class FactPages:
    """What is known of image files, in a SQLite file of the user's cache folder; see :class:`CacheFile`.

    Args:
        name: The name of the file.
    """

    def __init__(self, name: str) -> None:
        self.file = CacheFile(name, _PAGES, _OF_BEFORE)

    def find(self, paths: Sequence[bytes]) -> Known:
        """What is known of files, whose absolute paths are sorted; ``rules`` is 0 where that is nothing."""

        def look(connection: sqlite3.Connection) -> Known:
            known = Known.nothing(len(paths))
            connection.execute("begin")  # a page that was found can be read
            for start, end, page in _pages_of(connection, paths):
                if page is not None and paths[start] <= page.last:
                    there, held = _read(connection, page)
                    known = _matched(known, start, paths[start:end], there, held)
            return known

        found: Known = self.file.use(look, Known.nothing(len(paths)))
        return found

    def keep(self, paths: Sequence[bytes], known: Known) -> None:
        """Add what is known of files, or replace it; the paths are sorted."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("begin immediate")  # pages that were read here are still the same when they are written
            for start, end, page in _pages_of(connection, paths):
                own, facts = paths[start:end], known.at(np.arange(start, end))
                # A full page that ends before these files is left as it is.
                if page is not None and (own[0] <= page.last or page.number + len(own) <= _MOST):
                    own, facts = _merged(*_read(connection, page), own, facts)
                    connection.execute("delete from pages where first = ?", (page.first,))
                _write(connection, own, facts)

        if len({*paths}) < len(paths):
            paths, known = _merged([], Known.nothing(0), paths, known)
        self.file.use(write, None)

    def remove(self, paths: Sequence[bytes]) -> None:
        """Forget what is known of files, whose paths are sorted."""

        def forget(connection: sqlite3.Connection) -> None:
            connection.execute("begin immediate")
            for start, end, page in _pages_of(connection, paths):
                if page is not None:
                    gone = {*paths[start:end]}
                    there, held = _read(connection, page)
                    rest = [place for place, path in enumerate(there) if path not in gone]
                    connection.execute("delete from pages where first = ?", (page.first,))
                    _write(connection, [there[place] for place in rest], held.at(np.array(rest, np.int64)))

        self.file.use(forget, None)


def _pages_of(connection: sqlite3.Connection, paths: Sequence[bytes]) -> Iterator[tuple[int, int, _Page | None]]:
    """The parts of sorted paths that belong to one page each, with that page if there is one."""
    start = 0
    while start < len(paths):
        page = connection.execute(
            "select first, last, number from pages where first <= ? order by first desc limit 1", (paths[start],)
        ).fetchone()
        (after,) = connection.execute("select min(first) from pages where first > ?", (paths[start],)).fetchone()
        end = len(paths) if after is None else bisect_left(paths, after, start)
        yield start, end, None if page is None else _Page(*page)
        start = end


def _read(connection: sqlite3.Connection, page: _Page) -> tuple[list[bytes], Known]:
    """The paths of a page, and what is known of them.

    Raises:
        ValueError: If it is damaged.
    """
    query = "select paths, facts, more from pages where first = ?"
    joined, facts, more = connection.execute(query, (page.first,)).fetchone()
    try:
        paths, array, described = joined.split(b"\0"), np.frombuffer(facts, FACT), parse_json(more)
        rules, notes = tuple(map(str, described["rules"])), described["notes"]
        known = Known(array, rules, {int(place): (str(ranged), str(said)) for place, (ranged, said) in notes.items()})
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("the page is damaged") from error
    if not len(paths) == len(array) == page.number or not len(array) or array["rules"].max() >= len(rules):
        raise ValueError("the page is damaged")
    return paths, known


def _write(connection: sqlite3.Connection, paths: Sequence[bytes], known: Known) -> None:
    """Write pages of files, whose paths are sorted and differ."""
    pages = -(-len(paths) // _MOST)
    for part in np.array_split(np.arange(len(paths)), pages) if pages else ():
        own, held = paths[part[0] : part[-1] + 1], known.at(part)
        more = json.dumps({"rules": held.rules, "notes": held.notes})
        row = (own[0], own[-1], len(own), b"\0".join(own), held.facts.tobytes(), more)
        connection.execute("insert or replace into pages values (?, ?, ?, ?, ?, ?)", row)


def _merged(
    paths: Sequence[bytes], known: Known, more: Sequence[bytes], of_more: Known
) -> tuple[Sequence[bytes], Known]:
    """Sort what is known of files and of more files together; of a path that occurs twice the last counts."""
    both = Known.nothing(len(paths) + len(more))
    both = both.put(np.arange(len(paths)), known).put(np.arange(len(paths), len(both.facts)), of_more)
    latest = {path: place for place, path in enumerate([*paths, *more])}
    order = sorted(latest)
    return order, both.at(np.array([latest[path] for path in order], np.int64))


def _matched(known: Known, start: int, paths: Sequence[bytes], there: list[bytes], held: Known) -> Known:
    """Take over what a page holds of the paths from ``start`` on."""
    if paths == there:
        return known.put(np.arange(start, start + len(paths)), held)
    places = dict(zip(there, range(len(there)), strict=True))
    found = np.array([places.get(path, -1) for path in paths])
    here = np.flatnonzero(found >= 0)
    return known.put(start + here, held.at(found[here]))
