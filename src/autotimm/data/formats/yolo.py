"""Where YOLO's files lead: to images, lists and labels whose paths were often written on another computer.

YOLO: a text file of boxes or polygons per image, and a YAML file that says the classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from autotimm.config.yaml import load_yaml
from autotimm.data.annotations.outlines import Polygons
from autotimm.data.formats.listing import Found
from autotimm.data.formats.object_records import Record, Report, Thing, object_tables
from autotimm.data.formats.split_layout import descend, files_below, images_below, ordered, relative, split_of
from autotimm.data.image_io import is_image_name
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = [
    "find_place",
    "has_polygons",
    "label_file",
    "label_lines",
    "label_places",
    "listed_images",
    "read_yolo",
    "yaml_lacking",
    "yolo_files",
]


def _ways(entry: str, split: str) -> list[str]:
    """A path as it stands, with slashes, then with fewer and fewer of its first folders: those of another computer.

    The folder that says the split stays: ``valid/images`` is not ``images``.
    """
    parts = _slashed(entry).parts
    ways = [entry, str(_slashed(entry))]
    for start in range(1, len(parts)):
        rest = parts[start:-1] if is_image_name(parts[-1]) else parts[start:]
        left = {split_of(part) for part in rest} - {None}
        lost = split_of(parts[start - 1])
        if lost and lost not in left and (lost == split or not left):
            break
        ways.append("/".join(parts[start:]))
    return ways


def _slashed(entry: str) -> PurePosixPath:
    return PurePosixPath(entry.replace("\\", "/"))


def find_place(entry: str, bases: Sequence[Path], split: str) -> Path:
    r"""The file or folder that an entry of the YAML file names; where it should be if there is none.

    Roboflow writes ``../train/images`` beside ``train/``, others ``/content/data/train/images`` or ``train\images``.
    """
    tries = [base / way for way in _ways(entry, split) for base in bases]
    return next((Path(os.path.normpath(place)) for place in tries if place.exists()), tries[0])


def listed_images(file: Path, root: Path, split: str) -> list[Path]:
    """The images that a list names, relative to the root of the data, or to the list if they begin with ``./``.

    If not one is there, the same number of first folders is left out of all lines: ``data/images/1.png`` is what
    darknet is given in the folder above.
    """
    text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    lines = list(
        dict.fromkeys(line for line in map(str.strip, text.splitlines()) if is_image_name(_slashed(line).name))
    )
    written = [file.parent / line if line.startswith("./") else root / line for line in lines]
    if not any(path.is_file() for path in written):
        ways = [_ways(line, split) for line in lines]
        for number in range(1, max(map(len, ways), default=0)):
            for base in (root, file.parent):
                tries = [base / way[min(number, len(way) - 1)] for way in ways]
                # Lines that become one have lost what tells them apart.
                if any(path.is_file() for path in tries) and len(set(tries)) == len(tries):
                    return tries
    return [Path(os.path.normpath(path)) for path in written]


def label_places(image: Path) -> list[Path]:
    """Where the labels of an image may be: in ``labels`` instead of ``images``, then beside it."""
    beside = image.with_suffix(".txt")
    head, folder, tail = str(beside).rpartition(f"{os.sep}images{os.sep}")
    return [Path(head + f"{os.sep}labels{os.sep}" + tail), beside] if folder else [beside]


def label_file(image: Path) -> Path | None:
    """The file with the labels of an image, if there is one."""
    return next((path for path in label_places(image) if path.is_file()), None)


def label_lines(path: Path) -> list[str]:
    """The lines of a label file that are not empty."""
    return [line for line in path.read_text("utf-8-sig", "replace").splitlines() if line.strip()]


def yaml_lacking(root: Path, images: Sequence[Found]) -> str:
    """What to write if there are YOLO labels and nothing names their classes, as Label Studio and CVAT leave them.

    Args:
        root: The root of the data.
        images: The images below it.

    Returns:
        A sentence, or nothing if there are no labels.
    """
    labelled = [(one, label) for one in images[:200] if (label := label_file(one.path)) is not None and _is_yolo(label)]
    if not labelled:
        return ""
    image, label = min(labelled, key=lambda one: split_of(one[0].name) != "train")
    folder = image.name.rpartition("/")[0] or "."
    train = "train.txt" if (root / "train.txt").is_file() else folder
    names = [place / name for place in (root, label.parent) for name in ("classes.txt", "obj.names")]
    stated = next(
        (label_lines(path) for path in names if path.is_file()), ["name of class 0", "name of class 1", "..."]
    )
    return (
        f"There are YOLO labels ({relative(label, root)}), and no YAML file says the classes and where the images are: "
        f"write a data.yaml with the lines `names: [{join_names(stated, 20)}]` and `train: {train}`."
    )


def _is_yolo(label: Path) -> bool:
    try:
        numbers = [[float(word) for word in line.split()] for line in label_lines(label)[:5]]
    except (OSError, ValueError):
        return False
    return any(numbers) and all(len(line) >= 5 and line[0].is_integer() for line in numbers)


_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_SLACK = 0.01  # shares of an image that tools round beyond its border


def yolo_files(root: Path) -> list[Path]:
    """The YAML files in a folder that name classes and training images."""
    return [
        path
        for path in files_below(root, (".yaml", ".yml"), depth=1)
        if isinstance(content := _load(path, quiet=True), dict) and "names" in content and "train" in content
    ]


def has_polygons(file: Path) -> bool:
    """Whether the first labels of a data set have outlines: more numbers than a box."""
    sheet = _Sheet(file)
    labels = [label for path in sheet.images("train")[:200] if (label := label_file(path)) is not None]
    lines = (line.split() for path in labels for line in label_lines(path))
    return not sheet.has_points and any(len(words) > 6 and len(words) % 2 for words in lines)


def read_yolo(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read YOLO labels: ``data.yaml`` with ``names`` and ``train``, ``val``, ``test``.

    Each of these is a folder, a file with a list of images, or several of them. The labels of ``images/1.jpg`` are in
    ``labels/1.txt``, or beside the image if its path has no ``images``; an image without such a file has no objects. A
    line is the number of the class, then center and size of a box, or the corners of a polygon, as shares of the image.
    The order of the classes is that of ``names``.

    Paths that lead nowhere are tried with slashes and without their first folders, which may be another computer's.

    Args:
        folder: The folder, or the YAML file.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Whether samples have masks.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table for each split that there is.

    Raises:
        DataError: If the data cannot be used.

    See:
        https://docs.ultralytics.com/datasets/detect/ and https://docs.ultralytics.com/datasets/segment/
    """
    files = [folder] if folder.is_file() else yolo_files(descend(folder))
    if len(files) != 1:
        found = f"several: {join_names([str(path) for path in files])}" if files else "none"
        cure = ("" if files else yaml_lacking(root := descend(folder), images_below(root))) or "Give the path of one."
        raise DataError(f"{folder} must have one YAML file of YOLO's kind. There is {found}. {cure}")
    sheet, report = _Sheet(files[0]), Report(strict)
    splits = {split: [sheet.record(path, report) for path in sheet.images(split, report)] for split in _KEYS}
    splits = {split: records for split, records in splits.items() if records}
    if "train" not in splits:
        raise DataError(f"{files[0]}: there is no image in what `train` names: {sheet.content['train']!r}. Correct it.")
    first = next((one for one in splits["train"] if one.path.is_file()), None)
    if first is not None and not any(label_file(one.path) for one in splits["train"]):
        places = " or ".join(relative(place, Path(os.path.normpath(sheet.root))) for place in label_places(first.path))
        raise DataError(f"{files[0]}: no image to train on has a label file. That of {first.id} would be {places}.")
    things = [thing for one in splits["train"] for thing in one.things]
    if masks and things and not any(thing.outline for thing in things):
        raise DataError(f"{files[0]} is about boxes without outlines. Use task='detection'.")
    return object_tables(ordered(splits), sheet.names, notices, masks=masks, report=report)


