"""Where a COCO data set keeps its JSON files and its images.

COCO: a JSON file with all boxes and outlines of a split.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from autotimm.data.annotations.outlines import read_outline
from autotimm.data.formats.listing import list_folder
from autotimm.data.formats.object_records import Record, Report, Thing, object_tables
from autotimm.data.formats.split_layout import (
    descend,
    files_below,
    images_below,
    listed,
    ordered,
    read_lists,
    relative,
    split_of,
)
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["Images", "coco_files", "has_outlines", "is_coco", "read_coco"]


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
            f"{root} has several COCO files, and none is named after train, val or test: {join_names(unnamed)}. "
            "Give the path of the one to train on, or rename them."
        )
    if unnamed:
        notices.append(f"COCO files that are not named after a split are not read: {join_names(unnamed)}.")
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


def read_coco(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read COCO annotations: the official ``annotations/instances_*.json``, Roboflow's files per folder, or one file.

    One file for all may have lists beside it (``train.txt``, ``val.txt``). Classes are in the order of their category
    ids in the training file, whatever gaps these have. A category that only heads others and has no objects, as
    Roboflow adds one, is no class. Crowds stay crowds; an image without annotations is an image without objects.

    Args:
        folder: The folder, or a JSON file.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Whether samples have masks.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table for each split that there is.

    Raises:
        DataError: If the data cannot be used.

    See:
        https://cocodataset.org/#format-data
    """
    root = folder.parent if folder.is_file() else descend(folder)
    files = {"train": folder} if folder.is_file() else coco_files(root, notices)
    if not files:
        raise DataError(f"There is no COCO file in {folder}. Give a folder with one, or a JSON file.")
    report = Report(strict)
    sheets = {split: _Sheet(path, root, split, masks, report) for split, path in ordered(files).items()}
    names = _class_names(list(sheets.values()), notices)
    splits = {split: sheet.records() for split, sheet in sheets.items()}
    things = [thing for one in splits["train"] for thing in one.things]
    if masks and things and not any(thing.outline for thing in things):
        raise DataError(f"{files['train']} has boxes and no outlines. Use task='detection'.")
    lists = read_lists(root) or read_lists(files["train"].parent)
    if len(files) == 1 and lists:
        splits = listed({one.id: one for one in splits["train"]}, lists, notices, report)
    return object_tables(splits, names, notices, masks=masks, report=report)


