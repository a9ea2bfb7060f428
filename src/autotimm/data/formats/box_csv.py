"""A table of boxes as CSV: one line per object."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotimm.data.annotations.outlines import Box
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting, ordered
from autotimm.data.formats.image_finder import ImageFinder, note_unlisted
from autotimm.data.formats.listing import Listing, in_byte_order, relative, split_of, text
from autotimm.data.formats.object_records import ImageRecord, ObjectRecord, is_set, object_tables
from autotimm.data.table import Table
from autotimm.errors import DataError, join_names

__all__ = ["BoxCsv", "has_boxes", "is_label_table", "read_boxes_csv"]

_SUFFIXES = (".csv", ".tsv")
_COLUMNS = {
    "image": ("filename", "file_name", "image", "image_path", "path", "filepath", "file", "img", "image_id", "imageid"),
    "label": ("class", "label", "class_name", "classname", "category", "name", "labelname", "label_name"),
    "x1": ("xmin", "x_min", "x1", "left", "bbox_xmin"),
    "y1": ("ymin", "y_min", "y1", "top", "bbox_ymin"),
    "x2": ("xmax", "x_max", "x2", "right", "bbox_xmax"),
    "y2": ("ymax", "y_max", "y2", "bottom", "bbox_ymax"),
}
_SIZE_COLUMNS = {"width": ("width", "image_width", "img_width"), "height": ("height", "image_height", "img_height")}
_CROWD_COLUMNS = {"crowd": ("isgroupof", "iscrowd", "is_crowd")}
_CODE = re.compile(r"/[mg]/\w+")  # a class of OpenImages


class BoxCsv(Format):
    """Tables with a line per box: ``filename,width,height,class,xmin,ymin,xmax,ymax``, or columns of similar names.

    Coordinates are pixels from 0 as they are, the right and lower ends outside; where none is above 1 they are
    fractions of the image. ``width`` and ``height`` are the image's and may be missing. A line with empty coordinates
    lists an image without objects; an image that no line names is not read. The split comes from the name of the file
    or its folder; images are looked for beside and below. Classes are sorted by name. A column whose name is asked for
    as ``group`` names what an image belongs to, the same in all its lines.

    OpenImages' tables are such tables: ``ab0`` finds ``ab0.jpg``, a class-descriptions file gives the names of classes
    such as ``/m/01g317``, and boxes of groups (``IsGroupOf``) are crowds.

    See:
        https://storage.googleapis.com/openimages/web/download_v7.html
    """

    name = "csv"
    tasks = ("detection",)

    def see(self, listing: Listing) -> Sighting | None:
        """Tables with columns for images, classes and boxes."""
        files = _box_tables(listing)
        if not files:
            return None
        return Sighting("a table of boxes" if listing.file else f"{len(files)} tables of boxes", self.tasks)

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the tables; see the base class."""
        if options.masks:
            raise DataError(f"{listing.path} has tables of boxes without outlines. Use task='detection'.")
        root = listing.base
        files = [listing.file] if listing.file is not None else _box_tables(listing)
        splits: dict[str, Path] = {}
        for path in files:
            name = relative(path, root)
            split = (split_of(name) if len(files) > 1 else None) or "train"
            if split in splits:
                both = f"{relative(splits[split], root)} and {name}"
                raise DataError(f"{root} has two tables of boxes for {split}: {both}. Remove one, or give a path.")
            splits[split] = path
        if not splits:
            raise DataError(
                f"There is no table of boxes in {listing.path}. It needs the header filename,class,xmin,ymin,xmax,ymax."
            )
        report = Report(options.strict)
        tables = {
            split: _records(path, listing, split, report, options.group) for split, path in ordered(splits).items()
        }
        records = {split: images for split, (images, _) in tables.items()}
        note_unlisted(listing, [finder for _, finder in tables.values()], notices)
        named = _with_class_names(records, listing, notices)
        labels = {record.label for images in named.values() for image in images for record in image.objects}
        return object_tables(named, in_byte_order(labels), notices, report=report, corners=True)


def read_boxes_csv(folder: Path, notices: list[str], *, masks: bool = False, strict: bool = False) -> dict[str, Table]:
    """Read tables of boxes, see :class:`BoxCsv`.

    Args:
        folder: The folder, or a CSV file.
        notices: Receives one line for each thing that was left out or looks strange.
        masks: Refused: there are no outlines.
        strict: Refuse what is wrong instead of leaving it out.

    Returns:
        A table per split.

    Raises:
        DataError: If the data cannot be used.
    """
    return BoxCsv().read(Listing(folder), notices, ReadOptions(masks, strict))


def has_boxes(path: Path) -> bool:
    """Whether a CSV file has columns for images, classes and boxes."""
    return _columns(path)[0].keys() >= _COLUMNS.keys()


def is_label_table(path: Path) -> bool:
    """Whether a CSV file has a column for images and no boxes."""
    return "image" in _columns(path)[0] and not has_boxes(path)


def _box_tables(listing: Listing) -> list[Path]:
    files = listing.files_below(_SUFFIXES, depth=2) if listing.file is None else [listing.file]
    return [path for path in files if path.suffix.lower() in _SUFFIXES and has_boxes(path)]


