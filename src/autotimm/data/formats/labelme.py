"""labelme: a JSON file with the shapes of each image."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autotimm.data.annotations.outlines import Polygons, RunLengths
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, read_lists
from autotimm.data.formats.image_per_file import ImageFile, tables_of_files
from autotimm.data.formats.json_files import contains, load_json
from autotimm.data.formats.listing import Listing, relative
from autotimm.data.formats.object_records import ObjectRecord, merged_parts
from autotimm.data.image_io import BROKEN
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["LabelMe"]

_KEYS = (re.compile(rb'"shapes"\s*:\s*\['), re.compile(rb'"imagePath"\s*:'))
_OUTLINE = re.compile(rb'"shape_type"\s*:\s*"(?:polygon|circle|mask|rotation)"')
_SHAPE = re.compile(rb'"points"\s*:\s*\[')
_KIND = re.compile(rb'"shape_type"\s*:')
_NO_OBJECT = ("__ignore__", "_background_")  # labels that labelme's own exporters leave out

_Points = NDArray[np.float64]


class LabelMe(Format):
    """One JSON file per image, as labelme, X-AnyLabeling and AnyLabeling write it, usually beside the image.

    Polygons, circles and masks are outlines; rectangles are boxes without one. Polygons of one label and ``group_id``
    are the parts of one object. Points and lines have no area and are reported. The image is found by the name of its
    JSON file, then by ``imagePath``; the split comes from lists, or from folders named train, val and test. Classes are
    sorted by name.

    See:
        https://github.com/wkentaro/labelme
    """

    name = "labelme"
    tasks = ("instance", "detection")

    def see(self, listing: Listing) -> Sighting | None:
        """JSON files with shapes and the path of an image."""
        files = _labelme_files(listing)
        if not files:
            return None
        count = f"{len(files)} labelme file{'s' if len(files) > 1 else ''}"
        if any(map(_has_outlines, files)):
            return Sighting(f"{count} with outlines", self.tasks)
        return Sighting(f"{count} with boxes", ("detection",))

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the files; see the base class."""
        paths, report = _labelme_files(listing), Report(options.strict)
        if not paths:
            raise DataError(f"There is no labelme file in {listing.path}. Give a folder with a JSON file per image.")
        if options.masks and not any(map(_has_outlines, paths)):
            raise DataError(f"{listing.path} has labelme files with boxes and no outlines. Use task='detection'.")
        files = [_parsed(path, relative(path, listing.base), report) for path in paths]
        lists = read_lists(listing.base)
        return tables_of_files(files, listing, notices, report, kind="labelme", lists=lists, masks=options.masks)


def _labelme_files(listing: Listing) -> list[Path]:
    files = listing.files_below((".json",)) if listing.file is None else [listing.file]
    return [path for path in files if path.suffix.lower() == ".json" and contains(path, *_KEYS)]


def _has_outlines(path: Path) -> bool:
    """Whether a file has other shapes than rectangles; those of old files without a type are polygons."""
    return contains(path, _OUTLINE) or (contains(path, _SHAPE) and not contains(path, _KIND))


def _parsed(path: Path, name: str, report: Report) -> ImageFile:
    """Read a JSON file; what cannot be used of it is reported."""
    try:
        content = load_json(path)
    except DataError as error:
        report.add("labelme files that cannot be read", "left out with their images", f"{name} ({error.__cause__})")
        return ImageFile(path, None)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        report.add("labelme files that cannot be read", "left out with their images", f"{name} (no list of shapes)")
        return ImageFile(path, None)
    size, objects = _size(content), list[tuple[ObjectRecord, Hashable]]()
    for number, shape in enumerate(content["shapes"], 1):
        try:
            objects.append(_object(shape, size))
        except ValueError as error:
            report.add("shapes that cannot be used", "left out", f"{name} #{number} ({error})")
    stated = PurePosixPath(str(content.get("imagePath") or "").replace("\\", "/"))
    return ImageFile(path, merged_parts(objects), size, stated.name, stated.parent.name)


def _size(content: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = (content.get(f"image{side}") for side in ("Width", "Height"))
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def _object(shape: Any, size: tuple[int, int] | None) -> tuple[ObjectRecord, Hashable]:
    """The object of a shape and its group.

    Raises:
        ValueError: If it has no label or no area, or cannot be read, with the reason.
    """
    if not isinstance(shape, dict):
        raise ValueError("no shape")
    label = shape.get("label")
    if not isinstance(label, (str, int)) or not str(label).strip():
        raise ValueError("a shape without a label")
    if label in _NO_OBJECT:
        raise ValueError(f"{label} is no class")
    kind = shape.get("shape_type") or "polygon"
    points = _points(shape.get("points"))
    crowd = shape.get("difficult") is True
    record = ObjectRecord(str(label).strip(), None, crowd)
    group = shape.get("group_id")
    group = group if isinstance(group, (int, str)) else None
    if kind == "mask":
        return record._replace(outline=_mask(shape.get("mask"), points, size)), group
    if not isinstance(kind, str) or kind not in _SHAPES:
        raise ValueError(f"a shape of type {kind}")
    return _SHAPES[kind](record, points), group


def _points(points: Any) -> _Points:
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("points that are no numbers") from None
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise ValueError("points that are no list of x and y")
    return array


def _rectangle(record: ObjectRecord, points: _Points) -> ObjectRecord:
    """Two opposite corners in any order, or all four."""
    if len(points) not in (2, 4):
        raise ValueError(f"a rectangle of {len(points)} points")
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return record._replace(box=(x1, y1, x2, y2))


def _polygon(record: ObjectRecord, points: _Points) -> ObjectRecord:
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} points")
    return record._replace(outline=Polygons((points,)))


def _circle(record: ObjectRecord, points: _Points) -> ObjectRecord:
    """The center and a point on the border."""
    if len(points) != 2:
        raise ValueError(f"a circle of {len(points)} points")
    (x, y), radius = points[0].tolist(), math.dist(*points.tolist())
    return record._replace(
        box=(x - radius, y - radius, x + radius, y + radius), outline=Polygons.ellipse(x, y, radius, radius)
    )


_SHAPES: dict[str, Callable[[ObjectRecord, _Points], ObjectRecord]] = {
    "rectangle": _rectangle,
    "polygon": _polygon,
    "rotation": _polygon,  # a turned rectangle of X-AnyLabeling, as its four corners
    "circle": _circle,
}


def _mask(encoded: Any, points: _Points, size: tuple[int, int] | None) -> RunLengths:
    """A PNG of the object's box, which the points give: its first and its last pixel."""
    if size is None or not isinstance(encoded, str) or len(points) != 2:
        raise ValueError("a mask without pixels or place")
    if not ((points[0] >= 0) & (points[0] < size)).all():
        raise ValueError("a mask that reaches beyond its image")
    left, top = points[0].astype(int).tolist()
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded)), formats=("PNG",)) as image:
            fits = image.width <= size[0] and image.height <= size[1]
            pixels = np.asarray(image.convert("L")) > 0 if fits else None  # only a small one is decoded
    except BROKEN as error:
        raise ValueError(f"a mask that cannot be read: {error}") from None
    if pixels is None:
        raise ValueError("a mask that reaches beyond its image")
    return RunLengths.of_crop(pixels, left, top, size[1], size[0])
