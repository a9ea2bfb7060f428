"""Instances as one label image per image, whose values are ids of objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autotimm.data.annotations.masks import MaskFacts
from autotimm.data.annotations.object_ids import ObjectIds, judge_ids
from autotimm.data.file_facts import Problem, image_sizes, mask_facts, object_ids_of
from autotimm.data.formats.class_tables import ClassTable, find_class_table
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting
from autotimm.data.formats.label_images import LabelImages
from autotimm.data.formats.listing import Listing, relative
from autotimm.data.formats.mask_pairs import Pair, find_pairs
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, object_tables
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["InstanceIds", "read_instance_ids"]

_LOOKED_AT = 64  # masks that decide whether values are ids
_CODED = 1000  # id = class * 1000 + number, as Cityscapes writes
_BACKGROUND = ("background", "bg", "_background_")
_ONE_CLASS = "object"


class InstanceIds(Format):
    """Images with a label image each whose values are ids of objects: 0 is background, 1 to N are the objects.

    As torchvision's tutorial (``PNGImages/X.png`` with ``PedMasks/X_mask.png``), Cellpose (``X_cp_masks.png``) and
    StarDist (``images/``, ``masks/``; 16 bits) have them; palettes and colors are fine too. Pairs are found as for
    :class:`autotimm.data.formats.label_images.LabelImages`.

    Values are taken for ids where they start anew at 1 in each image and differ in number, or are in no second image,
    each in one piece. There is one class: ``object``, or that of a class table of one class besides the background.
    With several classes in the table an id is the value of the class times 1000 and a number.
    """

    name = "ids"
    tasks = ("instance", "detection")
    covers = (LabelImages,)

    def see(self, listing: Listing) -> Sighting | None:
        """Pairs whose masks have values that behave like ids; uncertain where they could also be classes."""
        pairs = None if listing.file is not None else find_pairs(listing)
        if pairs is None:
            return None
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
        pairs = find_pairs(listing)
        if pairs is None:
            raise DataError(
                f"There are no images with label images of ids in {listing.path}. Put images/X.png and masks/X.png."
            )
        splits = pairs.used(root, notices, report)
        used = [pair for items in splits.values() for pair in items]
        objects, sizes = object_ids_of([pair.mask for pair in used]), image_sizes([pair.image for pair in used])
        classes = _Classes.of(find_class_table(listing))
        records = {
            split: [
                record
                for pair in items
                if (record := _record(pair, objects[pair.mask], sizes.get(pair.image), root, classes, report))
            ]
            for split, items in splits.items()
        }
        notices.append(f"Classes of the ids: {join_names(classes.names)}.")
        return object_tables(records, classes.names, notices, masks=options.masks, report=report)


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
    return [name for name in table.names if name.lower() not in _BACKGROUND]


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

    def of_id(self, id: int) -> str | None:
        """The class of an object, or ``None``."""
        return self.names[0] if len(self.names) == 1 else self.coded.get(id // _CODED)


def _record(
    pair: Pair, objects: ObjectIds | Problem, size: tuple[int, int] | None, root: Path, classes: _Classes,
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
    for number, id in enumerate(objects.ids):
        label = classes.of_id(id)
        if label is None:
            report.add("ids that are not the value of a class times 1000 and a number", "left out", f"{name} ({id})")
        else:
            records.append(ObjectRecord(label, None, outline=objects.outline(number)))
    return ImageRecord(pair.image, pair.id, records)
