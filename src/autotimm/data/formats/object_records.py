"""From the records of annotation files to tables of objects: the same checks for all formats, and one report."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.annotations.objects import Annotation, ObjectTable
from autotimm.data.annotations.outlines import Box, Outline, Polygons, RunLengths
from autotimm.data.file_facts import image_sizes
from autotimm.data.formats.data_format import Report, ordered
from autotimm.data.image_io import UNTURNED, is_turned
from autotimm.data.image_reading import current_reading
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = [
    "SLACK_SHARE",
    "ImageRecord",
    "ObjectRecord",
    "has_area",
    "is_set",
    "merged_parts",
    "object_tables",
    "sized_box",
    "stated_area",
]

SLACK_SHARE = 0.01
"""Share of an image's side by which tools round coordinates beyond its border."""
_LARGEST = 1e18  # what is beyond is no number of pixels, and would be infinite in 32 bits
_SLACK_PIXELS = 1.01  # the same for small images: tools disagree on whether the last pixel is counted


class ObjectRecord(NamedTuple):
    """One object as an annotation file describes it.

    Attributes:
        label: Name of its class.
        box: x1, y1, x2, y2; ``None`` if only the outline is known.
        crowd: See :class:`autotimm.data.annotations.objects.Annotation`.
        outline: Its outline, if there is one.
        area: See :class:`autotimm.data.annotations.objects.Annotation`.
    """

    label: str
    box: Box | None
    crowd: bool = False
    outline: Outline | None = None
    area: float = 0.0


class ImageRecord(NamedTuple):
    """One image as an annotation file describes it.

    Attributes:
        path: The file.
        id: Its id.
        objects: The objects.
        size: Width and height in pixels that the annotations are for, if the file states them.
        relative: Whether coordinates are fractions of width and height instead of pixels.
        group: What it belongs to, by a column that was asked for; empty without one.
    """

    path: Path
    id: str
    objects: Sequence[ObjectRecord] = ()
    size: tuple[int, int] | None = None
    relative: bool = False
    group: str = ""


def sized_box(bbox: Any) -> Box | None:
    """COCO's x, y, width, height as x1, y1, x2, y2; ``None`` if there is none, NaN if it is invalid."""
    if not bbox:
        return None
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return (math.nan,) * 4
    return x, y, x + width, y + height


def stated_area(area: Any) -> float:
    """An area in square pixels; 0 if it is not stated, or no positive number."""
    return float(area) if isinstance(area, (int, float)) and 0 < area <= _LARGEST else 0.0


def is_set(flag: Any) -> bool:
    """Whether a flag such as COCO's ``iscrowd`` is set; many tools write it as text, and -1 where they do not know.

    Example:
        >>> [is_set(flag) for flag in (1, True, "1", "True", 0, "0", "0.0", "False", "Unspecified", -1, None)]
        [True, True, True, True, False, False, False, False, False, False, False]
    """
    written = str(flag).strip().lower()
    try:
        return float(written) > 0
    except ValueError:
        return written in ("true", "yes")


def merged_parts(objects: Iterable[tuple[ObjectRecord, Hashable]]) -> list[ObjectRecord]:
    """Join the polygons of one class and group: an object that something covers is drawn in several parts.

    Args:
        objects: Each with its group, ``None`` for an object alone.
    """
    merged: list[ObjectRecord] = []
    places: dict[Hashable, int] = {}
    for record, group in objects:
        key = (record.label, group)
        if group is None or not isinstance(record.outline, Polygons):
            merged.append(record)
        elif key in places:
            first = merged[places[key]]
            assert isinstance(first.outline, Polygons)
            outline = Polygons(first.outline.parts + record.outline.parts)
            merged[places[key]] = first._replace(box=None, outline=outline, crowd=first.crowd or record.crowd)
        else:
            places[key] = len(merged)
            merged.append(record)
    return merged


