"""What a data format is: something that can be seen in a listing, and read from it.

What all formats share is here too: the report of what is wrong with annotations, a line for each kind of problem with
the names of a few files; and which split a sample belongs to, by lists of files or by the names of folders and files.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple, TypeVar

from autotimm.data.doubt import Doubt
from autotimm.data.formats.listing import Listing, split_of, text
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["Format", "ReadOptions", "Report", "Sighting", "by_split", "listed", "ordered", "read_lists"]


class Report:
    """Collects problems of annotations while they are read.

    Args:
        strict: Refuse the data instead of leaving out what is wrong.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._names: dict[tuple[str, str], list[str]] = {}
        self._shares: list[tuple[str, Doubt]] = []

    def add(self, problem: str, consequence: str, name: str) -> None:
        """Note one case.

        Args:
            problem: What is wrong, in the plural.
            consequence: What is done about it.
            name: The file.
        """
        self._names.setdefault((problem, consequence), []).append(name)

    def add_share(self, problem: str, consequence: str, names: Sequence[str]) -> None:
        """Note a problem whose count, and of how many, is part of its sentence.

        Args:
            problem: A sentence.
            consequence: What is done about it.
            names: The files.
        """
        files = join_names(list(dict.fromkeys(names)))
        self._shares.append((f"{problem} In {files}.", Doubt(f"{problem} {consequence}: {files}.", names)))

    def close(self, notices: list[str]) -> None:
        """Append the lines to the notices.

        Raises:
            DataError: With ``strict``, if anything is wrong.
        """
        refusals, lines = [refusal for refusal, _ in self._shares], [line for _, line in self._shares]
        for (problem, consequence), names in self._names.items():
            files = list(dict.fromkeys(names))
            count = f"{len(names)} {problem}" + (f" in {len(files)}" if len(files) < len(names) else "")
            refusals.append(f"{count}: {join_names(files)}.")
            lines.append(Doubt(f"{count}, {consequence}: {join_names(files)}.", names))
        if refusals and self.strict:
            raise DataError(" ".join(refusals) + " Correct these, or leave out `strict`.")
        notices.extend(lines)


class Sighting(NamedTuple):
    """What a format sees in a listing.

    Attributes:
        what: What there is, for people, such as ``2 COCO files with outlines``.
        tasks: The tasks that it can be used for, the most specific first.
        certain: Whether files of this format were seen. ``False`` is a guess, which counts if no format is certain.
        missing: What has to be added before it can be read, as a sentence; empty if nothing is missing.
        hint: How to overrule what was decided by the looks of files, as a sentence.
    """

    what: str
    tasks: tuple[str, ...]
    certain: bool = True
    missing: str = ""
    hint: str = ""


class ReadOptions(NamedTuple):
    """How data are read.

    Attributes:
        masks: Whether samples have a mask for each object.
        strict: Refuse doubtful data instead of repairing it with a notice.
        colors: What the values of label images mean, where no file gives it.
        class_levels: Levels of folders that make a class, see
            :func:`autotimm.data.formats.class_folders.read_folder`.
        group: What keeps samples together: a format with columns gives its tables the groups of a column of this name.
    """

    masks: bool = False
    strict: bool = False
    colors: Mapping[str, Any] | str | Path | None = None
    class_levels: int | None = None
    group: str | None = None


class Format(ABC):
    """A data format. It keeps no state: all that it knows of a folder is in the listing.

    To add one, write a subclass in a module of its own and put an instance of it into
    :data:`autotimm.data.formats.recognize.FORMATS`.

    Attributes:
        name: What ``--format`` calls it. Two formats of different tasks may share a name.
        tasks: The tasks that data of this format can be for.
        covers: Formats that are not seen where this one is: their files are a part or a copy of its own.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    covers: ClassVar[tuple[type[Format], ...]] = ()

    @abstractmethod
    def see(self, listing: Listing) -> Sighting | None:
        """What there is of this format; ``None`` if nothing.

        Raises:
            DataError: If there is something of this format that contradicts itself.
        """

    def hint(self, listing: Listing) -> str:
        """A sentence on a file of a folder that can be given instead of the folder; empty if there is none."""
        return ""

    @abstractmethod
    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> Mapping[str, Table]:
        """Read the data.

        Args:
            listing: The listing.
            notices: Receives one line for each thing that was left out or looks strange.
            options: How they are read.

        Returns:
            A table per split, always including ``train``.

        Raises:
            DataError: If the data cannot be used.
        """


_LIST_STEMS = {"train": ("train", "trainval"), "val": ("val", "valid", "validation"), "test": ("test",)}
_Item = TypeVar("_Item")


def read_lists(folder: Path) -> dict[str, list[str]]:
    """The lines of ``train.txt``, ``val.txt`` and ``test.txt``, if ``train.txt`` or ``trainval.txt`` is there."""
    lists: dict[str, list[str]] = {}
    for split, stems in _LIST_STEMS.items():
        file = next((folder / f"{stem}.txt" for stem in stems if os.path.isfile(folder / f"{stem}.txt")), None)
        if file is not None:
            # The bytes of names that are not UTF-8 come back as os.scandir gives them.
            lines = file.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
            lists[split] = [line.strip() for line in lines if line.strip()]
    return lists if "train" in lists else {}


def listed(
    items: Mapping[str, _Item], lists: Mapping[str, Sequence[str]], notices: list[str], report: Report
) -> dict[str, list[_Item]]:
    """Share items out by split lists, whose entries are paths, file names or stems.

    Args:
        items: By their paths relative to the root.
        lists: Entries by split.
        notices: Receives a line about images in no list, which may be intended.
        report: Receives the entries that match no file.
    """
    names_by_key: dict[str, set[str]] = {}
    for name in items:
        path = PurePosixPath(name)
        for start in range(len(path.parts)):
            tail = PurePosixPath(*path.parts[start:])
            for key in (str(tail), str(tail.with_suffix(""))):
                names_by_key.setdefault(key, set()).add(name)
    items_by_split: dict[str, list[_Item]] = {}
    unmatched: list[str] = []
    used: set[str] = set()
    for split, lines in lists.items():
        matched: dict[str, None] = {}
        for line in lines:
            # Lists of one class per file have a second column: "name -1".
            names = names_by_key.get(line.removeprefix("./"), ()) or names_by_key.get(line.split()[0], ())
            unmatched += [] if names else [line]
            matched |= dict.fromkeys(sorted(names))
        items_by_split[split] = [items[name] for name in matched]
        used |= matched.keys()
    for line in unmatched:
        report.add("split-list entries that match no file", "left out", text(line))
    if rest := sorted(items.keys() - used):
        notices.append(f"{len(rest)} images are in no split list and left out: {join_names(rest)}.")
    return items_by_split


def by_split(items: Iterable[tuple[str, _Item]]) -> dict[str, list[_Item]]:
    """Share items out by the splits that their relative paths name; a path that names none is for training."""
    splits: dict[str, list[_Item]] = {}
    for name, item in items:
        splits.setdefault(split_of(name) or "train", []).append(item)
    return splits


def ordered(splits: Mapping[str, _Item]) -> dict[str, _Item]:
    """In the order train, val, test.

    Raises:
        DataError: If there is no training split.
    """
    if "train" not in splits:
        raise DataError(
            f"There is {join_names(list(splits)) or 'nothing'} but no training data. Add a part named train."
        )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}
