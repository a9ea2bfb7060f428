"""From what annotation files say to tables of objects: one check for all formats, and one report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.annotations.objects import Annotation, ObjectTable
from autotimm.data.annotations.outlines import Outline, Polygons, RunLengths
from autotimm.data.file_facts import image_sizes
from autotimm.data.formats.annotation_report import Report
from autotimm.data.formats.split_layout import ordered
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["Record", "Report", "Thing", "object_tables"]

Box = tuple[float, float, float, float]


class Thing(NamedTuple):
    """One object as an annotation file says it.

    Attributes:
        label: Name of its class.
        box: x1, y1, x2, y2; ``None`` if only the outline is known.
        crowd: See :class:`autotimm.data.annotations.objects.Annotation`.
        outline: Its outline, if there is one.
    """

    label: str
    box: Box | None
    crowd: bool = False
    outline: Outline | None = None


class Record(NamedTuple):
    """One image as an annotation file says it.

    Attributes:
        path: The file.
        id: Its id.
        things: The objects.
        size: Width and height that the annotations are for, if the file says so.
        shares: Whether coordinates are shares of width and height instead of pixels.
    """

    path: Path
    id: str
    things: Sequence[Thing] = ()
    size: tuple[int, int] | None = None
    shares: bool = False


def object_tables(
    splits: Mapping[str, Sequence[Record]],
    class_names: Sequence[str],
    notices: list[str],
    *,
    masks: bool = False,
    report: Report,
) -> dict[str, Table]:
    """Check what annotation files say against the images, report it, and make tables.

    Images that are not there or have another size than the annotations say are left out; so are boxes without area
    within the image. An object of which masks are wanted and only the box is known is kept as a crowd: to leave it out
    would teach that nothing is there.

    Args:
        splits: Images by split.
        class_names: Names of the classes, in order.
        notices: Receives the report.
        masks: Whether samples have masks.
        report: What the format found wrong itself.

    Raises:
        DataError: If there is no class, no image or no object to train on, or, with ``report.strict``, if anything is
            wrong.
    """
    if not class_names:
        raise DataError("There is no class: no file names one, and no object has a label. Add annotations.")
    sizes = image_sizes([one.path for records in splits.values() for one in records])
    tables: dict[str, ObjectTable] = {}
    owners: dict[str, str] = {}
    for split, records in ordered(splits).items():
        kept: dict[str, tuple[Path, list[Annotation]]] = {}
        for one in records:
            if _usable(one, sizes.get(one.path), report):
                found = [_checked(thing, one, sizes.get(one.path), masks, report) for thing in one.things]
                objects = [annotation for annotation in found if annotation is not None]
                if one.id in kept:
                    report.add("images that are listed twice", "whose objects are taken together", one.id)
                kept.setdefault(one.id, (one.path, []))[1].extend(objects)
        for name in kept:
            if owners.setdefault(name, split) != split:
                report.add(f"images that are in both {owners[name]} and {split}", "used in both", name)
        paths, objects_of = [path for path, _ in kept.values()], [objects for _, objects in kept.values()]
        if kept:
            tables[split] = ObjectTable(paths, list(kept), class_names, objects_of, with_masks=masks)
    report.close(notices)
    if "train" not in tables:
        raise DataError(f"No image to train on is left. {' '.join(notices)}".rstrip())
    if not any(tables["train"].object_counts()):
        # A model that finds nothing anywhere would be right: the loss falls to 0, and nothing looks wrong.
        raise DataError(
            f"None of the {len(tables['train'])} images to train on has an object that can be learned. "
            f"Check that the annotations are those of the images. {' '.join(notices)}".rstrip()
        )
    return dict(tables)


def _usable(one: Record, size: tuple[int, int] | None, report: Report) -> bool:
    if not one.path.is_file():
        report.add("images that are not there", "left out", one.id)
        return False
    if size is not None and one.size is not None and one.size != size:
        sizes = f"{size[0]}x{size[1]}, annotated as {one.size[0]}x{one.size[1]}"
        report.add("images of another size than their annotations say", "left out", f"{one.id} ({sizes})")
        return False
    return True


def _checked(thing: Thing, one: Record, size: tuple[int, int] | None, masks: bool, report: Report) -> Annotation | None:
    box, outline, crowd = thing.box, thing.outline, thing.crowd
    width, height = size or one.size or (math.inf, math.inf)
    if one.shares and math.isfinite(width):
        box = None if box is None else (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        outline = outline.scaled(width, height) if isinstance(outline, Polygons) else outline
    box = _within(outline.box() if box is None and outline is not None else box, width, height)
    if box is None:
        report.add("boxes without area in the image", "left out", one.id)
        return None
    if isinstance(outline, RunLengths) and size not in (None, (outline.width, outline.height)):
        report.add("outlines of another size than their image", "their objects neither learned nor counted", one.id)
        crowd, outline = True, None
    if masks and outline is None and not crowd:
        report.add("objects without an outline", "neither learned nor counted", one.id)
        crowd = True
    return Annotation(thing.label, box, crowd, outline if masks else None)


def _within(box: Box | None, width: float, height: float) -> Box | None:
    """The part of a box that is in the image; ``None`` if it has no area or is not a number."""
    if box is None or not all(map(math.isfinite, box)):
        return None
    x1, x2 = (min(max(x, 0.0), width) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), height) for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None
