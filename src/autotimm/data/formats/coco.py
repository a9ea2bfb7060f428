"""COCO: a JSON file with the boxes and outlines of a split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotimm.data.annotations.outlines import read_outline
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, listed, ordered, read_lists
from autotimm.data.formats.image_finder import ImageFinder, note_unlisted
from autotimm.data.formats.json_files import contains, load_json
from autotimm.data.formats.listing import Listing, relative, split_of
from autotimm.data.formats.object_records import (
    ImageRecord,
    ObjectRecord,
    has_area,
    is_set,
    object_tables,
    sized_box,
    stated_area,
)
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["Coco", "read_coco"]

_KEYS = tuple(re.compile(rb'"%s"\s*:\s*\[' % key) for key in (b"images", b"annotations", b"categories"))
_OUTLINE = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[?\s*-?[\d.]|\{\s*")')


class Coco(Format):
    """The official ``annotations/instances_*.json``, Roboflow's files per folder, or one file.

    One file for all may have split lists beside it (``train.txt``, ``val.txt``). Classes are in the order of their
    category ids in the training file, whatever gaps these have. A category that is only the parent of others and has no
    objects, as Roboflow adds one, is not a class. Crowds stay crowds; an image without annotations is an image without
    objects.

    See:
        https://cocodataset.org/#format-data
    """

    name = "coco"
    tasks = ("instance", "detection")

    def see(self, listing: Listing) -> Sighting | None:
        """JSON files with images, annotations and categories."""
        files = _coco_files(listing)
        if not files:
            return None
        count = f"{len(files)} COCO file{'s' if len(files) > 1 else ''}"
        if any(contains(path, _OUTLINE) for path in files):
            return Sighting(f"{count} with outlines", self.tasks)
        return Sighting(f"{count} with boxes", ("detection",))

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the files; see the base class."""
        root = listing.base
        paths = {"train": listing.file} if listing.file is not None else _split_files(listing, notices)
        if not paths:
            raise DataError(f"There is no COCO file in {listing.path}. Give a folder with one, or a JSON file.")
        report = Report(options.strict)
        files = {
            split: _CocoFile(path, listing, split, options.masks, report) for split, path in ordered(paths).items()
        }
        class_names = _class_names(list(files.values()), notices)
        splits = {split: file.records() for split, file in files.items()}
        note_unlisted(listing, [file.finder for file in files.values()], notices)
        objects = [record for image in splits["train"] for record in image.objects]
        if options.masks and objects and not any(record.outline for record in objects):
            raise DataError(f"{paths['train']} has boxes and no outlines. Use task='detection'.")
        lists = read_lists(root) or read_lists(paths["train"].parent)
        if len(files) == 1 and lists:
            splits = listed({image.id: image for image in splits["train"]}, lists, notices, report)
        category_ids = files["train"].category_ids(class_names)
        return object_tables(
            splits, class_names, notices, masks=options.masks, report=report, category_ids=category_ids
        )