class _Sheet:
    """One JSON file."""

    def __init__(self, path: Path, root: Path, split: str, masks: bool, report: Report) -> None:
        self.path, self.root, self.split, self.masks, self.report = path, root, split, masks, report
        content = _load(path)
        self.images: list[dict[str, Any]] = self._listed(content, "images", ("id", "file_name"))
        self.categories: list[dict[str, Any]] = self._distinct(self._listed(content, "categories", ("id", "name")))
        self.annotations: list[dict[str, Any]] = self._listed(content, "annotations", ("image_id", "category_id"))
        self.used = {one["category_id"] for one in self.annotations}

    def _listed(self, content: Any, key: str, needed: Sequence[str]) -> list[dict[str, Any]]:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{self.path} has no list of {key!r}, as COCO has. Check the file.")
        for number, entry in enumerate(entries):
            for name in needed:
                value = entry.get(name) if isinstance(entry, dict) else None
                if isinstance(value, float) and value.is_integer() and name.endswith("id"):
                    value = entry[name] = int(value)  # pandas writes 3.0 where one of a column is missing
                if not isinstance(value, (int, str)):
                    raise DataError(
                        f"{self.path}: entry {number} of {key!r} has no {name!r} as COCO has. Check the file."
                    )
        return entries

    def _distinct(self, categories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The categories, each once.

        Raises:
            DataError: If two share an id: nothing says which of them an object is.
        """
        by_id: dict[Any, dict[str, Any]] = {}
        for one in categories:
            first = by_id.setdefault(one["id"], one)
            if first["name"] != one["name"]:
                both = f"{first['name']} and {one['name']}"
                raise DataError(f"{self.path}: the categories {both} share the id {one['id']!r}. Number them anew.")
        return list(by_id.values())

    def _own_images(self) -> list[dict[str, Any]]:
        """The images whose id is theirs alone: nothing says which of several an object is in."""
        by_id: dict[Any, dict[str, dict[str, Any]]] = {}
        for one in self.images:
            same = by_id.setdefault(one["id"], {})
            name = str(one["file_name"])
            if name in same:
                self.report.add("images that are listed twice with the same id", "used once", name)
            same.setdefault(name, one)
        for id, same in by_id.items():
            if len(same) > 1:
                for name in same:
                    self.report.add("images that share their id with others", "left out", f"{name} (id {id!r})")
        return [one for same in by_id.values() if len(same) == 1 for one in same.values()]

    def records(self) -> list[Record]:
        """The images with their objects, in the order of the file."""
        own = self._own_images()
        images = Images(self.root, self.path, self.split, [str(one["file_name"]) for one in self.images])
        names = {one["id"]: str(one["name"]) for one in self.categories}
        known = {one["id"] for one in self.images}
        things: dict[Any, list[Thing]] = {}
        for number, one in enumerate(self.annotations):
            if one["image_id"] not in known or one["category_id"] not in names:
                what = "annotations of images or categories that the file does not list"
                self.report.add(what, "left out", f"{relative(self.path, self.root)} #{one.get('id', number)}")
                continue
            things.setdefault(one["image_id"], []).append(self._thing(one, names[one["category_id"]]))
        return [self._record(one, images.find(str(one["file_name"])), things) for one in own]

    def _record(self, one: Mapping[str, Any], path: Path, things: Mapping[Any, list[Thing]]) -> Record:
        return Record(path, relative(path, self.root), things.get(one["id"], ()), _size(one))

    def _thing(self, one: Mapping[str, Any], label: str) -> Thing:
        box, crowd = _box(one.get("bbox")), bool(one.get("iscrowd"))
        outline = None
        if self.masks or box is None:
            try:
                outline = read_outline(one.get("segmentation"))
            except ValueError as error:
                name = f"{relative(self.path, self.root)} #{one.get('id')} ({error})"
                self.report.add("outlines that cannot be read", "their objects neither learned nor counted", name)
                crowd = True
        return Thing(label, box, crowd, outline)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    except ValueError as error:
        raise DataError(f"{path} is no valid JSON: {error}. Write it again.") from error


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        width, height = int(image["width"]), int(image["height"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _box(bbox: Any) -> tuple[float, float, float, float] | None:
    """COCO's x, y, width, height as x1, y1, x2, y2; ``None`` if there is none, nan if it is none."""
    if not bbox:
        return None
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return (math.nan,) * 4
    return x, y, x + width, y + height


def _class_names(sheets: Sequence[_Sheet], notices: list[str]) -> list[str]:
    """Names in the order of the category ids of the training file, then what other files add; heads left out."""
    names: dict[str, None] = {}
    heads: dict[str, None] = {}
    used = {str(one["name"]) for sheet in sheets for one in sheet.categories if one["id"] in sheet.used}
    for sheet in sheets:
        for one in sorted(sheet.categories, key=lambda one: (str(type(one["id"])), one["id"])):
            name = str(one["name"])
            heading = any(str(other.get("supercategory")) == name for other in sheet.categories if other is not one)
            (heads if heading and name not in used else names)[name] = None
    if heads:
        notices.append(f"Categories that head others and have no objects are no classes: {join_names(list(heads))}.")
    train = [str(one["name"]) for one in sheets[0].categories]
    if twice := sorted({name for name in train if train.count(name) > 1}):
        notices.append(f"{sheets[0].path.name}: categories of the same name are one class: {join_names(twice)}.")
    return list(names)
