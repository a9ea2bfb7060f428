"""Instances as one label image per image, whose values are ids of objects."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autotimm.data.annotations.masks import IGNORED, MaskFacts, read_pixels
from autotimm.data.annotations.object_ids import ObjectIds, judge_ids
from autotimm.data.file_facts import Problem, image_sizes, mask_facts, object_ids_of
from autotimm.data.formats.class_tables import BACKGROUND_NAMES, ClassTable, find_class_table
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, ordered
from autotimm.data.formats.label_images import LabelImages, MaskReading, mask_reading
from autotimm.data.formats.listing import Listing, relative
from autotimm.data.formats.mask_pairs import Pair, find_pairs
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, object_tables
from autotimm.data.image_io import BROKEN
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["InstanceIds", "read_instance_ids"]

_LOOKED_AT = 64  # masks that decide whether values are ids
_CODED = 1000  # id = class * 1000 + number, as Cityscapes writes
_ONE_CLASS = "object"


class InstanceIds(Format):
    """Images with a label image each whose values are ids of objects: 0 is background, 1 to N are the objects.

    As torchvision's tutorial (``PNGImages/X.png`` with ``PedMasks/X_mask.png``), Cellpose (``X_cp_masks.png``) and
    StarDist (``images/``, ``masks/``; 16 bits) have them; palettes and colors are fine too. Pairs are found as for
    :class:`autotimm.data.formats.label_images.LabelImages`.

    Values are taken for ids where they start anew at 1 in each image and differ in number, or are in no second image,
    each in one piece. There is one class: ``object``, or that of a class table of one class besides the background.
    With several classes in the table an id is the value of the class times 1000 and a number.

    ``SegmentationObject/`` of PASCAL VOC, which CVAT exports too, is read as well: the class of an object is that of
    most of its pixels in ``SegmentationClass/``.
    """

    name = "ids"
    tasks = ("instance", "detection")
    covers = (LabelImages,)

    def see(self, listing: Listing) -> Sighting | None:
        """Pairs whose masks have values that behave like ids; uncertain where they could also be classes."""
        pairs = None if listing.file is not None else find_pairs(listing, objects=True)
        if pairs is None:
            return None
        if pairs.of_objects:
            what = f"{len(pairs.pairs)} masks of objects in SegmentationObject/"
            has_classes = bool(_class_masks(listing))
            hint = "For the objects in SegmentationObject/ give --task instance." if has_classes else ""
            return Sighting(what, self.tasks, certain=not has_classes, hint=hint)
        facts = mask_facts([pair.mask for pair in _spread(pairs.pairs)])
        readable = [fact for fact in facts.values() if not isinstance(fact, Problem)]
        what = f"{len(pairs.pairs)} label images whose values are ids of objects"
        sure = Sighting(what, self.tasks, hint="If they are classes, give --task segmentation.")
        table = find_class_table(listing)
        if table is not None and len(_objects_of(table)) > 1:
            return sure if _are_coded(readable, table) else None
        verdict = judge_ids(readable)
        if verdict.ids or not verdict.possible:
            return sure if verdict.ids else None
        hint = "If the values of the masks are ids of objects, give --task instance."
        return Sighting(what, self.tasks, certain=False, hint=hint if verdict.likely else "")

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the label images; see the base class."""
        root, report = listing.root, Report(options.strict)
        pairs = find_pairs(listing, objects=True)
        if pairs is None:
            raise DataError(
                f"There are no images with label images of ids in {listing.path}. Put images/X.png and masks/X.png."
            )
        splits = ordered(pairs.used(root, notices, report))
        used = [pair for items in splits.values() for pair in items]
        objects, sizes = object_ids_of([pair.mask for pair in used]), image_sizes([pair.image for pair in used])
        table = find_class_table(listing, notices)
        class_masks = _class_masks(listing) if pairs.of_objects else {}
        names = _Painted.of(listing, splits, class_masks, table, notices) if class_masks else _Classes.of(table)
        records = {
            split: [
                record
                for pair in items
                if (record := _record(pair, objects[pair.mask], sizes.get(pair.image), root, names, report))
            ]
            for split, items in splits.items()
        }
        notices.append(f"Classes of the ids: {join_names(names.names)}.")
        return object_tables(records, names.names, notices, masks=options.masks, report=report)