def object_tables(
    splits: Mapping[str, Sequence[ImageRecord]],
    class_names: Sequence[str],
    notices: list[str],
    *,
    masks: bool = False,
    report: Report,
    category_ids: Sequence[int] = (),
    corners: bool = False,
) -> dict[str, Table]:
    """Check records against the images, report what is wrong, and make tables.

    Images that are missing or have another size than their annotations state are left out; so are boxes without area
    within the image. Boxes that reach beyond their image are cut at its border; if most of them do, they are not what
    their format says, and refused. An object without an outline, where masks are wanted, is kept as a crowd: leaving it
    out would teach the model that nothing is there.

    Args:
        splits: Images by split.
        class_names: Names of the classes, in order.
        notices: Receives the report.
        masks: Whether samples have masks.
        report: What the format found wrong itself.
        category_ids: The numbers of the classes in COCO files, in the order of the names.
        corners: Whether the format states boxes by two corners, and not by a point and a size. Corners in another order
            are sorted then; if most are, they are a point and a size, and refused.

    Raises:
        DataError: If there is no class, no image or no object to train on, if most boxes reach beyond their image, if
            the boxes of a split are fractions where pixels are expected, or, with ``report.strict``, if anything is
            wrong.
    """
    if not class_names:
        report.close(notices)  # the reason may be there: with strict it is the error
        reasons = " ".join(notices) or "Add annotations."
        what = "There is no class: no file names one, and no object has a label."
        raise DataError(f"{what if any(splits.values()) else 'No image to train on is left.'} {reasons}")
    sizes = image_sizes([image.path for images in splits.values() for image in images])
    tables: dict[str, ObjectTable] = {}
    split_of_id: dict[str, str] = {}
    reach = _Reach(corners)
    for split, images in ordered(splits).items():
        kept = _kept(images, sizes, reach, masks, report)
        for id in kept:
            if split_of_id.setdefault(id, split) != split:
                report.add(f"images that are in both {split_of_id[id]} and {split}", "used in both", id)
        if kept:
            paths, annotations = zip(*kept.values(), strict=True)
            tables[split] = ObjectTable(paths, list(kept), class_names, annotations, with_masks=masks)
            tables[split].category_ids = tuple(category_ids)
            groups = {image.id: image.group for image in images}
            if any(groups.values()):
                tables[split].groups = [groups[id] for id in kept]
        reach.check_unit(split)
    reach.close(report)
    report.close(notices)
    _require_objects(tables, notices)
    return dict(tables)


_Kept = dict[str, tuple[Path, list[Annotation]]]
"""The file and the objects of each image, by its id."""


def _kept(
    images: Sequence[ImageRecord], sizes: Mapping[Path, tuple[int, int]], reach: _Reach, masks: bool, report: Report
) -> _Kept:
    """The images of a split that can be used, with those of their objects that can."""
    kept: _Kept = {}
    for image in images:
        size = sizes.get(image.path)
        if not _is_usable(image, size, report):
            continue
        stated = [reach.in_order(record, image) for record in image.objects]
        placed = [_in_pixels(record, image, size, report) for record in stated]
        for before, after in zip(stated, placed, strict=True):
            reach.add(after.box, image, size, stated=has_area(before.box))
        checked = [_annotation(record, image, size, masks, report) for record in placed]
        if image.id in kept:
            report.add("images that are listed twice", "whose objects are merged", image.id)
        _, objects = kept.setdefault(image.id, (image.path, []))
        objects += [annotation for annotation in checked if annotation is not None]
    return kept


def _require_objects(tables: Mapping[str, ObjectTable], notices: list[str]) -> None:
    """Refuse data without an object to learn from, and report splits without one to measure.

    Raises:
        DataError: If no training image is left, or none has an object.
    """
    if "train" not in tables:
        raise DataError(f"No image to train on is left. {' '.join(notices)}".rstrip())
    if not any(tables["train"].object_counts()):
        # A model that predicts nothing would be right everywhere: the loss falls to 0, and nothing looks wrong.
        raise DataError(
            f"None of the {len(tables['train'])} training images has an object to learn from. "
            f"Check that the annotations belong to these images. {' '.join(notices)}".rstrip()
        )
    for split, table in tables.items():
        if not any(table.object_counts()):
            notices.append(f"No image of {split} has an object that counts: its average precision will be 0.")


def _is_usable(image: ImageRecord, size: tuple[int, int] | None, report: Report) -> bool:
    """Whether there is an image, of the size that its annotations are for; one that cannot be read is found later."""
    if not os.path.isfile(image.path):
        report.add("missing images", "left out", image.id)
        return False
    if size is not None and image.size is not None and image.size != size:
        if image.size == size[::-1] and current_reading().upright and is_turned(image.path):
            report.add("images that an EXIF tag turns, and whose annotations do not", UNTURNED, image.id)
            return False
        sizes = f"{size[0]}x{size[1]}, annotated as {image.size[0]}x{image.size[1]}"
        report.add("images of another size than their annotations state", "left out", f"{image.id} ({sizes})")
        return False
    return True


def _is_finite(coordinate: float) -> bool:
    return abs(coordinate) <= _LARGEST  # written so that NaN fails


def has_area(box: Box | None) -> bool:
    """Whether there is a box, of finite numbers, whose ends are in order."""
    return box is not None and all(map(_is_finite, box)) and box[2] > box[0] and box[3] > box[1]