def _load(path: Path, quiet: bool = False) -> Any:
    try:
        return load_yaml(path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        if quiet:
            return None
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path} cannot be read as YAML: {first}. Correct it.") from error


class _Sheet:
    """The YAML file, and what it leads to."""

    def __init__(self, path: Path) -> None:
        content = _load(path)
        if not isinstance(content, dict) or "names" not in content:
            raise DataError(f"{path} has no `names`. Write the names of the classes there, as a list.")
        self.path, self.content = path, content
        self.names = _names(content["names"], path)
        # Corners of a pose follow the box and are no polygon.
        self.has_points = "kpt_shape" in content
        stated = Path(str(content.get("path") or "."))
        self.root = next((base for base in (path.parent / stated, path.parent) if base.is_dir()), path.parent)

    def images(self, split: str, report: Report | None = None) -> list[Path]:
        """The images of a split, each once; what leads to none is reported."""
        key = next((key for key in _KEYS[split] if self.content.get(key)), None)
        entries = self.content[key] if key else []
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list):
            raise DataError(f"{self.path}: `{split}` must be a path or a list of paths. Got {entries!r} instead.")
        found: dict[Path, None] = {}
        for entry in map(str, entries):
            images = self._expand(entry, split)
            if not images and report is not None:
                report.add(f"entries of {self.path.name} that lead to no image", "left out", f"{key}: {entry}")
            found |= dict.fromkeys(images)
        return list(found)

    def _expand(self, entry: str, split: str) -> list[Path]:
        place = find_place(entry, (self.root, self.path.parent), split)
        if place.is_dir():
            return [one.path for one in images_below(place)]
        if place.suffix.lower() == ".txt" and place.is_file():
            return listed_images(place, self.root, split)
        return [place] if is_image_name(place.name) else []

    def record(self, path: Path, report: Report) -> Record:
        """An image with the objects that its label file lists."""
        name = relative(path, Path(os.path.normpath(self.root)))
        label = label_file(path)
        return Record(path, name, list(self._things(label, name, report)) if label else (), shares=True)

    def _things(self, label: Path, name: str, report: Report) -> Iterator[Thing]:
        for number, line in enumerate(label_lines(label), 1):
            try:
                yield self._thing([float(word) for word in line.split()])
            except ValueError as error:
                report.add("label lines that cannot be used", "left out", f"{name}, line {number} ({error})")

    def _thing(self, numbers: Sequence[float]) -> Thing:
        label, shares = numbers[0], np.array(numbers[1:5] if self.has_points else numbers[1:], np.float64)
        if label not in range(len(self.names)):
            raise ValueError(f"class {label:g} of {len(self.names)}")
        if not ((shares >= -_SLACK) & (shares <= 1 + _SLACK)).all():  # so written that nan fails
            raise ValueError("coordinates that are no shares of the image")
        if len(shares) in (4, 5):  # the fifth is a model's confidence
            x, y, width, height = shares[:4].tolist()
            return Thing(self.names[int(label)], (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        if len(shares) < 6 or len(shares) % 2:
            raise ValueError(f"{len(shares)} coordinates")
        return Thing(self.names[int(label)], None, outline=Polygons((shares.reshape(-1, 2),)))


def _names(given: Any, path: Path) -> list[str]:
    if isinstance(given, Mapping) and all(isinstance(key, int) for key in given) and given:
        return [str(given.get(index, index)) for index in range(max(given) + 1)]
    if isinstance(given, list) and given:
        return [str(name) for name in given]
    raise DataError(f"{path}: `names` must be a list, or a mapping from 0, 1, ... Got {given!r} instead.")
