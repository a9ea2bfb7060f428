"""``metadata.jsonl`` of Hugging Face's image folders: a line of JSON per image, with a label or with objects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, ordered
from autotimm.data.formats.image_finder import ImageFinder, find_by_split, note_unlisted
from autotimm.data.formats.listing import Listing, in_byte_order, relative
from autotimm.data.formats.object_records import (
    ImageRecord,
    ObjectRecord,
    is_set,
    object_tables,
    sized_box,
    stated_area,
)
from autotimm.data.table import ImageTable, Table
from autotimm.errors import DataError, join_names
from autotimm.serialization import json_problem, parse_json

__all__ = ["METADATA_FILE", "MetadataLabels", "MetadataObjects"]

METADATA_FILE = "metadata.jsonl"
"""What the file is called."""

_IMAGE_KEYS = ("file_name", "image_file_name")
_LABEL_KEYS = ("label", "labels", "class", "class_name", "category")
_CATEGORY_KEYS = ("categories", "category", "labels", "label")
_SAMPLE = 100  # lines that are looked at to recognize what a file is for

_Label = int | str


class MetadataObjects(Format):
    """``metadata.jsonl`` with objects: ``{"file_name": "1.jpg", "objects": {"bbox": [[...]], "categories": [...]}}``.

    Boxes are x, y, width and height in pixels. ``objects`` may be a list of objects too. Classes that are numbers keep
    their order, others are sorted by name. A line whose list of boxes is empty is an image without objects. The split
    is named by the path of the image or of the file.

    See:
        https://huggingface.co/docs/datasets/image_dataset#object-detection
    """

    name = "jsonl"
    tasks = ("detection",)

    def see(self, listing: Listing) -> Sighting | None:
        """Files whose lines have objects with boxes."""
        files = [path for path in _metadata_files(listing) if any(map(_has_boxes, _first(path)))]
        return Sighting(f"{_count(files)} with boxes", self.tasks) if files else None

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the files; see the base class."""
        report = Report(options.strict)
        entries = _read(listing, notices, report)
        labels: dict[str, _Label] = {}
        splits: dict[str, list[ImageRecord]] = {}
        for entry in entries:
            try:
                objects = list(_objects(entry.content))
            except ValueError as error:
                report.add("lines that cannot be used", "left out with their images", f"{entry.where} ({error})")
                continue
            labels |= {record.label: label for record, label in objects}
            image = ImageRecord(entry.path, entry.id, [record for record, _ in objects])
            splits.setdefault(entry.split, []).append(image)
        return object_tables(splits, _sorted_names(labels), notices, report=report)


class MetadataLabels(Format):
    """``metadata.jsonl`` with labels: ``{"file_name": "1.jpg", "label": "cat"}``, or a list of labels for several.

    Classes that are numbers keep their order, others are sorted by name. The split is named by the path of the image or
    of the file.

    See:
        https://huggingface.co/docs/datasets/image_dataset#image-classification
    """

    name = "jsonl"
    tasks = ("classification",)

    def see(self, listing: Listing) -> Sighting | None:
        """Files whose lines have a label."""
        files = [path for path in _metadata_files(listing) if any(map(_label_key, _first(path)))]
        return Sighting(f"{_count(files)} with labels", self.tasks) if files else None

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, ImageTable]:
        """Read the files; see the base class."""
        report = Report(options.strict)
        splits: dict[str, dict[str, tuple[_Entry, tuple[_Label, ...]]]] = {}
        for entry in _read(listing, notices, report):
            try:
                labels = _labels(entry.content)
            except ValueError as error:
                report.add("lines that cannot be used", "left out with their images", f"{entry.where} ({error})")
                continue
            if not os.path.isfile(entry.path):
                report.add("missing images", "left out", entry.id)
            elif splits.setdefault(entry.split, {}).setdefault(entry.id, (entry, labels))[1] != labels:
                raise DataError(f"{entry.where} gives {entry.id} another label than a line before. Keep one of them.")
        report.close(notices)
        if not splits:
            raise DataError(f"No image to train on is left. {' '.join(notices)}".rstrip())
        train = ordered(splits)["train"]
        class_names = _sorted_names({str(label): label for _, labels in train.values() for label in labels})
        if not class_names:
            raise DataError(f"There is no class: no training image has a label. {' '.join(notices)}".rstrip())
        contents = [entry.content for images in splits.values() for entry, _ in images.values()]
        is_multi_label = any(isinstance(content[_label_key(content)], list) for content in contents)
        return {
            split: _label_table(list(images.values()), class_names, is_multi_label)
            for split, images in ordered(splits).items()
        }


class _Entry(NamedTuple):
    """A line of a file.

    Attributes:
        path: The image.
        id: Its id.
        split: Its split.
        content: What the line says.
        where: File and line, for people.
    """

    path: Path
    id: str
    split: str
    content: Mapping[str, Any]
    where: str


def _metadata_files(listing: Listing) -> list[Path]:
    if listing.file is not None:
        return [listing.file] if listing.file.suffix.lower() == ".jsonl" else []
    return [path for path in listing.files_below((".jsonl",)) if path.name.lower() == METADATA_FILE]


def _count(files: Sequence[Path]) -> str:
    return f"{len(files)} {METADATA_FILE}" + (" files" if len(files) > 1 else "")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers from 1, without blank ones."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if content := line.removeprefix(b"\xef\xbb\xbf").strip():
                    yield number, content
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error


