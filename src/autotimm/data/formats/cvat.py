"""CVAT for images: an XML file with the shapes of all images of a task or project."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from autotimm.data.annotations.outlines import Polygons, RunLengths
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, listed, read_lists
from autotimm.data.formats.image_finder import ImageFinder, find_by_split, note_unlisted
from autotimm.data.formats.json_files import contains
from autotimm.data.formats.listing import Listing, in_byte_order, relative
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, is_set, merged_parts, object_tables
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["Cvat"]

_ROOT, _IMAGE = re.compile(rb"<annotations[\s>]"), re.compile(rb"<image\s")
_TRACK = re.compile(rb"<track\s")
_OUTLINE = re.compile(rb"<(?:polygon|ellipse|mask)\s")
_MOST_PIXELS = 1 << 30  # of a mask, where Pillow has no limit of its own
_LABEL_TYPES = ("any", "rectangle", "polygon", "ellipse", "mask", "")  # not: tag, points, polyline, skeleton, cuboid


class Cvat(Format):
    """``annotations.xml`` of the export "CVAT for images 1.1", with the images beside it or in ``images/``.

    Polygons, ellipses, masks and turned boxes are outlines; other boxes come without one. Polygons of one label and
    group are the parts of one object. Points, polylines, skeletons and cuboids are reported; tags are not read. Classes
    are the labels of the task in their order, then others that objects have.

    The split of an image is its ``subset``; then what split lists, the image's folder or the name or folder of the XML
    file say. Several files are read as one.

    See:
        https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
    """

    name = "cvat"
    tasks = ("instance", "detection")

    def see(self, listing: Listing) -> Sighting | None:
        """XML files with images; of videos they are seen, but cannot be read."""
        files = _cvat_files(listing)
        if not files:
            return None
        videos = [path for path in files if not contains(path, _IMAGE)]
        if len(videos) == len(files):
            missing = f"{relative(files[0], listing.base)} is of CVAT's format for videos: export as CVAT for images."
            return Sighting("tracks of CVAT", self.tasks, missing=missing)
        count = f"{len(files)} CVAT file{'s' if len(files) > 1 else ''}"
        if any(contains(path, _OUTLINE) for path in files):
            return Sighting(f"{count} with outlines", self.tasks)
        return Sighting(f"{count} with boxes", ("detection",))

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the files; see the base class."""
        paths, report = _cvat_files(listing), Report(options.strict)
        if not paths:
            raise DataError(f"There is no CVAT file in {listing.path}. Export the task as CVAT for images.")
        files = [_CvatFile(path, listing, report) for path in paths]
        if tags := sum(len(file.tree.findall("image/tag")) for file in files):
            notices.append(f"{tags} tags of whole images in CVAT files are not read.")
        splits: dict[str, list[ImageRecord]] = {}
        for file in files:
            for split, records in file.records().items():
                splits.setdefault(split, []).extend(records)
        note_unlisted(listing, [finder for file in files for finder in file.finders], notices)
        objects = [record for image in splits.get("train", ()) for record in image.objects]
        if options.masks and objects and not any(record.outline for record in objects):
            raise DataError(f"{paths[0]} has boxes and no outlines. Use task='detection'.")
        lists = read_lists(listing.base)
        if splits.keys() == {"train"} and lists:
            splits = listed({image.id: image for image in splits["train"]}, lists, notices, report)
        labels = dict.fromkeys(label for file in files for label in file.labels())
        used = {record.label for images in splits.values() for image in images for record in image.objects}
        class_names = [*labels, *in_byte_order(used - labels.keys())]
        return object_tables(splits, class_names, notices, masks=options.masks, report=report, corners=True)


def _cvat_files(listing: Listing) -> list[Path]:
    files = listing.files_below((".xml",)) if listing.file is None else [listing.file]
    return [
        path
        for path in files
        if path.suffix.lower() == ".xml"
        and contains(path, _ROOT)
        and (contains(path, _IMAGE) or contains(path, _TRACK))
    ]


