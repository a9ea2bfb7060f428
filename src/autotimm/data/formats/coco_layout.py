"""Where a COCO data set keeps its JSON files and its images."""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from autotimm.data.formats.splits import files_below, images_below, relative, split_of
from autotimm.data.formats.walk import list_folder, some
from autotimm.errors import DataError

__all__ = ["Images", "coco_files", "has_outlines", "is_coco"]

_OUTLINE = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[?\s*-?[\d.]|\{\s*")')


def _search(path: Path, *patterns: re.Pattern[bytes]) -> bool:
    """Whether a file holds all of some patterns, without parsing half a gigabyte."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(pattern.search(content) for pattern in patterns)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def is_coco(path: Path) -> bool:
    """Whether a JSON file looks like COCO's: images, annotations with categories."""
    keys = (rb'"images"\s*:\s*\[', rb'"annotations"\s*:\s*\[', rb'"categories"\s*:\s*\[')
    return _search(path, *map(re.compile, keys))


def has_outlines(path: Path) -> bool:
    """Whether a COCO file has polygons or run lengths, not boxes alone."""
    return _search(path, _OUTLINE)


def coco_files(root: Path, notices: list[str]) -> dict[str, Path]:
    """The JSON file of each split.

    Of the official files those for instances are taken, not those for captions or keypoints.

    Raises:
        DataError: If it is not clear which file is for what.
    """
    files = [path for path in files_below(root, (".json",)) if is_coco(path)]
    instances = [path for path in files if path.name.lower().startswith("instances")]
    files = instances or files
    if len(files) == 1:
        return {"train": files[0]}
    splits: dict[str, Path] = {}
    unnamed = []
    for path in files:
        name = relative(path, root)
        split = split_of(name)
        if split is None:
            unnamed.append(name)
        elif split in splits:
            both = f"{relative(splits[split], root)} and {name}"
            raise DataError(
                f"{root} has two COCO files for {split}: {both}. Remove one, or give the path of the other."
            )
        else:
            splits[split] = path
    if unnamed and not splits:
        raise DataError(
            f"{root} has several COCO files, and none is named after train, val or test: {some(unnamed)}. Give the "
            "path of the one to train on, or rename them."
        )
    if unnamed:
        notices.append(f"COCO files that are not named after a split are not read: {some(unnamed)}.")
    return splits


class Images:
    """Finds the images that a COCO file names.

    Args:
        root: The root of the data; nothing outside of it is read.
        annotations: The JSON file.
        split: What it is for.
        names: The file names in it.
    """

    def __init__(self, root: Path, annotations: Path, split: str, names: Sequence[str]) -> None:
        self.root = root
        self._below: dict[str, list[Path]] | None = None
        some_names = [self._tail(name) for name in names[:20]]
        folders = dict.fromkeys([annotations.parent, root, *_folders(root, depth=3)])

        def fitness(folder: Path) -> tuple[int, bool]:
            hits = sum((folder / name).is_file() for name in some_names)
            return hits, split_of(relative(folder, root)) == split

        self.base = max(folders, key=fitness)  # of equals the first: beside the JSON file

    @staticmethod
    def _tail(name: str) -> str:
        """The path as far as it can be trusted: no drive, no root and no way up."""
        path = PurePosixPath(name.replace("\\", "/"))
        outside = path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else True
        return path.name if outside else str(path)

    def find(self, name: str) -> Path:
        """The file of that name; where it should be if there is none."""
        tail = self._tail(name)
        path = self.base / tail
        if path.is_file():
            return path
        if self._below is None:
            self._below = {}
            for image in images_below(self.root):
                self._below.setdefault(image.path.name, []).append(image.path)
        found = self._below.get(PurePosixPath(tail).name, [])
        return found[0] if len(found) == 1 else path


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """The folders below, those with many siblings left out: they are classes or cities, not places of a whole split."""
    level = [root]
    for _ in range(depth):
        below = [[Path(entry.path) for entry in list_folder(folder)[0]] for folder in level]
        level = list(itertools.chain.from_iterable(group for group in below if len(group) <= 50))
        yield from level
