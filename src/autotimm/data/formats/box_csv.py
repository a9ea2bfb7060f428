"""A table of boxes as CSV: one line per object."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotimm.data.formats.coco import Images
from autotimm.data.formats.object_records import Box, Record, Report, Thing, object_tables
from autotimm.data.formats.split_layout import descend, files_below, ordered, relative, split_of
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["box_tables", "is_box_table", "is_label_table", "read_boxes_csv"]

_NAMES = {
    "image": ("filename", "file_name", "image", "image_path", "path", "filepath", "file", "img", "image_id", "imageid"),
    "label": ("class", "label", "class_name", "classname", "category", "name", "labelname", "label_name"),
    "x1": ("xmin", "x_min", "x1", "left", "bbox_xmin"),
    "y1": ("ymin", "y_min", "y1", "top", "bbox_ymin"),
    "x2": ("xmax", "x_max", "x2", "right", "bbox_xmax"),
    "y2": ("ymax", "y_max", "y2", "bottom", "bbox_ymax"),
}
_SIZE = {"width": ("width", "image_width", "img_width"), "height": ("height", "image_height", "img_height")}


def _columns(path: Path) -> tuple[dict[str, str], str]:
    """The columns that are known by a usual name, and the delimiter; nothing if this is no table."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
    except (OSError, UnicodeDecodeError):
        return {}, ","
    delimiter = max(",;\t", key=header.count)
    cells = next(csv.reader([header], delimiter=delimiter), [])
    lower = {cell.strip().lower(): cell for cell in reversed(cells)}
    found = {key: lower[name] for key, names in (_NAMES | _SIZE).items() for name in reversed(names) if name in lower}
    return found, delimiter


def is_box_table(path: Path) -> bool:
    """Whether a CSV file has columns for images, classes and boxes."""
    return _columns(path)[0].keys() >= _NAMES.keys()


def is_label_table(path: Path) -> bool:
    """Whether a CSV file has a column for images and no boxes."""
    return "image" in _columns(path)[0] and not is_box_table(path)


def box_tables(root: Path) -> list[Path]:
    """The tables of boxes in a folder and just below."""
    return [path for path in files_below(root, (".csv", ".tsv"), depth=2) if is_box_table(path)]


def read_boxes_csv(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read tables with a line per box: ``filename,width,height,class,xmin,ymin,xmax,ymax``, or columns of like names.

    Coordinates are pixels from 0 as they are, the right and lower ends outside; where none is above 1 they are shares
    of the image. ``width`` and ``height`` are the image's and may be missing. A line with empty coordinates lists an
    image without objects; an image that no line names is not read. The split comes from the name of the file or its
    folder, images are looked for beside and below. Classes are sorted by name.

    Args:
        folder: The folder, or a CSV file.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Refused: there are no outlines.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table for each split that there is.

    Raises:
        DataError: If the data cannot be used.
    """
    if masks:
        raise DataError(f"{folder} has tables of boxes without outlines. Use task='detection'.")
    root = folder.parent if folder.is_file() else descend(folder)
    splits: dict[str, Path] = {}
    files = [folder] if folder.is_file() else box_tables(root)
    for path in files:
        name = relative(path, root)
        split = (split_of(name) if len(files) > 1 else None) or "train"
        if split in splits:
            both = f"{relative(splits[split], root)} and {name}"
            raise DataError(f"{root} has two tables of boxes for {split}: {both}. Remove one, or give a path.")
        splits[split] = path
    if not splits:
        raise DataError(
            f"There is no table of boxes in {folder}. It needs the header filename,class,xmin,ymin,xmax,ymax."
        )
    report = Report(strict)
    read = {split: _records(path, root, split, report) for split, path in ordered(splits).items()}
    names = sorted(
        {thing.label for records in read.values() for one in records for thing in one.things}, key=str.encode
    )
    return object_tables(read, names, notices, report=report)


def _records(path: Path, root: Path, split: str, report: Report) -> list[Record]:
    columns, delimiter = _columns(path)
    if lacking := [_NAMES[key][0] for key in _NAMES if key not in columns]:
        raise DataError(f"{path} has no column for {join_names(lacking)}. Name them so in the header.")
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter=delimiter) if (row[columns["image"]] or "").strip()]
    images = Images(root, path, split, list(dict.fromkeys(_cell(row, columns["image"]) for row in rows)))
    things: dict[str, list[Thing]] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    for line, row in enumerate(rows, 2):
        name = _cell(row, columns["image"])
        sizes.setdefault(name, _size(row, columns))
        listed = things.setdefault(name, [])
        cells = [_cell(row, columns[key]) for key in ("x1", "y1", "x2", "y2")]
        if any(cells):
            try:
                listed.append(_thing(_cell(row, columns["label"]), cells))
            except ValueError as error:
                report.add("lines that cannot be used", "left out", f"{relative(path, root)}, row {line} ({error})")
    boxes = [thing.box for listed in things.values() for thing in listed if thing.box is not None]
    shares = bool(boxes) and max(map(max, boxes)) <= 1
    found = {name: images.find(name) for name in things}
    return [Record(found[name], relative(found[name], root), things[name], sizes[name], shares) for name in things]


def _cell(row: Mapping[str, str | None], column: str) -> str:
    return (row[column] or "").strip()


def _size(row: Mapping[str, str | None], columns: Mapping[str, str]) -> tuple[int, int] | None:
    cells = [_cell(row, columns[key]) for key in _SIZE if key in columns]
    return (int(cells[0]), int(cells[1])) if len(cells) == 2 and all(cell.isdigit() for cell in cells) else None


def _thing(label: str, cells: Sequence[str]) -> Thing:
    if not label:
        raise ValueError("no class")
    x1, y1, x2, y2 = (float(cell or math.nan) for cell in cells)
    box: Box = (x1, y1, x2, y2)
    return Thing(label, box)