class _CvatFile:
    """One XML file.

    Attributes:
        finders: How its images were found.
    """

    def __init__(self, path: Path, listing: Listing, report: Report) -> None:
        self._path, self._listing, self._report = path, listing, report
        self._name = relative(path, listing.base)
        self.finders: list[ImageFinder] = []
        try:
            self.tree = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            raise DataError(f"{path} cannot be read as XML: {error}. Export it again.") from error
        if self.tree.find("track") is not None:
            raise DataError(f"{path} has tracks of a video: export as CVAT for images.")

    def labels(self) -> list[str]:
        """The labels of the task that objects can have, in its order; the parts of skeletons are none."""
        labels = (label for labels in self.tree.iter("labels") for label in labels.findall("label"))
        return [
            _text(label, "name")
            for label in labels
            if _text(label, "name") and _text(label, "type") in _LABEL_TYPES and label.find("parent") is None
        ]

    def records(self) -> dict[str, list[ImageRecord]]:
        """The images of each split with their objects."""
        images = list(self._images())
        stated = [(image.get("name", ""), image.get("subset", "")) for image in images]
        places, self.finders = find_by_split(self._listing, self._path, stated, self._report)
        splits: dict[str, list[ImageRecord]] = {}
        for image, (name, _), (path, split) in zip(images, stated, places, strict=True):
            if path is not None:
                id, objects = relative(path, self._listing.base), self._objects(image, name)
                splits.setdefault(split, []).append(ImageRecord(path, id, objects, _size(image)))
        return splits

    def _images(self) -> Iterator[ElementTree.Element]:
        for number, image in enumerate(self.tree.findall("image"), 1):
            if image.get("name"):
                yield image
            else:
                self._report.add("CVAT images without a name", "left out", f"{self._name} #{number}")

    def _objects(self, image: ElementTree.Element, name: str) -> list[ObjectRecord]:
        size, objects = _size(image), list[tuple[ObjectRecord, Hashable]]()
        for element in image:
            if element.tag == "tag":
                continue
            try:
                group = element.get("group_id")
                objects.append((_object(element, size), None if group in ("", "0") else group))
            except ValueError as error:
                self._report.add("shapes that cannot be used", "left out", f"{self._name}, {name} ({error})")
        return merged_parts(objects)


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _size(image: ElementTree.Element) -> tuple[int, int] | None:
    width, height = image.get("width", ""), image.get("height", "")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else None


def _object(element: ElementTree.Element, size: tuple[int, int] | None) -> ObjectRecord:
    """The object of a shape.

    Raises:
        ValueError: If it has no label or no area, or cannot be read, with the reason.
    """
    label = element.get("label", "").strip()
    if not label:
        raise ValueError(f"{_a(element)} without a label")
    shape = _SHAPES.get(element.tag)
    if shape is None:
        raise ValueError(f"a shape of type {element.tag}")
    return shape(ObjectRecord(label, None, _is_crowd(element)), element, size)


def _is_crowd(element: ElementTree.Element) -> bool:
    """Whether a shape that was imported from a COCO file is a crowd there."""
    attributes = {attribute.get("name"): attribute.text for attribute in element.findall("attribute")}
    return is_set(attributes.get("is_crowd"))


def _a(element: ElementTree.Element) -> str:
    return f"{'an' if element.tag == 'ellipse' else 'a'} {element.tag}"


def _numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [_number(element.get(name, ""), f"{name} of {_a(element)}") for name in names]


def _number(written: str, what: str) -> float:
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {written!r}, and no number")
    return number


def _box(record: ObjectRecord, element: ElementTree.Element, size: tuple[int, int] | None) -> ObjectRecord:
    x1, y1, x2, y2 = _numbers(element, "xtl", "ytl", "xbr", "ybr")
    if degrees := _number(element.get("rotation", "0"), "rotation of a box"):
        corners = Polygons((np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64),))
        return record._replace(outline=corners.turned((x1 + x2) / 2, (y1 + y2) / 2, degrees))
    return record._replace(box=(x1, y1, x2, y2))


def _polygon(record: ObjectRecord, element: ElementTree.Element, size: tuple[int, int] | None) -> ObjectRecord:
    written = [point.split(",") for point in element.get("points", "").split(";") if point.strip()]
    if any(len(point) != 2 for point in written):
        raise ValueError("points of a polygon that are no list of x,y;x,y")
    if len(written) < 3:
        raise ValueError(f"a polygon of {len(written)} points")
    corners = [[_number(number, "a coordinate of a polygon") for number in point] for point in written]
    return record._replace(outline=Polygons((np.array(corners, np.float64),)))


def _ellipse(record: ObjectRecord, element: ElementTree.Element, size: tuple[int, int] | None) -> ObjectRecord:
    x, y, x_radius, y_radius = _numbers(element, "cx", "cy", "rx", "ry")
    degrees = _number(element.get("rotation", "0"), "rotation of an ellipse")
    return record._replace(outline=Polygons.ellipse(x, y, x_radius, y_radius).turned(x, y, degrees))


def _mask(record: ObjectRecord, element: ElementTree.Element, size: tuple[int, int] | None) -> ObjectRecord:
    """Run lengths of the pixels of a box, row by row, the first of what is outside of the object."""
    left, top, width, height = map(int, _numbers(element, "left", "top", "width", "height"))
    runs = [int(_number(run, "a run of a mask")) for run in element.get("rle", "").split(",")]
    if size is None:
        raise ValueError("a mask, and an image without width and height")
    if not (0 < width <= size[0] and 0 < height <= size[1]):
        raise ValueError("a mask that reaches beyond its image")
    if width * height > (Image.MAX_IMAGE_PIXELS or _MOST_PIXELS):  # the size is only stated, and memory is taken for it
        raise ValueError(f"a mask of {width}x{height} pixels")
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError("a mask whose runs do not fill its box")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return record._replace(outline=RunLengths.of_crop(pixels, left, top, size[1], size[0]))


_Shape = Callable[[ObjectRecord, ElementTree.Element, "tuple[int, int] | None"], ObjectRecord]
_SHAPES: dict[str, _Shape] = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}
