"""Which split a sample belongs to: by lists of files, or by the names of folders and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from autotimm.data.formats.annotation_report import Report
from autotimm.data.formats.file_names import split_of, text
from autotimm.errors import DataError, join_names

__all__ = ["by_split", "listed", "ordered", "read_lists"]

_LIST_STEMS = {"train": ("train", "trainval"), "val": ("val", "valid", "validation"), "test": ("test",)}
_Item = TypeVar("_Item")


def read_lists(folder: Path) -> dict[str, list[str]]:
    """The lines of ``train.txt``, ``val.txt`` and ``test.txt``, if ``train.txt`` or ``trainval.txt`` is there."""
    lists: dict[str, list[str]] = {}
    for split, stems in _LIST_STEMS.items():
        file = next((folder / f"{stem}.txt" for stem in stems if (folder / f"{stem}.txt").is_file()), None)
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
