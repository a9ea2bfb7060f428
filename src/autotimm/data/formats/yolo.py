"""YOLO: a text file of boxes or polygons per image, and a YAML file that names the classes and the images.

The paths in the YAML file and in its lists were often written on another computer. Where one leads nowhere, it is tried
with forward slashes and without more and more of its first folders.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from autotimm.config.yaml import load_yaml
from autotimm.data.annotations.outlines import Polygons
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, ordered
from autotimm.data.formats.listing import Listing, near_name, relative, split_of, text
from autotimm.data.formats.object_records import SLACK_SHARE, ImageRecord, ObjectRecord, object_tables
from autotimm.data.image_io import is_image_name
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["Yolo", "read_yolo"]

_SUFFIXES = (".yaml", ".yml")
_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_MOST_CLASSES = 100_000  # ImageNet-21k has 21,000
_SAMPLE = 200  # images whose labels are looked at to recognize them


class Yolo(Format):
    """``data.yaml`` with ``names`` and ``train``, ``val``, ``test``, and a label file per image.

    Each of these keys is a folder, a file with a list of images, or several of them. The labels of ``images/1.jpg`` are
    in ``labels/1.txt``, or beside the image if its path has no ``images``; an image without such a file has no objects.
    A line is the number of the class, then center and size of a box, or the corners of a polygon, as fractions of the
    image. The order of the classes is that of ``names``.

    See:
        https://docs.ultralytics.com/datasets/detect/ and https://docs.ultralytics.com/datasets/segment/
    """

    name = "yolo"
    tasks = ("instance", "detection")

    def see(self, listing: Listing) -> Sighting | None:
        """YAML files with classes and training images; labels without one are seen, but cannot be read."""
        files = _yaml_files(listing)
        if not files:
            missing = "" if listing.file is not None else _missing_yaml(listing)
            return Sighting("YOLO labels", self.tasks, missing=missing) if missing else None
        if _has_polygons(_DataYaml(files[0], listing)):
            return Sighting(f"YOLO labels with polygons ({files[0].name})", self.tasks)
        return Sighting(f"YOLO labels with boxes ({files[0].name})", ("detection",))

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the label files; see the base class."""
        files = _yaml_files(listing) if listing.file is None else [listing.file]
        if len(files) != 1:
            count = f"{len(files)}: {join_names([str(path) for path in files])}" if files else "none"
            cure = ("" if files else _missing_yaml(listing)) or "Give the path of one."
            raise DataError(
                f"{listing.path} must have exactly one YAML file with YOLO's `names` and `train`. Got {count}. {cure}"
            )
        data, report = _DataYaml(files[0], listing), Report(options.strict)
        paths = {split: images for split in _KEYS if (images := data.images(split, report))}
        if "train" not in paths:
            raise DataError(f"{data.path}: `train` leads to no image: {data.content['train']!r}. Correct it.")
        labels = _Labels([path for images in paths.values() for path in images], listing)
        first = next(filter(os.path.isfile, paths["train"]), None)
        if first is not None and not any(map(labels.of, paths["train"])):
            expected = dict.fromkeys([_label_places(first)[0], _label_places(first)[-1]])
            places = " or ".join(relative(place, data.root) for place in expected)
            name = relative(first, data.root)
            raise DataError(f"{data.path}: no training image has a label file. For {name} it would be {places}.")
        labels.report(data.root, notices, report)
        splits = {split: [data.record(path, labels.of(path), report) for path in paths[split]] for split in paths}
        objects = [record for image in splits["train"] for record in image.objects]
        if options.masks and objects and not any(record.outline for record in objects):
            raise DataError(f"{data.path} has boxes and no outlines. Use task='detection'.")
        data.check_names(report)
        names = list(dict.fromkeys(data.names))
        return object_tables(ordered(splits), names, notices, masks=options.masks, report=report)


def read_yolo(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read YOLO labels, see :class:`Yolo`.

    Args:
        folder: The folder, or the YAML file.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Whether samples have masks.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return Yolo().read(Listing(folder), notices, ReadOptions(masks, strict))


def _yaml_files(listing: Listing) -> list[Path]:
    """The YAML files of a folder that name classes and training images; a YAML file that was given is one of them."""
    if listing.file is not None:
        return [listing.file] if listing.file.suffix.lower() in _SUFFIXES else []
    contents = {path: _load(path, quiet=True) for path in listing.files_below(_SUFFIXES, depth=1)}
    return [
        path for path, content in contents.items() if isinstance(content, dict) and {"names", "train"} <= {*content}
    ]


def _load(path: Path, quiet: bool = False) -> Any:
    try:
        return load_yaml(path, as_text=("names",))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        if quiet:
            return None
        first_line = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path} cannot be read as YAML: {first_line}. Correct it.") from error


