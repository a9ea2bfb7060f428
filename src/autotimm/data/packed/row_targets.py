"""Targets as JSON in the rows of a packed data set, and tables of such rows.

- classes: a list of class indices, ``[3]``;
- objects: a list of objects, with the class index as ``label``, ``box`` and ``stated``, ``crowd``, ``area`` and
  ``outline``, see :class:`autotimm.data.annotations.objects.Annotation`. An outline is a list of polygons, the run
  lengths of a COCO file, or the bytes of a mask file among the masks of the row;
- pixels: pairs of class index and number of pixels; the mask file is the masks of the row.

Numbers are written so that they are read back with the same bits.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from autotimm.data.annotations.masks import MaskCode, MaskTable
from autotimm.data.annotations.objects import Annotation, ObjectTable
from autotimm.data.annotations.outlines import MaskFile, Outline, Polygons, RunLengths, read_outline
from autotimm.data.packed.row_store import KINDS, SPLITS, Head, ListedRow, Rows
from autotimm.data.table import ImageTable, Subset, Table
from autotimm.data.texts import Joined, Texts
from autotimm.errors import DataError, UsageError, sentence
from autotimm.records.readers import Fields, misfit
from autotimm.serialization import parse_json

__all__ = ["WrittenTarget", "head_of", "tables_of", "written_target"]

_OBJECT = Fields(
    {
        "label": int, "box": [float], "stated": (type(None), [float]), "crowd": bool, "area": float,
        "outline": (type(None), Fields({"polygons": [[float]], "size": [int], "counts": str, "bytes": [int],
                                        "bounds": [int]})),
    },
    ("label", "box", "crowd", "area"),
)  # fmt: skip
_SHAPES = {"classes": [int], "boxes": [_OBJECT], "instances": [_OBJECT], "pixels": [[int]]}


class WrittenTarget(NamedTuple):
    """The target of a sample as a row holds it.

    Attributes:
        text: The target as JSON.
        masks: The files that belong to it, one after the other.
    """

    text: str
    masks: bytes = b""


def _source(table: Table, index: int) -> tuple[Table, int]:
    """The table that a subset is of, and the index in it."""
    while isinstance(table, Subset):
        index = int(table.indices[index])
        table = table.table
    return table, index


def head_of(tables: Mapping[str, Table]) -> Head:
    """What describes tables whose samples are to be packed.

    Raises:
        UsageError: If their samples are no files.
    """
    train = tables["train"]
    source, _ = _source(train, 0)
    if not isinstance(source, (ImageTable, ObjectTable, MaskTable)):
        must = "image files with classes, objects or masks"
        raise UsageError(sentence("data", "pack", must, type(source).__name__, "Give a folder that fit reads."))
    if any(table.class_names != train.class_names for table in tables.values()):
        raise UsageError("Pack needs the same classes in all splits. They differ. Pack them alone.")
    code = None
    if isinstance(source, MaskTable):
        codes = {part.code for table in tables.values() if isinstance(part := _source(table, 0)[0], MaskTable)}
        if len(codes) > 1:
            raise UsageError("Pack needs masks whose values mean the same in all splits. They do not. Pack them alone.")
        code = {name: getattr(source.code, name) for name in ("by_color", "keys", "classes", "nearest")}
    samples = {split: len(tables[split]) if split in tables else 0 for split in SPLITS}
    return Head(
        train.kind, train.class_names, train.multi_label, train.category_ids, source.reading.upright, samples, code
    )


def written_target(table: Table, index: int) -> WrittenTarget:
    """The target of a sample, to be read by :func:`tables_of`.

    Raises:
        OSError: If a mask file cannot be read.
    """
    source, index = _source(table, index)
    if isinstance(source, MaskTable):
        return WrittenTarget(json.dumps([*source.present(index).items()]), source.mask_content(index))
    if isinstance(source, ObjectTable):
        masks: list[bytes] = []
        objects = [_written_object(source, index, each, masks) for each in source.annotations(index)]
        return WrittenTarget(json.dumps(objects), b"".join(masks))
    assert isinstance(source, ImageTable)
    assert source.targets is not None
    target = source.targets[index]
    return WrittenTarget(json.dumps(target.nonzero().flatten().tolist() if source.multi_label else [int(target)]))


def _written_object(table: ObjectTable, index: int, each: Annotation, masks: list[bytes]) -> dict[str, Any]:
    """An object as JSON; the content of its mask file, if it has one, is appended to ``masks``."""
    written: dict[str, Any] = {
        "label": table.class_names.index(each.label), "box": each.box, "crowd": each.crowd, "area": each.area,
    }  # fmt: skip
    written |= {"stated": each.stated} if each.stated is not None else {}
    outline = each.outline
    if isinstance(outline, Polygons):
        written["outline"] = {"polygons": [part.ravel().tolist() for part in outline.parts]}
    elif isinstance(outline, RunLengths):
        written["outline"] = outline.as_coco()
    elif outline is not None:
        begin = sum(map(len, masks))
        masks.append(table.mask_content(index, outline))
        written["outline"] = {"bytes": [begin, begin + len(masks[-1])], "bounds": outline.bounds}
    return written


def tables_of(rows: Rows, head: Head, *, masks: bool) -> dict[str, Table]:
    """The tables of a packed data set.

    Args:
        rows: Its rows.
        head: What describes it.
        masks: Whether samples of instances have masks.

    Raises:
        DataError: If a target is damaged.
    """
    listed = rows.checked_list(head)
    all_ids: list[Texts] = []
    tables: dict[str, Table] = {}
    first = 0
    for split, number in head.samples.items():
        targets = _Targets(rows, head, masks)
        ids = Texts(targets.taken(row) for row in islice(listed, number))  # one pass: rows are not listed twice
        all_ids.append(ids)
        if number:
            table = targets.table([str(place) for place in range(first, first + number)], ids)
            table.packed_rows, table.category_ids = rows, head.category_ids
            table.packed_places = np.arange(first, first + number)
            tables[split] = table
        first += number
    next(listed, None)  # there must be no other
    rows.ids = Joined(all_ids)
    return tables


class _Targets:
    """The targets of one split, as they are read."""

    def __init__(self, rows: Rows, head: Head, masks: bool) -> None:
        self._rows, self._head, self._masks = rows, head, masks and head.kind == "instances"
        self._labels = array("q")
        self._bits: list[list[int]] = []
        self._others: list[Any] = []

    def taken(self, row: ListedRow) -> str:
        """Check and keep the target of a row; return its id."""
        try:
            self._take(parse_json(row.target))
        except (ValueError, OverflowError):
            raise DataError(
                f"The target of {row.id} in {self._rows.path} must be one for {KINDS[self._head.kind]} with "
                f"{len(self._head.class_names)} classes. It is {row.target[:80]!r}. {self._rows.cure}"
            ) from None
        return row.id

    def _take(self, value: Any) -> None:
        """Check and keep a target; here and below, a ``ValueError`` says that it is none."""
        kind = self._head.kind
        if misfit(value, _SHAPES[kind]) is not None:
            raise ValueError
        if kind == "classes":
            self._take_classes(value)
        elif kind == "pixels":
            self._take_pixels(value)
        else:
            self._others.append([self._annotation(each) for each in value])

    def _take_classes(self, labels: list[int]) -> None:
        if not all(0 <= label < len(self._head.class_names) for label in labels):
            raise ValueError
        if self._head.multi_label:
            self._bits.append(labels)
        elif len(labels) == 1:
            self._labels.append(labels[0])
        else:
            raise ValueError

    def _take_pixels(self, pairs: list[list[int]]) -> None:
        amounts: dict[int, int] = {}
        for label, amount in pairs:  # a ValueError where they are no pairs
            if not (0 <= label < len(self._head.class_names) and amount >= 0):
                raise ValueError
            amounts[label] = amount
        self._others.append(amounts)

    def _annotation(self, value: dict[str, Any]) -> Annotation:
        stated, outline = value.get("stated"), value.get("outline")
        checked = _outline(outline) if self._masks and outline is not None else None
        box = _four(value["box"])
        lacks_outline = self._masks and checked is None and not value["crowd"]
        if lacks_outline or not math.isfinite(value["area"]):
            raise ValueError
        return Annotation(
            self._name(value["label"]),
            box,
            value["crowd"],
            checked,
            value["area"],
            None if stated is None else _four(stated),
        )

    def _name(self, label: int) -> str:
        if not 0 <= label < len(self._head.class_names):
            raise ValueError
        return self._head.class_names[label]

    def table(self, places: Sequence[str], ids: Texts) -> Table:
        """The table of the targets that were taken."""
        head = self._head
        if head.kind == "pixels":
            assert head.code is not None
            code = MaskCode(head.code["by_color"], tuple(head.code["keys"]), tuple(head.code["classes"]),
                            head.code["nearest"])  # fmt: skip
            return MaskTable(places, [f"the mask of {id}" for id in ids], ids, head.class_names, code, self._others)
        if head.kind != "classes":
            return ObjectTable(places, ids, head.class_names, self._others, self._masks)
        targets = torch.from_numpy(np.array(self._labels, np.int64))
        if head.multi_label:
            targets = torch.zeros(len(ids), len(head.class_names), dtype=torch.uint8)
            for row, labels in enumerate(self._bits):
                targets[row, labels] = 1
        return ImageTable(places, ids, targets, head.class_names)


def _four(numbers: list[float]) -> tuple[float, float, float, float]:
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def _outline(value: dict[str, Any]) -> Outline:
    """The outline of an object, checked."""
    if "polygons" in value:
        parts = [np.array(part, np.float64) for part in value["polygons"]]
        if not parts or any(part.size % 2 or not np.isfinite(part).all() for part in parts):
            raise ValueError
        return Polygons(tuple(part.reshape(-1, 2) for part in parts))
    if "counts" in value and (runs := read_outline({"size": value.get("size"), "counts": value["counts"]})) is not None:
        return runs
    begin, end = value.get("bytes", ())  # another length is a ValueError, too
    left, top, right, bottom = value.get("bounds", ())
    if not (0 <= begin <= end and all(0 <= side < 1 << 32 for side in (left, top, right, bottom))):
        raise ValueError
    return MaskFile(f"{begin}:{end}", (left, top, right, bottom))
