"""From the records of annotation files to tables of objects: the same checks for all formats, and one report."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.annotations.objects import Annotation, ObjectTable
from autotimm.data.annotations.outlines import Box, Outline, Polygons, RunLengths
from autotimm.data.file_facts import image_sizes
from autotimm.data.formats.data_format import Report, ordered
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["ImageRecord", "ObjectRecord", "object_tables"]


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
    """

    path: Path
    id: str
    objects: Sequence[ObjectRecord] = ()
    size: tuple[int, int] | None = None
    relative: bool = False


def object_tables(
    splits: Mapping[str, Sequence[ImageRecord]],
    class_names: Sequence[str],
    notices: list[str],
    *,
    masks: bool = False,
    report: Report,
    category_ids: Sequence[int] = (),
) -> dict[str, Table]:
    """Check records against the images, report what is wrong, and make tables.

    Images that are missing or have another size than their annotations state are left out; so are boxes without area
    within the image. An object without an outline, where masks are wanted, is kept as a crowd: leaving it out would
    teach the model that nothing is there.

    Args:
        splits: Images by split.
        class_names: Names of the classes, in order.
        notices: Receives the report.
        masks: Whether samples have masks.
        report: What the format found wrong itself.
        category_ids: The numbers of the classes in COCO files, in the order of the names.

    Raises:
        DataError: If there is no class, no image or no object to train on, or, with ``report.strict``, if anything is
            wrong.
    """
    if not class_names:
        raise DataError("There is no class: no file names one, and no object has a label. Add annotations.")
    sizes = image_sizes([image.path for images in splits.values() for image in images])
    tables: dict[str, ObjectTable] = {}
    split_of_id: dict[str, str] = {}
    for split, images in ordered(splits).items():
        kept: dict[str, tuple[Path, list[Annotation]]] = {}
        for image in images:
            size = sizes.get(image.path)
            if _is_usable(image, size, report):
                checked = [_annotation(record, image, size, masks, report) for record in image.objects]
                if image.id in kept:
                    report.add("images that are listed twice", "whose objects are merged", image.id)
                objects = kept.setdefault(image.id, (image.path, []))[1]
                objects += [annotation for annotation in checked if annotation is not None]
        for id in kept:
            if split_of_id.setdefault(id, split) != split:
                report.add(f"images that are in both {split_of_id[id]} and {split}", "used in both", id)
        if kept:
            paths, annotations = zip(*kept.values(), strict=True)
            tables[split] = ObjectTable(paths, list(kept), class_names, annotations, with_masks=masks)
            tables[split].category_ids = tuple(category_ids)
    report.close(notices)
    if "train" not in tables:
        raise DataError(f"No image to train on is left. {' '.join(notices)}".rstrip())
    if not any(tables["train"].object_counts()):
        # A model that predicts nothing would be right everywhere: the loss falls to 0, and nothing looks wrong.
        raise DataError(
            f"None of the {len(tables['train'])} training images has an object to learn from. "
            f"Check that the annotations belong to these images. {' '.join(notices)}".rstrip()
        )
    return dict(tables)


def _is_usable(image: ImageRecord, size: tuple[int, int] | None, report: Report) -> bool:
    if not os.path.isfile(image.path):
        report.add("missing images", "left out", image.id)
        return False
    if size is not None and image.size is not None and image.size != size:
        sizes = f"{size[0]}x{size[1]}, annotated as {image.size[0]}x{image.size[1]}"
        report.add("images of another size than their annotations state", "left out", f"{image.id} ({sizes})")
        return False
    return True


def _annotation(
    record: ObjectRecord, image: ImageRecord, size: tuple[int, int] | None, masks: bool, report: Report
) -> Annotation | None:
    """The object in pixels of its image; ``None`` if it is left out."""
    box, outline, crowd = record.box, record.outline, record.crowd
    width, height = size or image.size or (math.inf, math.inf)
    if image.relative and math.isfinite(width):
        box = None if box is None else (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        outline = outline.scaled(width, height) if isinstance(outline, Polygons) else outline
    box = _clipped(outline.box() if box is None and outline is not None else box, width, height)
    if box is None:
        report.add("boxes without area in the image", "left out", image.id)
        return None
    if isinstance(outline, RunLengths) and size not in (None, (outline.width, outline.height)):
        report.add("outlines of another size than their image", "their objects neither learned nor counted", image.id)
        crowd, outline = True, None
    if masks and outline is None and not crowd:
        report.add("objects without an outline", "neither learned nor counted", image.id)
        crowd = True
    return Annotation(record.label, box, crowd, outline if masks else None, record.area)


def _clipped(box: Box | None, width: float, height: float) -> Box | None:
    """The part of a box within the image; ``None`` if it has no area or a coordinate is not a finite number."""
    if box is None or not all(map(math.isfinite, box)):
        return None
    x1, x2 = (min(max(x, 0.0), width) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), height) for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None