def _first(path: Path) -> Iterator[Mapping[str, Any]]:
    for _, line in islice(_lines(path), _SAMPLE):
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _read(listing: Listing, notices: list[str], report: Report) -> list[_Entry]:
    """The lines of all files whose image is clear.

    Raises:
        DataError: If there is no file.
    """
    entries, finders = list[_Entry](), list[ImageFinder]()
    files = _metadata_files(listing)
    if not files:
        raise DataError(f"There is no {METADATA_FILE} in {listing.path}. Give a folder with one, or its path.")
    for file in files:
        named = list(_named(file, relative(file, listing.base), report))
        places, found = find_by_split(listing, file, [(image, "") for image, _, _ in named], report)
        finders += found
        entries += [
            _Entry(path, relative(path, listing.base), split, content, where)
            for (_, content, where), (path, split) in zip(named, places, strict=True)
            if path is not None
        ]
    note_unlisted(listing, finders, notices)
    return entries


def _named(file: Path, name: str, report: Report) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """The image that each line names, what the line says, and where it is, for people."""
    for number, line in _lines(file):
        where = f"{name}, line {number}"
        try:
            content = parse_json(line)
            image = _image(content)
        except ValueError as error:
            report.add("lines that cannot be used", "left out with their images", f"{where} ({json_problem(error)})")
        else:
            yield image, content, where


def _image(content: Any) -> str:
    if not isinstance(content, dict):
        raise ValueError("no object of JSON")
    name = next((content[key] for key in _IMAGE_KEYS if content.get(key)), None)
    if not isinstance(name, str):
        raise ValueError(f"no {_IMAGE_KEYS[0]}")
    return name


def _label_key(entry: Mapping[str, Any]) -> str:
    """The key of the label; empty if there is none."""
    return next((key for key in _LABEL_KEYS if entry.get(key) is not None), "")


def _labels(entry: Mapping[str, Any]) -> tuple[_Label, ...]:
    """The labels of an image.

    Raises:
        ValueError: If there is none.
    """
    value = entry.get(_label_key(entry))
    return tuple(map(_label, value)) if isinstance(value, list) else (_label(value),)


def _label(value: Any) -> _Label:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes 3.0 where one value of a column is missing
    if not isinstance(value, (int, str)) or (isinstance(value, str) and not value.strip()):
        raise ValueError("no label" if value is None or value == "" else f"the label {value!r}")
    return value.strip() if isinstance(value, str) else value


def _has_boxes(entry: Mapping[str, Any]) -> bool:
    objects = entry.get("objects")
    first = objects[0] if isinstance(objects, list) and objects else objects
    return isinstance(first, dict) and "bbox" in first


def _rows(objects: Any) -> list[Mapping[str, Any]]:
    """Objects as a list, each with its keys, from such a list or from a list for each key.

    Raises:
        ValueError: If they are neither, or the lists differ in length.
    """
    if isinstance(objects, list) and all(isinstance(one, dict) for one in objects):
        return objects
    columns = (
        {key: values for key, values in objects.items() if isinstance(values, list)}
        if isinstance(objects, dict)
        else {}
    )
    if "bbox" not in columns:
        raise ValueError("no objects with a list bbox")
    number = len(columns["bbox"])
    if different := [key for key, values in columns.items() if len(values) != number]:
        raise ValueError(f"{number} boxes and {len(columns[different[0]])} {different[0]}")
    return [{key: values[row] for key, values in columns.items()} for row in range(number)]


def _objects(entry: Mapping[str, Any]) -> Iterator[tuple[ObjectRecord, _Label]]:
    """The objects of a line, each with its class as it is written.

    Raises:
        ValueError: If the line has no boxes, or a box no class: without it the image would be taught as empty there.
    """
    for one in _rows(entry.get("objects")):
        label = _label(next((one[key] for key in _CATEGORY_KEYS if one.get(key) is not None), None))
        box = sized_box(one.get("bbox"))
        yield ObjectRecord(str(label), box, is_set(one.get("iscrowd")), area=stated_area(one.get("area"))), label


def _sorted_names(labels: Mapping[str, _Label]) -> list[str]:
    """The classes: numbers in their order, or names in byte order."""
    if all(isinstance(label, int) for label in labels.values()):
        return sorted(labels, key=lambda name: int(labels[name]))
    return in_byte_order(labels)


def _label_table(
    images: Sequence[tuple[_Entry, tuple[_Label, ...]]], class_names: Sequence[str], is_multi_label: bool
) -> ImageTable:
    number = {name: index for index, name in enumerate(class_names)}
    paths, ids = [entry.path for entry, _ in images], [entry.id for entry, _ in images]
    numbers = [[number.get(str(label), -1) for label in labels] for _, labels in images]
    if unknown := sorted({str(label) for _, labels in images for label in labels} - number.keys()):
        raise DataError(
            f"{images[0][0].where.partition(',')[0]} has labels that the training images do not have: "
            f"{join_names(unknown)}. Correct or remove these lines."
        )
    if not is_multi_label:
        return ImageTable(paths, ids, torch.tensor([row[0] for row in numbers]), class_names)
    bits = torch.zeros(len(numbers), len(class_names), dtype=torch.uint8)
    for index, row in enumerate(numbers):
        bits[index, row] = 1
    return ImageTable(paths, ids, bits, class_names)