def read_instance_ids(
    folder: Path, notices: list[str], *, masks: bool = True, strict: bool = False
) -> dict[str, Table]:
    """Read label images of ids, see :class:`InstanceIds`.

    Args:
        folder: The folder.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Whether samples have masks; boxes alone otherwise.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return InstanceIds().read(Listing(folder), notices, ReadOptions(masks, strict))


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs spread over all of them: neighbors are often frames of one video."""
    step = max(1, len(pairs) // _LOOKED_AT)
    return list(pairs[::step][:_LOOKED_AT])


def _are_coded(facts: Sequence[MaskFacts], table: ClassTable) -> bool:
    """Whether values are those of classes times 1000 and a number."""
    classes = {value // _CODED for fact in facts for value in fact.values or () if value > 0}
    return bool(classes) and classes <= {row.value for row in table.rows} - {0}


def _objects_of(table: ClassTable) -> list[str]:
    return [name for name in table.names if name.lower() not in BACKGROUND_NAMES]


class _Classes(NamedTuple):
    """The classes of objects.

    Attributes:
        names: Their names.
        coded: The name for each id divided by 1000; empty where there is one class.
    """

    names: list[str]
    coded: dict[int, str]

    @classmethod
    def of(cls, table: ClassTable | None) -> _Classes:
        """By a class table, if there is one."""
        names = [_ONE_CLASS] if table is None else _objects_of(table)
        if table is None or len(names) < 2:
            return cls(names or [_ONE_CLASS], {})
        return cls(names, {row.value: row.name for row in table.rows if row.value is not None and row.name in names})

    def of_objects(self, mask: Path, objects: ObjectIds) -> list[str | None]:
        """The class of each object, or ``None``."""
        if len(self.names) == 1:
            return [self.names[0]] * len(objects.ids)
        return [self.coded.get(id // _CODED) for id in objects.ids]


def _class_masks(listing: Listing) -> dict[str, Path]:
    """VOC's masks of classes by the names of its masks of objects, without their extension and in lower case."""
    files = {_stem(file.name): file.path for file in listing.images_below()}
    return {
        name.replace("segmentationclass", "segmentationobject"): path
        for name, path in files.items()
        if "segmentationclass" in name.rpartition("/")[0]
    }


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()


class _Painted(NamedTuple):
    """Classes that masks of classes paint.

    Attributes:
        names: Their names, without the background.
        reading: How masks of classes are read.
        masks: The mask of classes of each mask of objects.
    """

    names: list[str]
    reading: MaskReading
    masks: dict[Path, Path]

    @classmethod
    def of(
        cls, listing: Listing, splits: Mapping[str, Sequence[Pair]], class_masks: Mapping[str, Path],
        table: ClassTable | None, notices: list[str],
    ) -> _Painted:  # fmt: skip
        """By the masks of classes of a folder."""
        of_objects = {
            pair.mask: class_masks[name]
            for pairs in splits.values()
            for pair in pairs
            if (name := _stem(relative(pair.mask, listing.root))) in class_masks
        }
        painted = {
            split: [pair._replace(mask=of_objects[pair.mask]) for pair in pairs if pair.mask in of_objects]
            for split, pairs in splits.items()
        }
        facts = mask_facts(list(of_objects.values()))
        reading = mask_reading(listing.root, painted, facts, table, notices, Report(strict=False))
        names = list(reading.class_names)
        if names and (names[0].lower() in BACKGROUND_NAMES or (table is None and names[0] == "0")):
            del names[0]
        return cls(names, reading, of_objects)

    def of_objects(self, mask: Path, objects: ObjectIds) -> list[str | None]:
        """The class that most pixels of each object have, or ``None`` if they have none."""
        if mask not in self.masks:
            return [None] * len(objects.ids)
        try:
            classes = self.reading.code.decode(read_pixels(self.masks[mask]))
        except BROKEN:
            return [None] * len(objects.ids)
        if classes.shape != (objects.height, objects.width):
            return [None] * len(objects.ids)
        labels = []
        for number in range(len(objects.ids)):
            inside = classes[objects.outline(number).mask(objects.height, objects.width).astype(bool)]
            counts = np.bincount(inside, minlength=IGNORED + 1)[:IGNORED]
            label = self.reading.class_names[counts.argmax()] if counts.any() else ""
            labels.append(label if label in self.names else None)
        return labels


def _record(
    pair: Pair, objects: ObjectIds | Problem, size: tuple[int, int] | None, root: Path, classes: _Classes | _Painted,
    report: Report,
) -> ImageRecord | None:  # fmt: skip
    """An image with its objects; ``None`` if it is left out."""
    name = relative(pair.mask, root)
    if isinstance(objects, Problem):
        report.add("masks that cannot be read", "left out with their images", f"{name} ({objects.reason})")
        return None
    if size is not None and size != (objects.width, objects.height):
        sizes = f"{objects.width}x{objects.height}, the image {size[0]}x{size[1]}"
        report.add("masks of another size than their image", "left out with it", f"{name} ({sizes})")
        return None
    records = []
    for number, label in enumerate(classes.of_objects(pair.mask, objects)):
        if label is None:
            report.add("objects without a class", "left out", f"{name} ({objects.ids[number]})")
        else:
            records.append(ObjectRecord(label, None, outline=objects.outline(number)))
    return ImageRecord(pair.image, pair.id, records)
