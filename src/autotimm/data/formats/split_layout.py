"""What is for training and what for validation: told by the names of folders and files, or by lists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from autotimm.data.formats.annotation_report import Report
from autotimm.data.formats.listing import Found, Walker, list_folder, text
from autotimm.errors import DataError, join_names

__all__ = [
    "by_split",
    "descend",
    "files_below",
    "images_below",
    "listed",
    "ordered",
    "read_lists",
    "relative",
    "split_of",
]

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SIDE_FILES = (".md", ".txt", ".pdf", ".html")
_Item = TypeVar("_Item")


def split_of(path: str | Path) -> str | None:
    """The split that a relative path names, by the last of its parts that names exactly one.

    Example:
        >>> split_of("images/train2017/1.jpg"), split_of("instances_val2017.json"), split_of("trainval.json")
        ('train', 'val', None)
    """
    for part in reversed(PurePosixPath(path).parts):
        found = {_WORDS[word] for word in re.findall(r"[a-z]+", part.lower()) if word in _WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def descend(root: Path) -> Path:
    """Go down while a folder holds nothing but one folder, and perhaps a license or a text to read.

    Raises:
        DataError: If there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. Check the path; relative paths start at {Path.cwd()}.")
    walker = Walker()
    while walker.enter(root):
        folders, files = list_folder(root)
        if len(folders) != 1 or split_of(folders[0].name) or any(not _is_aside(entry.name) for entry in files):
            break
        if not list_folder(Path(folders[0].path))[0]:
            break
        root = Path(folders[0].path)
    return root


def _is_aside(name: str) -> bool:
    stem, ending = os.path.splitext(name)
    words = re.findall(r"[a-z]+", stem.lower())
    return bool({"readme", "license", "licence", "notice"} & set(words)) and ending.lower() in ("", *_SIDE_FILES)


def files_below(root: Path, endings: Sequence[str], depth: int = 3) -> list[Path]:
    """Files with one of some endings, in byte order, down to ``depth`` folders below; hidden ones are left out."""
    walker, found = Walker(), []
    level = [root]
    for _ in range(depth + 1):
        below = []
        for folder in level:
            if walker.enter(folder):
                folders, files = list_folder(folder)
                found += [Path(one.path) for one in files if os.path.splitext(one.name)[1].lower() in endings]
                below += [Path(one.path) for one in folders]
        level = below
    return sorted(found, key=os.fsencode)


def images_below(root: Path) -> list[Found]:
    """Every image below a folder with its path relative to it, in byte order, each file once."""
    return Walker().images([root])[0]


def relative(path: Path, root: Path) -> str:
    """The id of a file: its path relative to the root of the data, as valid text."""
    try:
        return text(path.relative_to(root).as_posix())
    except ValueError:
        return text(os.path.relpath(path, root).replace(os.sep, "/"))


def read_lists(folder: Path) -> dict[str, list[str]]:
    """The lines of ``train.txt``, ``val.txt`` and ``test.txt``, if ``train.txt`` or ``trainval.txt`` is there."""
    names = {"train": ("train", "trainval"), "val": ("val", "valid", "validation"), "test": ("test",)}
    lists: dict[str, list[str]] = {}
    for split, stems in names.items():
        file = next((folder / f"{stem}.txt" for stem in stems if (folder / f"{stem}.txt").is_file()), None)
        if file is not None:
            # The bytes of names that are not UTF-8 come back as os.scandir gives them.
            lines = file.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
            lists[split] = [line.strip() for line in lines if line.strip()]
    return lists if "train" in lists else {}


def listed(
    items: Mapping[str, _Item], lists: Mapping[str, Sequence[str]], notices: list[str], report: Report
) -> dict[str, list[_Item]]:
    """Share items out by lists, whose lines are paths, file names or stems.

    Args:
        items: By their paths relative to the root.
        lists: Lines by split.
        notices: Receives a line about what is in no list: that may be meant.
        report: Receives the lines that name nothing.
    """
    by_key: dict[str, set[str]] = {}
    for name in items:
        path = PurePosixPath(name)
        for start in range(len(path.parts)):
            tail = PurePosixPath(*path.parts[start:])
            for key in (str(tail), str(tail.with_suffix(""))):
                by_key.setdefault(key, set()).add(name)
    shared: dict[str, list[_Item]] = {}
    absent: list[str] = []
    used: set[str] = set()
    for split, lines in lists.items():
        taken: dict[str, None] = {}
        for line in lines:
            # Lists of one class per file have a second column: "name -1".
            found = by_key.get(line.removeprefix("./"), ()) or by_key.get(line.split()[0], ())
            absent += [] if found else [line]
            taken |= dict.fromkeys(sorted(found))
        shared[split] = [items[name] for name in taken]
        used |= taken.keys()
    for line in absent:
        report.add("lines of the lists that name nothing that is there", "left out", text(line))
    if rest := sorted(items.keys() - used):
        notices.append(f"{len(rest)} images are in no list and left out: {join_names(rest)}.")
    return shared


def ordered(splits: Mapping[str, _Item]) -> dict[str, _Item]:
    """In the order train, val, test.

    Raises:
        DataError: If there is nothing to train on.
    """
    if "train" not in splits:
        raise DataError(
            f"There is {join_names(list(splits)) or 'nothing'} but no training data. Add a part named train."
        )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def by_split(items: Iterable[tuple[str, _Item]]) -> dict[str, list[_Item]]:
    """Share out items by what their relative paths say; all are for training if none says anything."""
    named = [(split_of(name), item) for name, item in items]
    splits: dict[str, list[_Item]] = {}
    for split, item in named:
        splits.setdefault(split or "train", []).append(item)
    return splits
