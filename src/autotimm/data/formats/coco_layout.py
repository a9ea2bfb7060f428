"""Where a COCO data set keeps its JSON files and its images."""

from __future__ import annotations

import itertools
import mmap
import re
from collections import Counter
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
    """Finds the images that an annotation file names, and never takes one of another split for them.

    Numbered frames have the same names in every split: a picture that was deleted from ``train/`` must be missing, not
    be replaced by its namesake in ``val/``.

    Args:
        root: The root of the data; nothing outside of it is read.
        annotations: The file that names them. If its path names a split, its images are of that split.
        split: What it is used for; of folders that are equal otherwise, that of this split is taken.
        names: The file names in it.
    """

    def __init__(self, root: Path, annotations: Path, split: str, names: Sequence[str]) -> None:
        self.root = root
        self._split = split_of(relative(annotations, root))
        self._below: dict[str, list[Path]] | None = None
        tails = list(dict.fromkeys(map(self._tail, names)))
        # By its last part alone a path is found only where that part is nobody else's: cat/1.jpg is not dog/1.jpg.
        self._stated = Counter(PurePosixPath(tail).name for tail in tails)
        folders = dict.fromkeys([annotations.parent, root, *_folders(root, depth=3)])
        wanted = self._split or split

        def fitness(folder: Path) -> tuple[bool, int]:
            hits = sum((folder / tail).is_file() for tail in tails[:20])
            return hits > 0 and wanted in self._splits(folder), hits

        own = [one for one in folders if self._split is None or self._may_hold(one, self._split)]
        self.base = max(own or [root], key=fitness)  # of equals the first: beside the file

    @staticmethod
    def _tail(name: str) -> str:
        """The path as far as it can be trusted: no drive, no root and no way up."""
        path = PurePosixPath(name.replace("\\", "/"))
        outside = path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else True
        return path.name if outside else str(path)

    def _splits(self, folder: Path) -> set[str]:
        """All splits that the path of a folder names: val/train/ may hold the trains among what is to validate."""
        return {split for part in PurePosixPath(relative(folder, self.root)).parts if (split := split_of(part))}

    def _may_hold(self, folder: Path, split: str | None) -> bool:
        named = self._splits(folder)
        return not named or split is None or split in named

    def find(self, name: str) -> Path:
        """The file of that name; where it should be if there is none."""
        tail = PurePosixPath(self._tail(name))
        path = self.base / tail
        if path.is_file() or self._stated[tail.name] > 1:
            return path
        if self._below is None:
            self._below = self._list_images()
        split = split_of(str(tail.parent)) or self._split
        found = [one for one in self._below.get(tail.name, []) if self._may_hold(one.parent, split)]
        return found[0] if len(found) == 1 else path

    def _list_images(self) -> dict[str, list[Path]]:
        below: dict[str, list[Path]] = {}
        for image in images_below(self.root):
            below.setdefault(image.path.name, []).append(image.path)
        if self._split is None and any(self._in_two_splits(paths) for paths in below.values() if len(paths) > 1):
            # One file for all splits may name pictures of all; but where names say nothing, only the folder does.
            self._split = split_of(relative(self.base, self.root))
        return below

    def _in_two_splits(self, paths: Sequence[Path]) -> bool:
        return len({split_of(relative(path.parent, self.root)) for path in paths} - {None}) > 1


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """The folders below, those with many siblings left out: they are classes or cities, not places of a whole split."""
    level = [root]
    for _ in range(depth):
        below = [[Path(entry.path) for entry in list_folder(folder)[0]] for folder in level]
        level = list(itertools.chain.from_iterable(group for group in below if len(group) <= 50))
        yield from level