def _in_pixels(record: ObjectRecord, image: ImageRecord, size: tuple[int, int] | None, report: Report) -> ObjectRecord:
    """The object with a box, if it has an outline, both in pixels of its image."""
    box, outline = record.box, record.outline
    width, height = size or image.size or (math.inf, math.inf)
    if image.relative and math.isfinite(width):
        box = None if box is None else (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        outline = outline.scaled(width, height) if isinstance(outline, Polygons) else outline
    if outline is not None and not has_area(box):
        if box is not None:
            report.add("boxes without area", "taken from the outlines of their objects", image.id)
        box = outline.box()
    return record._replace(box=box, outline=outline)


def _annotation(
    record: ObjectRecord, image: ImageRecord, size: tuple[int, int] | None, masks: bool, report: Report
) -> Annotation | None:
    """The object within its image; ``None`` if it is left out."""
    outline, crowd = record.outline, record.crowd
    box = _clipped(record.box, *(size or image.size or (math.inf, math.inf)))
    if box is None:
        report.add("boxes without area in the image", "left out", image.id)
        return None
    if isinstance(outline, RunLengths) and size not in (None, (outline.width, outline.height)):
        report.add("outlines of another size than their image", "their objects neither learned nor counted", image.id)
        crowd, outline = True, None
    if masks and outline is None and not crowd:
        report.add("objects without an outline", "neither learned nor counted", image.id)
        crowd = True
    stated = record.box if record.box != box else None
    return Annotation(record.label, box, crowd, outline if masks else None, record.area, stated)


class _Reach:
    """Counts the boxes that cannot be what their format says: those beyond their image, and fractions for pixels.

    Corners read as sizes reach far beyond the image, and no single one of them proves it: an object that is cut by the
    border may be annotated as a whole.

    Args:
        corners: Whether the format states boxes by two corners.
    """

    def __init__(self, corners: bool) -> None:
        self._corners = corners
        self._total = self._stated = 0
        self._beyond: list[str] = []
        self._swapped: list[str] = []
        self._unit = self._larger = 0  # of the split: boxes within 0 to 1, and others

    def in_order(self, record: ObjectRecord, image: ImageRecord) -> ObjectRecord:
        """The object with the ends of its box in order, if they are two corners."""
        if not self._corners or record.box is None:
            return record
        self._stated += 1
        x1, y1, x2, y2 = record.box
        if (x2 >= x1 and y2 >= y1) or not all(map(_is_finite, record.box)):
            return record
        self._swapped.append(image.id)
        return record._replace(box=(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))

    def add(self, box: Box | None, image: ImageRecord, size: tuple[int, int] | None, *, stated: bool) -> None:
        """Count a box in pixels; what has no finite numbers, area or image is counted elsewhere.

        Args:
            box: The box.
            image: Its image.
            size: Width and height of the file, if it can be read.
            stated: Whether the annotations state the box, and not only an outline.
        """
        size = size or image.size
        if box is None or size is None or not has_area(box):
            return
        if stated:
            self._total += 1
            self._beyond += [image.id] if _overshoot(box, size) else []
        within_unit = not image.relative and 0 <= box[2] <= 1 and 0 <= box[3] <= 1
        self._unit, self._larger = self._unit + within_unit, self._larger + (not within_unit)

    def check_unit(self, split: str) -> None:
        """Refuse a split whose boxes are all within 0 to 1: as pixels each would be one corner of its image."""
        if self._unit and not self._larger:
            raise DataError(
                f"All {self._unit} boxes of {split} lie within 0 to 1: they are normalised, and pixels are expected. "
                "Multiply them by width and height of their images."
            )
        self._unit = self._larger = 0

    def close(self, report: Report) -> None:
        """Report the boxes beyond their image and those whose ends were swapped, or refuse them if they are most."""
        doubt = "were they drawn on images of another size?" if self._corners else "are they x1, y1, x2, y2?"
        problem = f"{len(self._beyond)} of {self._total} boxes reach beyond their image: {doubt}"
        _report_share(self._beyond, self._total, problem, "They are cut at its border", report)
        problem = f"{len(self._swapped)} of {self._stated} boxes end before they begin: are they x, y, width, height?"
        _report_share(self._swapped, self._stated, problem, "Their ends are sorted", report)


def _report_share(names: Sequence[str], total: int, problem: str, consequence: str, report: Report) -> None:
    """Report what some objects may have; what most have is not what their format says.

    Raises:
        DataError: If more than half have it.
    """
    if 2 * len(names) > total:
        files = join_names(list(dict.fromkeys(names)))
        raise DataError(f"{problem} In {files}. Correct the annotations, or name their format.")
    if names:
        report.add_share(problem, consequence, names)


def _overshoot(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box reaches beyond its image by more than tools round."""
    slack = [max(_SLACK_PIXELS, SLACK_SHARE * side) for side in size]
    low = any(start < -room for start, room in zip(box[:2], slack, strict=True))
    return low or any(end > side + room for end, side, room in zip(box[2:], size, slack, strict=True))


def _clipped(box: Box | None, width: float, height: float) -> Box | None:
    """The part of a box within the image; ``None`` if it has no area or a coordinate is not a finite number."""
    if box is None or not all(map(_is_finite, box)):
        return None
    x1, x2 = (min(max(x, 0.0), width) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), height) for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None
