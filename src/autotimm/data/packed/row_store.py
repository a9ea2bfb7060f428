"""Rows of a packed data set, whichever engine holds them: an id, the bytes of an image file, and a target.

The first row of training is the first sample, and so on: the order of rows is the order of the folder that was packed.
Which of them are read, and when, is decided by the sampler alone.

Nothing in a packed data set is trusted: what describes it is checked, a row must have the id that was listed, and
bytes become pixels by the readers of image files. No engine is asked to restore a Python object.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torchvision import tv_tensors

from autotimm.data.annotations.masks import IGNORED
from autotimm.data.file_facts import Problem
from autotimm.data.image_channels import read_bytes_as
from autotimm.data.image_facts import rules_of
from autotimm.data.image_look import ImageFact, facts_of_rows
from autotimm.data.image_reading import ImageReading, current_reading
from autotimm.data.packed.row_facts import RowFacts
from autotimm.data.table import AT_ONCE
from autotimm.errors import DataError, sentence
from autotimm.records.readers import Fields, misfit
from autotimm.serialization import parse_json

__all__ = ["KINDS", "SPLITS", "Head", "ListedRow", "Row", "Rows", "read_head", "unreadable"]

SPLITS = ("train", "val", "test")
"""The splits, in the order in which their rows come."""

KINDS = {"classes": "classification", "boxes": "detection", "instances": "instance", "pixels": "segmentation"}
"""The kinds of targets, each with its task."""

_AGAIN = "Pack the data again."
_VERSION = 1
_LARGEST_HEAD = 1 << 26  # bytes
_LARGEST_TARGET = 1 << 26  # bytes of text of one row
_LARGEST_FILE = 1 << 30  # bytes of an image, or of all masks of one
_MOST_CLASSES = 1 << 20
_KEPT = 2048  # rows that are remembered at once


class ListedRow(NamedTuple):
    """What is known of a row before its image is read.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        id: The id of the sample.
        target: The target as JSON.
    """

    split: str
    id: str
    target: str


class Row(NamedTuple):
    """The files of a row.

    Attributes:
        id: The id of the sample.
        image: The bytes of the image file.
        masks: The bytes of the files with its target, one after the other; empty where there is none.
    """

    id: str
    image: bytes
    masks: bytes


class Head(NamedTuple):
    """What describes a packed data set.

    Attributes:
        kind: One of :data:`KINDS`.
        class_names: Names of the classes, in the order of the indices in targets.
        multi_label: Whether an image may have several classes.
        category_ids: See :class:`autotimm.data.table.Table`.
        upright: Whether boxes and masks belong to images as an EXIF tag turns them.
        samples: The number of rows of each split, in the order of :data:`SPLITS`.
        code: What values of masks stand for, as the fields of :class:`autotimm.data.annotations.masks.MaskCode`.
    """

    kind: str
    class_names: tuple[str, ...]
    multi_label: bool
    category_ids: tuple[int, ...]
    upright: bool
    samples: dict[str, int]
    code: dict[str, Any] | None = None

    def written(self) -> bytes:
        """The description as JSON."""
        return json.dumps({"version": _VERSION, **self._asdict()}).encode()


_SHAPE = Fields(
    {
        "version": int,
        "kind": str,
        "class_names": [str],
        "multi_label": bool,
        "category_ids": [int],
        "upright": bool,
        "samples": Fields(dict.fromkeys(SPLITS, int)),
        "code": (type(None), Fields({"by_color": bool, "keys": [int], "classes": [int], "nearest": bool},
                                    ("by_color", "keys", "classes", "nearest"))),
    },
    ("version", "kind", "class_names", "multi_label", "category_ids", "upright", "samples", "code"),
)  # fmt: skip


def read_head(content: bytes, path: Path) -> Head:
    """Check what describes a packed data set.

    Raises:
        DataError: If it is damaged, or of another version.
    """
    owner = f"the description of {path}"
    if len(content) > _LARGEST_HEAD:
        raise DataError(sentence("size", owner, f"at most {_LARGEST_HEAD} bytes", len(content), _AGAIN))
    try:
        value = parse_json(content)
    except ValueError:
        raise DataError(f"The description of {path} must be JSON. It is not. {_AGAIN}") from None
    version = value.get("version") if isinstance(value, dict) else None
    if version != _VERSION:
        raise DataError(sentence("version", owner, f"{_VERSION}", version, "Pack the data with this release."))
    wrong = misfit(value, _SHAPE)
    if wrong is not None:
        raise DataError(sentence(wrong.name, owner, wrong.must, wrong.got, _AGAIN))
    names, samples, code = value["class_names"], value["samples"], value["code"]
    are_different = 0 < len(set(names)) == len(names) <= _MOST_CLASSES
    are_numbers = min(samples.values(), default=0) >= 0 and samples.get("train", 0) > 0
    for name, fits, must in (
        ("kind", value["kind"] in KINDS, f"one of {', '.join(KINDS)}"),
        ("class_names", are_different, "different names"),
        ("samples", are_numbers, "numbers of rows, some of train"),
        ("code", (code is not None) == (value["kind"] == "pixels"), "given for pixels"),
    ):
        if not fits:
            raise DataError(sentence(name, owner, must, value[name], _AGAIN))
    if code is not None and not _is_code(code, len(names)):
        raise DataError(sentence("code", owner, "a class, or 255, for each value", code, _AGAIN))
    return Head(value["kind"], tuple(names), value["multi_label"], tuple(value["category_ids"]), value["upright"],
                {split: samples.get(split, 0) for split in SPLITS}, code)  # fmt: skip


def _is_code(code: Mapping[str, Any], classes: int) -> bool:
    """Whether each value of a mask stands for a class, or for none (255)."""
    has_pairs = len(code["keys"]) == len(code["classes"])
    return has_pairs and all(0 <= index < classes or index == IGNORED for index in code["classes"])


def unreadable(what: str, error: BaseException, cure: str = "Use an intact copy, or pack it again.") -> DataError:
    """The error of files that an engine cannot read.

    Args:
        what: The files, as the subject of a sentence.
        error: What the engine has raised.
        cure: What to do.
    """
    why = (str(error).splitlines() or [""])[0].rstrip(" .") or type(error).__name__
    return DataError(f"{what} cannot be read: {why}. {cure}")


class Rows(ABC):
    """The rows of a packed data set; cheap to hand to another process, which opens it anew.

    Args:
        path: The folder of the data set.

    Attributes:
        path: The folder.
        ids: The id of each row, once they were listed.
    """

    engine: ClassVar[str]
    """The name of the engine, which is that of its extra."""

    cure: ClassVar[str] = _AGAIN
    """What to do about rows that are not as they should be."""

    may_fork: ClassVar[bool] = True
    """Whether a process that was forked from one that has read rows can read them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: Sequence[str] = ()
        self._pid, self._opened = 0, cast("Any", None)
        self._facts = RowFacts(path, self.engine)  # before anything is read
        self._forget(0)

    def _forget(self, number: int) -> None:
        self._held: dict[int, Row] = {}
        # Of a million rows as flat arrays; zeros where nothing is known.
        self._digests, self._sizes = np.zeros((number, 32), np.uint8), np.zeros((number, 2), np.int32)

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_held", "_digests", "_sizes", "_pid", "_opened")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _pid=0, _opened=None)
        self._forget(0)

    # What an engine defines

    @staticmethod
    @abstractmethod
    def is_there(path: Path) -> bool:
        """Whether a folder is a data set of the engine, also one that autotimm did not write."""

    @abstractmethod
    def description(self) -> bytes:
        """What describes the data set, see :func:`read_head`.

        Raises:
            DataError: If there is nothing, or the data set cannot be opened.
        """

    @abstractmethod
    def listed(self) -> Iterator[ListedRow]:
        """All rows in order, without their images.

        Raises:
            DataError: If they cannot be read.
        """

    @abstractmethod
    def read(self, places: Sequence[int]) -> Sequence[Row]:
        """The files of some rows, in this order.

        Raises:
            DataError: If they cannot be read.
        """

    def notices(self) -> Sequence[str]:
        """What was left out, in sentences for people."""
        return ()

    # What all of them share

    def _here(self, open_it: Callable[[], Any]) -> Any:
        """What the engine has opened in this process: handles of another one, that has forked it, cannot be used."""
        if self._pid != os.getpid():
            self._opened, self._pid = open_it(), os.getpid()
        return self._opened

    def checked_list(self, head: Head) -> Iterator[ListedRow]:
        """All rows in order, as the description says.

        Raises:
            DataError: If there are more or fewer, or their splits come in another order.
        """
        splits = [split for split in SPLITS for _ in range(head.samples[split])]
        self._forget(len(splits))
        number = 0
        for row in self.listed():
            is_described = number < len(splits) and row.split == splits[number]
            if not is_described or len(row.target) > _LARGEST_TARGET:
                raise DataError(f"Row {number} of {self.path} is none of those that it describes. {self.cure}")
            number += 1
            yield row
        if number < len(splits):
            raise DataError(f"{self.path} describes {len(splits)} rows, and has {number}. {self.cure}")

    def fetch(self, places: Sequence[int]) -> None:
        """Read some rows at once, and hold them until others are asked for."""
        # What was held before is let go: no more than the rows of one call are in memory.
        if not all(place in self._held for place in places):
            self._held = self._read(sorted({*places}))

    def _read(self, places: Sequence[int]) -> dict[int, Row]:
        """Read some rows, and refuse those that are not what was listed."""
        rows = dict(zip(places, self.read(places), strict=True))
        for place, row in rows.items():
            if row.id != self.ids[place]:
                raise DataError(
                    f"Row {place} of {self.path} must be that of {self.ids[place]}. It is that of {row.id}. {self.cure}"
                )
            if max(len(row.image), len(row.masks)) > _LARGEST_FILE:
                raise DataError(
                    f"The files of {self._name(place)} must have at most {_LARGEST_FILE} bytes. {self.cure}"
                )
        return rows

    def _name(self, place: int) -> str:
        return f"{self.path}: {self.ids[place]}"

    def row(self, place: int) -> Row:
        """The files of one row."""
        self.fetch([place])
        return self._held[place]

    def picture(self, place: int, reading: ImageReading) -> tv_tensors.Image:
        """Decode the image of a row: ``uint8`` (C, H, W).

        Raises:
            DataError: If it cannot be read.
        """
        return read_bytes_as(self.row(place).image, self._name(place), reading)

    def check(self, places: NDArray[np.int64], *, full: bool, progress: bool) -> Iterator[ImageFact | Problem]:
        """What is known of the images of some rows, in this order; it is remembered until a file changes.

        Args:
            places: The numbers of the rows.
            full: Whether to decode them completely.
            progress: Whether a progress bar may appear.
        """
        rules = rules_of(current_reading())
        known = self._facts.find(places, self.ids, rules, full)
        self._digests[places[known.holds]] = known.digests[known.holds]
        self._sizes[places[known.holds]] = known.sizes[known.holds]
        unknown = places[~known.holds]
        looked = facts_of_rows(self._contents(unknown), len(unknown), full=full, progress=progress)
        fresh: dict[int, ImageFact] = {}
        try:
            for index, place in enumerate(places.tolist()):
                if known.holds[index]:
                    (width, height), note = self._sizes[place].tolist(), known.notes.get(index, ("", ""))
                    yield ImageFact(self._digests[place].tobytes(), width, height, int(full), *note)
                    continue
                fact = next(looked)  # they come in the order of the unknown places
                if isinstance(fact, ImageFact):
                    fresh[place] = fact
                    self._digests[place] = np.frombuffer(fact.digest, np.uint8)
                    self._sizes[place] = fact.width, fact.height
                yield fact
                if len(fresh) == _KEPT:
                    self._facts.keep([*fresh], [*fresh.values()], self.ids, rules)
                    fresh = {}
        finally:  # an interruption keeps what was found
            looked.close()
            self._facts.keep([*fresh], [*fresh.values()], self.ids, rules)

    def _contents(self, places: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        """Names and image files of some rows, in this order; a few of them are in memory at a time."""
        for first in range(0, len(places), AT_ONCE):
            some = places[first : first + AT_ONCE].tolist()
            rows = self._read(sorted({*some}))
            yield from ((self._name(place), rows[place].image) for place in some)

    def digest(self, place: int, *, cached: bool) -> bytes:
        """The SHA-256 of the image file of a row.

        Args:
            place: The number of the row.
            cached: Whether that of the check may be used; if not, the row is read.
        """
        if cached and place < len(self._digests) and self._digests[place].any():
            return bytes(self._digests[place])
        return hashlib.sha256(self.row(place).image).digest()

    def size(self, place: int) -> tuple[int, int] | None:
        """Width and height of the image of a row that was checked."""
        width, height = self._sizes[place].tolist()
        return (width, height) if width else None