class _DataYaml:
    """The YAML file, and the images and labels that it leads to."""

    def __init__(self, path: Path, listing: Listing) -> None:
        content = _load(path)
        if not isinstance(content, dict) or "names" not in content:
            raise DataError(f"{path} has no `names`. Write the names of the classes there, as a list.")
        self.path, self.content, self.listing = path, content, listing
        self.names = _class_names(content["names"], path)
        # The corners of a pose follow the box and are not a polygon.
        self.has_points = "kpt_shape" in content
        stated = Path(str(content.get("path") or "."))
        self._base = next((base for base in (path.parent / stated, path.parent) if os.path.isdir(base)), path.parent)
        self.root = Path(os.path.normpath(self._base))

    def check_names(self, report: Report) -> None:
        """Report names that several numbers have, and another number of classes than names."""
        for name, uses in Counter(self.names).items():
            if uses > 1:
                report.add("classes with the name of another", "one class", text(name))
        number = self.content.get("nc")
        if isinstance(number, int) and number != len(self.names):
            problem = f"{self.path.name} says `nc: {number}`, and has {len(self.names)} names."
            report.add_share(problem, "The names count", [self.path.name])

    def images(self, split: str, report: Report | None = None) -> list[Path]:
        """The images of a split, each once; entries that lead to none are reported."""
        key = next((key for key in _KEYS[split] if self.content.get(key)), None)
        entries = self.content[key] if key else []
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list):
            raise DataError(f"{self.path}: `{split}` must be a path or a list of paths. Got {entries!r} instead.")
        paths: dict[Path, None] = {}
        for entry in map(str, entries):
            images = self._expand(entry, split)
            if report is not None:
                images = self._existing(images, report)
            if not images and report is not None:
                report.add(f"entries of {self.path.name} that lead to no image", "left out", f"{key}: {entry}")
            paths |= dict.fromkeys(images)
        return list(paths)

    def _expand(self, entry: str, split: str) -> list[Path]:
        place = _find_place(entry, (self._base, self.path.parent), split)
        if os.path.isdir(place):
            return [image.path for image in self.listing.images_below(place)]
        if place.suffix.lower() == ".txt" and os.path.isfile(place):
            return _images_in_list(place, self._base, split)
        return [place] if is_image_name(place.name) else []

    def _existing(self, images: list[Path], report: Report) -> list[Path]:
        """The images, with the file of nearly the same name in place of one that is missing."""
        listed, folders = set(images), _NearNames(self.listing)
        existing = []
        for path in images:
            files = [] if os.path.isfile(path) else folders.of(path)
            if len(files) == 1 and is_image_name(files[0].name) and files[0] not in listed:
                spelling = f"{relative(path, self.root)} ({text(files[0].name)})"
                report.add("file names that their images write differently", "used all the same", spelling)
                listed.add(path := files[0])
            existing.append(path)
        return existing

    def record(self, path: Path, label: Path | None, report: Report) -> ImageRecord:
        """An image with the objects that its label file lists."""
        name = relative(path, self.root)
        return ImageRecord(path, name, list(self._objects(label, name, report)) if label else (), relative=True)

    def _objects(self, label: Path, name: str, report: Report) -> Iterator[ObjectRecord]:
        seen: set[tuple[float, ...]] = set()
        for number, line in enumerate(_label_lines(label), 1):
            try:
                numbers = tuple(float(word) for word in line.split())
                if numbers in seen:
                    report.add("label lines that repeat another", "left out", f"{name}, line {number}")
                    continue
                seen.add(numbers)
                yield self._object(numbers)
            except ValueError as error:
                report.add("label lines that cannot be used", "left out", f"{name}, line {number} ({error})")

    def _object(self, numbers: Sequence[float]) -> ObjectRecord:
        label, coordinates = numbers[0], np.array(numbers[1:5] if self.has_points else numbers[1:], np.float64)
        if label not in range(len(self.names)):
            raise ValueError(f"class {label:g} of {len(self.names)}")
        if not ((coordinates >= -SLACK_SHARE) & (coordinates <= 1 + SLACK_SHARE)).all():  # written so that NaN fails
            raise ValueError("coordinates outside [0, 1]")
        if len(coordinates) in (4, 5):  # the fifth is a model's confidence
            x, y, width, height = coordinates[:4].tolist()
            return ObjectRecord(self.names[int(label)], (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        if len(coordinates) < 6 or len(coordinates) % 2:
            raise ValueError(f"{len(coordinates)} coordinates")
        return ObjectRecord(self.names[int(label)], None, outline=Polygons((coordinates.reshape(-1, 2),)))


def _class_names(names: Any, path: Path) -> list[str]:
    """The names in the order of their numbers, which some tools write as keys, and some of these in quotes."""
    if isinstance(names, Mapping) and names and all(str(key).isdecimal() for key in names):
        by_number = {int(key): name for key, name in names.items()}
        if max(by_number) < _MOST_CLASSES:
            return [str(by_number.get(index, index)) for index in range(max(by_number) + 1)]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    raise DataError(f"{path}: `names` must be a list, or a mapping from 0, 1, ... Got {names!r} instead.")


def _has_polygons(data: _DataYaml) -> bool:
    """Whether the first labels of a data set have outlines: more numbers than a box."""
    images = data.images("train")[:_SAMPLE]
    labels = _Labels(images, data.listing)
    lines = (line.split() for label in map(labels.of, images) if label for line in _label_lines(label))
    return not data.has_points and any(len(words) > 6 and len(words) % 2 for words in lines)


def _find_place(entry: str, bases: Sequence[Path], split: str) -> Path:
    r"""The file or folder that an entry of the YAML file names; where it should be if there is none.

    Roboflow writes ``../train/images`` beside ``train/``, others ``/content/data/train/images`` or ``train\images``.
    """
    places = [base / spelling for spelling in _spellings(entry, split) for base in bases]
    return next((Path(os.path.normpath(place)) for place in places if os.path.exists(place)), places[0])


def _images_in_list(file: Path, root: Path, split: str) -> list[Path]:
    """The images that a list names, relative to the root of the data, or to the list if they begin with ``./``.

    If none of them exists, the same number of first folders is left out of all lines: ``data/images/1.png`` is what
    darknet is given in the folder above.
    """
    content = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    lines = list(
        dict.fromkeys(line for line in map(str.strip, content.splitlines()) if is_image_name(_posix(line).name))
    )
    written = [file.parent / line if line.startswith("./") else root / line for line in lines]
    if not any(os.path.isfile(path) for path in written):
        spellings = [_spellings(line, split) for line in lines]
        for number in range(1, max(map(len, spellings), default=0)):
            for base in (root, file.parent):
                paths = [base / ways[min(number, len(ways) - 1)] for ways in spellings]
                # Lines that become equal have lost what tells them apart.
                if any(os.path.isfile(path) for path in paths) and len(set(paths)) == len(paths):
                    return paths
    return [Path(os.path.normpath(path)) for path in written]


def _spellings(entry: str, split: str) -> list[str]:
    """A path as it is, with forward slashes, then without more and more of its first folders.

    The folder that names the split stays: ``valid/images`` is not ``images``.
    """
    parts = _posix(entry).parts
    spellings = [entry, str(_posix(entry))]
    for start in range(1, len(parts)):
        rest = parts[start:-1] if is_image_name(parts[-1]) else parts[start:]
        kept_splits = {split_of(part) for part in rest} - {None}
        dropped = split_of(parts[start - 1])
        if dropped and dropped not in kept_splits and (dropped == split or not kept_splits):
            break
        spellings.append("/".join(parts[start:]))
    return spellings


def _posix(entry: str) -> PurePosixPath:
    return PurePosixPath(entry.replace("\\", "/"))


class _NearNames:
    """Finds files by names that differ only in how tools write them."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def of(self, path: Path) -> list[Path]:
        """The files in the folder of a path with nearly its name."""
        return self.inside(path.parent).get(near_name(path.name), [])

    def inside(self, folder: Path) -> Mapping[str, list[Path]]:
        """The files of a folder by what nearly equal names have in common."""
        if folder not in self._folders:
            names: dict[str, list[Path]] = {}
            for file in self._listing.files(folder) if os.path.isdir(folder) else ():
                names.setdefault(near_name(file.name), []).append(file)
            self._folders[folder] = names
        return self._folders[folder]


class _Labels:
    """The label files of images: of the same name, else of nearly the same that no other image has.

    Args:
        images: The images of all splits.
        listing: The data.
    """

    def __init__(self, images: Sequence[Path], listing: Listing) -> None:
        self._images, self._folders = [path for path in images if os.path.isfile(path)], _NearNames(listing)
        self._files = {path: label for path in self._images if (label := _label_file(path)) is not None}
        self._used = set(self._files.values())
        self._differing: list[tuple[Path, Path]] = []
        for path in self._images:
            if path not in self._files and (label := self._nearly(path)) is not None:
                self._files[path] = label
                self._used.add(label)
                self._differing.append((path, label))

    def of(self, image: Path) -> Path | None:
        """The label file of an image, if it has one."""
        return self._files.get(image)

    def _nearly(self, image: Path) -> Path | None:
        files = [file for place in _label_places(image) for file in self._folders.of(place) if file not in self._used]
        return files[0] if len(files) == 1 else None

    def report(self, root: Path, notices: list[str], report: Report) -> None:
        """Report label files without an image, and such that are named differently; count images without one."""
        for image, label in self._differing:
            spelling = f"{relative(label, root)} ({text(image.name)})"
            report.add("label files that their images write differently", "used all the same", spelling)
        for label in self._without_image():
            report.add("label files without an image", "left out", relative(label, root))
        # No problem by itself: it is how YOLO marks an image without objects.
        if empty := [relative(image, root) for image in self._images if image not in self._files]:
            count = f"{len(empty)} images have no label file"
            notices.append(f"{count}, and count as images without objects: {join_names(empty)}.")

    def _without_image(self) -> list[Path]:
        """The label files, in the folders where labels were looked for, whose images are nowhere."""
        pairs = ((path.parent, place.parent) for path in self._images for place in _label_places(path))
        stems: dict[Path, set[str]] = {}
        for images, labels in dict.fromkeys(pairs):
            files = (file for of_name in self._folders.inside(images).values() for file in of_name)
            stems.setdefault(labels, set()).update(near_name(file.stem) for file in files if is_image_name(file.name))
        return [
            file
            for folder in sorted(stems, key=os.fsencode)
            for files in self._folders.inside(folder).values()
            for file in files
            if file.suffix.lower() == ".txt" and file not in self._used and near_name(file.stem) not in stems[folder]
            if _is_yolo(file)
        ]


def _label_places(image: Path) -> list[Path]:
    """Where the labels of an image may be: in ``labels`` instead of ``images``, then beside it."""
    beside = image.with_suffix(".txt")
    folders = beside.parts[:-1]
    found = [index for index, name in enumerate(folders) if name.lower() == "images"]
    if not found:
        return [beside]
    index = found[-1]
    images = folders[index]
    names = sorted(("labels", "Labels", "LABELS"), key=lambda name: name.islower() != images.islower())
    return [*(Path(*folders[:index], name, *beside.parts[index + 1 :]) for name in names), beside]


def _label_file(image: Path) -> Path | None:
    return next((path for path in _label_places(image) if os.path.isfile(path)), None)


def _label_lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8-sig", "replace").splitlines() if line.strip()]


def _missing_yaml(listing: Listing) -> str:
    """What to write if there are YOLO labels and nothing names their classes, as Label Studio and CVAT export them.

    Returns:
        A sentence; empty if there are no labels.
    """
    root = listing.root
    labelled = [
        (image, label)
        for image in listing.images_below()[:_SAMPLE]
        if (label := _label_file(image.path)) is not None and _is_yolo(label)
    ]
    if not labelled:
        return ""
    image, label = min(labelled, key=lambda pair: split_of(pair[0].name) != "train")
    folder = image.name.rpartition("/")[0] or "."
    train = "train.txt" if os.path.isfile(root / "train.txt") else folder
    files = [place / name for place in (root, label.parent) for name in ("classes.txt", "obj.names")]
    names = next(
        (_label_lines(path) for path in files if os.path.isfile(path)), ["name of class 0", "name of class 1", "..."]
    )
    return (
        f"There are YOLO labels ({relative(label, root)}), and no YAML file names the classes and the images: "
        f"write a data.yaml with the lines `names: [{join_names(names, 20)}]` and `train: {train}`."
    )


def _is_yolo(label: Path) -> bool:
    try:
        numbers = [[float(word) for word in line.split()] for line in _label_lines(label)[:5]]
    except (OSError, ValueError):
        return False
    return any(numbers) and all(len(line) >= 5 and line[0].is_integer() for line in numbers)