def _columns(path: Path) -> tuple[dict[str, str], str]:
    """The columns that have a usual name, and the delimiter; no columns if this is not a table."""
    try:
        # Names of files and classes below may have other bytes than UTF-8, and a part of them is read with the header.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline()
        delimiter = max(",;\t", key=header.count)
        cells = next(csv.reader([header], delimiter=delimiter), [])
    except (OSError, csv.Error):
        return {}, ","
    lower = {cell.strip().lower(): cell for cell in reversed(cells)}
    usual = (_COLUMNS | _SIZE_COLUMNS | _CROWD_COLUMNS).items()
    return {key: lower[name] for key, names in usual for name in reversed(names) if name in lower}, delimiter


def _records(
    path: Path, listing: Listing, split: str, report: Report, group: str | None
) -> tuple[list[ImageRecord], ImageFinder]:
    """The images of a table in the order of their first lines, and how they were found."""
    columns, delimiter = _columns(path)
    if missing := [_COLUMNS[key][0] for key in _COLUMNS if key not in columns]:
        raise DataError(f"{path} has no column for {join_names(missing)}. Name them so in the header.")
    rows = _rows(path, delimiter, columns["image"])
    root, names = listing.base, [_cell(row, columns["image"]) for row in rows]
    finder = ImageFinder(listing, path, split, list(dict.fromkeys(names)), report)
    groups = _groups(path, rows, names, group)
    objects: dict[str, list[ObjectRecord]] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    for line, (name, row) in enumerate(zip(names, rows, strict=True), 2):
        sizes.setdefault(name, _size(row, columns))
        of_image = objects.setdefault(name, [])  # a line without a box lists an image without objects
        label = _cell(row, columns["label"])
        cells = [_cell(row, columns[key]) for key in ("x1", "y1", "x2", "y2")]
        if not any(cells):
            continue
        if label != text(label):
            raise DataError(f"{path}, row {line}: the class {text(label)} is not UTF-8. Save the table as UTF-8.")
        try:
            record = _object(label, cells)
        except ValueError as error:
            report.add("lines that cannot be used", "left out", f"{relative(path, root)}, row {line} ({error})")
            continue
        of_image.append(record._replace(crowd="crowd" in columns and is_set(_cell(row, columns["crowd"]))))
    boxes = [record.box for records in objects.values() for record in records if record.box is not None]
    # By all boxes of the table: those of a single image may be tiny.
    are_fractions = bool(boxes) and max(map(max, boxes)) <= 1
    records = []
    for name, of_image in objects.items():
        if (image := finder.find(name)) is not None:
            id = relative(image, root)
            records.append(ImageRecord(image, id, of_image, sizes[name], are_fractions, groups.get(name, "")))
    return records, finder


def _rows(path: Path, delimiter: str, image_column: str) -> list[dict[str, str | None]]:
    """The lines of a table that name an image, as cells by column.

    Raises:
        DataError: If it is not a table.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return [row for row in csv.DictReader(file, delimiter=delimiter) if (row[image_column] or "").strip()]
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}. Check quotes and line ends.") from error


def _groups(
    path: Path, rows: Sequence[Mapping[str, str | None]], names: Sequence[str], group: str | None
) -> dict[str, str]:
    """The group of each image, by a column of this name; nothing if there is none."""
    column = next((cell for cell in (rows[0] if rows else ()) if cell and cell.strip() == group), None)
    if column is None:
        return {}
    groups: dict[str, str] = {}
    for name, row in zip(names, rows, strict=True):
        value = _cell(row, column)
        if not value or groups.setdefault(name, value) != value:
            what = "several values" if value else "no value"
            raise DataError(
                f"{path} must name one group for each image in column {group!r}. {name} has {what}. Correct its lines."
            )
    return groups


def _with_class_names(
    splits: Mapping[str, Sequence[ImageRecord]], listing: Listing, notices: list[str]
) -> dict[str, Sequence[ImageRecord]]:
    """The images with names in place of OpenImages' codes of classes, as far as a file gives them."""
    labels = {record.label for images in splits.values() for image in images for record in image.objects}
    codes = set(filter(_CODE.fullmatch, labels))
    if not codes:
        return dict(splits)
    names = _class_descriptions(listing)
    if unknown := sorted(codes - names.keys()):
        notices.append(
            f"{len(unknown)} classes have a code and no name: {join_names(unknown)}. OpenImages' file "
            "class-descriptions-boxable.csv gives the names: add it to the folder."
        )
    return {
        split: [
            image._replace(objects=[one._replace(label=names.get(one.label, one.label)) for one in image.objects])
            for image in images
        ]
        for split, images in splits.items()
    }


def _class_descriptions(listing: Listing) -> dict[str, str]:
    """OpenImages' names of classes by their codes: lines such as ``/m/01g317,Person``."""
    names: dict[str, str] = {}
    for path in listing.files_below((".csv",)):
        if "class" in path.name.lower():
            with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
                rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
            names |= {row[0]: row[1] for row in rows if len(row) == 2 and _CODE.fullmatch(row[0]) and row[1]}
    return names


def _cell(row: Mapping[str, str | None], column: str) -> str:
    return (row[column] or "").strip()


def _size(row: Mapping[str, str | None], columns: Mapping[str, str]) -> tuple[int, int] | None:
    cells = [_cell(row, columns[key]) for key in _SIZE_COLUMNS if key in columns]
    return (int(cells[0]), int(cells[1])) if len(cells) == 2 and all(cell.isdecimal() for cell in cells) else None


def _object(label: str, cells: Sequence[str]) -> ObjectRecord:
    if not label:
        raise ValueError("no class")
    x1, y1, x2, y2 = (float(cell or math.nan) for cell in cells)
    box: Box = (x1, y1, x2, y2)
    return ObjectRecord(label, box)
