"""What was found out about the images of a packed data set, remembered until any of its files changes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotimm.data.fact_pages import FACT, FactPages, Known
from autotimm.data.file_facts import absolute_paths, are_settled, stamp_rows
from autotimm.data.image_look import ImageFact

__all__ = ["Remembered", "RowFacts"]

_STORE = FactPages("rows")
_WINDOW = 1 << 16  # rows that are looked up together


class Remembered(NamedTuple):
    """What is known of some rows.

    Attributes:
        holds: Whether anything is known of each, and still holds.
        digests: The SHA-256 of their images, (rows, 32).
        sizes: Width and height, (rows, 2).
        notes: What is odd about some of them, by their places among these.
    """

    holds: NDArray[np.bool_]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    notes: dict[int, tuple[str, str]]


class RowFacts:
    """The facts about the rows of one data set, in the user's cache folder.

    A row has the stamp of the whole data set. It is taken before anything is read, and again when something is kept.

    Args:
        path: The folder of the data set, or its only file.
        engine: What reads it.
    """

    def __init__(self, path: Path, engine: str) -> None:
        self._path, self._engine, self._stamp = path, engine, _stamp_of(path)

    def find(self, numbers: NDArray[np.int64], ids: Sequence[str], rules: str, full: bool) -> Remembered:
        """What is known of some rows.

        Args:
            numbers: The numbers of the rows.
            ids: The ids of all rows.
            rules: By which rules it must have been found out.
            full: Whether they must have been decoded completely.
        """
        found = Remembered(
            np.zeros(len(numbers), bool), np.zeros((len(numbers), 32), np.uint8), np.zeros((len(numbers), 2), np.int32),
            {},
        )  # fmt: skip
        if self._stamp is None or self._stamp != _stamp_of(self._path):
            return found
        order = np.argsort(numbers, kind="stable")
        for places in np.split(order, range(_WINDOW, len(order), _WINDOW)):
            known = _STORE.find(self._keys(numbers[places], ids))
            facts = known.facts
            is_same = (facts["stamp"] == np.frombuffer(self._stamp, "<i8")).all(axis=1)
            holds = known.has_rules(f"{rules} {self._engine}") & is_same & (facts["decoded"] >= full)
            found.holds[places] = holds
            found.digests[places[holds]] = facts["digest"][holds]
            found.sizes[places[holds]] = facts["size"][holds]
            found.notes.update({int(places[place]): note for place, note in known.notes.items() if holds[place]})
        return found

    def keep(self, numbers: Sequence[int], facts: Sequence[ImageFact], ids: Sequence[str], rules: str) -> None:
        """Remember what was found out about rows, unless a file has changed meanwhile."""
        if not numbers or self._stamp is None or self._stamp != _stamp_of(self._path):
            return
        order = np.argsort(numbers, kind="stable")
        chosen = [facts[place] for place in order.tolist()]
        known = np.zeros(len(chosen), FACT)
        known["stamp"], known["rules"] = np.frombuffer(self._stamp, "<i8"), 1
        known["digest"] = np.frombuffer(b"".join(fact.digest for fact in chosen), np.uint8).reshape(-1, 32)
        known["size"] = [(fact.width, fact.height) for fact in chosen]
        known["decoded"] = [fact.decoded for fact in chosen]
        notes = {place: (fact.range, fact.message) for place, fact in enumerate(chosen) if fact.range or fact.message}
        keys = self._keys(np.array(numbers, np.int64)[order], ids)
        _STORE.keep(keys, Known(known, ("", f"{rules} {self._engine}"), notes))

    def _keys(self, numbers: NDArray[np.int64], ids: Sequence[str]) -> list[bytes]:
        """A path for each row, in the order of the numbers; another id makes it another row."""
        (folder,) = absolute_paths([os.fspath(self._path)])
        each = ((number, ids[number].encode("utf-8", "surrogatepass")) for number in numbers.tolist())
        return [folder + b"/%012d/" % number + hashlib.sha256(id).hexdigest()[:16].encode() for number, id in each]


def _stamp_of(path: Path) -> bytes | None:
    """One stamp of 40 bytes for a file, or all below a folder; ``None`` where it would not tell contents apart.

    So it is if a file was changed just now or cannot be read, or if links lead to folders elsewhere.
    """
    now, names = time.time_ns(), [os.fspath(path)] if os.path.isfile(path) else []
    for parent, folders, files in os.walk(path):
        if any(os.path.islink(os.path.join(parent, inner)) for inner in folders):
            return None
        names += [os.path.join(parent, name) for name in files]
    names.sort()
    stamps = stamp_rows(names)
    if not names or not are_settled(stamps, now).all() or not all(os.access(name, os.R_OK) for name in names):
        return None
    return hashlib.sha512(b"\0".join(absolute_paths(names)) + stamps.astype("<i8").tobytes()).digest()[:40]