def read_coco(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read COCO annotations, see :class:`Coco`.

    Args:
        folder: The folder, or a JSON file.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Whether samples have masks.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return Coco().read(Listing(folder), notices, ReadOptions(masks, strict))


def _coco_files(listing: Listing) -> list[Path]:
    files = listing.files_below((".json",)) if listing.file is None else [listing.file]
    return [path for path in files if path.suffix.lower() == ".json" and contains(path, *_KEYS)]


def _split_files(listing: Listing, notices: list[str]) -> dict[str, Path]:
    """The JSON file of each split: of the official ones those for instances, not for captions or keypoints.

    Raises:
        DataError: If it is not clear which file is for what.
    """
    root, files = listing.root, _coco_files(listing)
    files = [path for path in files if path.name.lower().startswith("instances")] or files
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


class _CocoFile:
    """One JSON file, checked for what COCO's format requires."""

    def __init__(self, path: Path, listing: Listing, split: str, masks: bool, report: Report) -> None:
        self.path, self.split, self.masks, self.report = path, split, masks, report
        self._listing, self._root = listing, listing.base
        content = load_json(path)
        self.images = self._entries(content, "images", ("id", "file_name"))
        self.categories = self._distinct(self._entries(content, "categories", ("id", "name")))
        self.annotations = self._entries(content, "annotations", ("image_id", "category_id"))
        self.used_categories = {annotation["category_id"] for annotation in self.annotations}

    def _entries(self, content: Any, key: str, required: Sequence[str]) -> list[dict[str, Any]]:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{self.path} has no list {key!r}, which COCO files have. Check the file.")
        for number, entry in enumerate(entries):
            for name in required:
                value = entry.get(name) if isinstance(entry, dict) else None
                if isinstance(value, float) and value.is_integer() and name.endswith("id"):
                    value = entry[name] = int(value)  # pandas writes 3.0 where one value of a column is missing
                if not isinstance(value, (int, str)):
                    raise DataError(
                        f"{self.path}: entry {number} of {key!r} has no {name!r}, which COCO entries have. "
                        "Check the file."
                    )
        return entries

    def _distinct(self, categories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The categories, each once.

        Raises:
            DataError: If two share an id: nothing says which of them an object is.
        """
        by_id: dict[Any, dict[str, Any]] = {}
        for category in categories:
            first = by_id.setdefault(category["id"], category)
            if first["name"] != category["name"]:
                both = f"{first['name']} and {category['name']}"
                raise DataError(
                    f"{self.path}: the categories {both} share the id {category['id']!r}. Give each an id of its own."
                )
        return list(by_id.values())

    def records(self) -> list[ImageRecord]:
        """The images with their objects, in the order of the file."""
        images = self._distinct_images()
        file_names = [str(image["file_name"]) for image in images]
        self.finder = finder = ImageFinder(self._listing, self.path, self.split, file_names, self.report)
        names = {category["id"]: str(category["name"]) for category in self.categories}
        image_ids = {image["id"] for image in self.images}
        objects: dict[Any, list[ObjectRecord]] = {}
        for number, annotation in enumerate(self.annotations):
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            if image_id in image_ids and category_id in names:
                objects.setdefault(image_id, []).append(self._object(annotation, names[category_id]))
            else:
                problem = "annotations of images or categories that the file does not list"
                name = f"{relative(self.path, self._root)} #{annotation.get('id', number)}"
                self.report.add(problem, "left out", name)
        for image in self.images:
            finder.note(str(image["file_name"]))
        paths = map(finder.find, file_names)
        return [
            ImageRecord(path, relative(path, self._root), objects.get(image["id"], ()), _size(image))
            for image, path in zip(images, paths, strict=True)
            if path is not None
        ]

    def category_ids(self, class_names: Sequence[str]) -> list[int]:
        """The number of each class, the first of several; none if a class has no number in this file."""
        numbers: dict[str, Any] = {}
        for category in self.categories:
            numbers.setdefault(str(category["name"]), category["id"])
        ids = [numbers.get(name) for name in class_names]
        return [id for id in ids if isinstance(id, int)] if all(isinstance(id, int) for id in ids) else []

    def _distinct_images(self) -> list[dict[str, Any]]:
        """The images whose id is not shared: nothing says to which of several an annotation belongs."""
        by_id: dict[Any, dict[str, dict[str, Any]]] = {}
        for image in self.images:
            same_id = by_id.setdefault(image["id"], {})
            name = str(image["file_name"])
            if name in same_id:
                self.report.add("images that are listed twice with the same id", "used once", name)
            same_id.setdefault(name, image)
        for id, same_id in by_id.items():
            if len(same_id) > 1:
                for name in same_id:
                    self.report.add("images that share their id with others", "left out", f"{name} (id {id!r})")
        return [image for same_id in by_id.values() if len(same_id) == 1 for image in same_id.values()]

    def _object(self, annotation: Mapping[str, Any], label: str) -> ObjectRecord:
        box, crowd = sized_box(annotation.get("bbox")), is_set(annotation.get("iscrowd"))
        outline = None
        if self.masks or not has_area(box):
            try:
                outline = read_outline(annotation.get("segmentation"))
            except ValueError as error:
                name = f"{relative(self.path, self._root)} #{annotation.get('id')} ({error})"
                self.report.add("outlines that cannot be read", "their objects neither learned nor counted", name)
                crowd = True
        return ObjectRecord(label, box, crowd, outline, stated_area(annotation.get("area")))


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        width, height = int(image["width"]), int(image["height"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _class_names(files: Sequence[_CocoFile], notices: list[str]) -> list[str]:
    """Names in the order of the category ids of the training file, then what other files add; without parents."""
    names: dict[str, None] = {}
    parents: dict[str, None] = {}
    used = {
        str(category["name"])
        for file in files
        for category in file.categories
        if category["id"] in file.used_categories
    }
    for file in files:
        children = Counter(str(category.get("supercategory")) for category in file.categories)
        for category in sorted(file.categories, key=lambda category: (str(type(category["id"])), category["id"])):
            name = str(category["name"])
            is_parent = children[name] > (str(category.get("supercategory")) == name)  # of others than itself
            (parents if is_parent and name not in used else names)[name] = None
    if parents:
        notices.append(f"Parent categories without objects are not classes: {join_names(list(parents))}.")
    uses = Counter(str(category["name"]) for category in files[0].categories)
    if repeated := sorted(name for name, number in uses.items() if number > 1):
        notices.append(f"{files[0].path.name}: categories of the same name are one class: {join_names(repeated)}.")
    return list(names)
