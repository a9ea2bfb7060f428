"""Tables of image files and labels as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from autotimm.data.formats.box_csv import has_boxes, is_label_table
from autotimm.data.formats.data_format import Format, ReadOptions, Sighting
from autotimm.data.formats.listing import Listing, relative, split_of, text
from autotimm.data.table import ImageTable
from autotimm.errors import DataError, join_names, nearest

__all__ = ["IMAGE_NAMES", "LABEL_NAMES", "ClassCsv", "CsvTable", "open_table", "read_csv"]

IMAGE_NAMES = ("image", "filename", "file_name", "file", "path", "image_path", "filepath", "img", "image_id", "name")
LABEL_NAMES = ("label", "class", "target", "category", "class_name", "label_name", "y")
_SUFFIXES = (".csv", ".tsv")
_SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


class ClassCsv(Format):
    """A table with a column of image files and one of classes, or several columns of zeros and ones.

    In a folder it is not recognized by itself, since tables lie beside all kinds of data; its path must be given.
    """

    name = "csv"
    tasks = ("classification",)

    def see(self, listing: Listing) -> Sighting | None:
        """A table that was given and has no boxes."""
        file = listing.file
        if file is None or file.suffix.lower() not in _SUFFIXES or has_boxes(file):
            return None
        return Sighting("a table of labels", self.tasks)

    def hint(self, listing: Listing) -> str:
        """Name a table of labels that the folder holds, that of the training split if there is one."""
        tables = [path for path in listing.files_below(_SUFFIXES, depth=1) if is_label_table(path)]
        if not tables:
            return ""
        table = min(tables, key=lambda path: split_of(path.name) != "train")
        return f"For classification give a table of labels, such as {relative(table, listing.root)}."

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, ImageTable]:
        """Read the table; see the base class, and :func:`read_csv` for several tables."""
        return read_csv({"train": listing.path}, notices)


def read_csv(
    files: Mapping[str, Path],
    notices: list[str],
    *,
    image_dir: Path | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
) -> dict[str, ImageTable]:
    """Read one CSV file per split.

    Files are UTF-8 with a header; commas, semicolons or tabs separate cells. File names are relative to ``image_dir``
    (or to its ``train/``, ``val/`` or ``test/``, if the files are there) and may not lead out of it. Rows that repeat
    another are dropped. Classes are the labels of the training table in byte order ("10" comes before "2", as for
    folders).

    Args:
        files: Path per split; ``train`` must be among them.
        notices: Receives one line for each thing that was left out or looks strange.
        image_dir: Folder of the images. Default: the folder of each CSV file.
        image_column: Column of the file names. Default: the first with a usual name (image, filename, path, ...).
        label_column: Column of the class. Several: one column of zeros and ones per class, for multi-label.
            Default: the first with a usual name (label, class, target, ...).

    Returns:
        One table per split.

    Raises:
        DataError: If a file, a column or a cell is wrong.
    """
    if label_column is not None and not label_column:
        raise DataError("The `label_column` names no column. Give one, or several for multi-label.")
    reader = _Reader(image_dir, image_column, label_column, notices)
    tables = {split: reader.read(files[split], split) for split in ("train", "val", "test") if split in files}
    for split, table in tables.items():
        if split != "train" and (shared := sorted(set(table.ids) & set(tables["train"].ids))):
            notices.append(f"{len(shared)} images are in both the train and the {split} table: {join_names(shared)}.")
    return tables


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        line: Its number in the file, from 1.
        cells: Its cells by column, as text.
    """

    line: int
    cells: dict[str, str]


@dataclass
class CsvTable:
    """The content of one CSV file.

    Attributes:
        path: The file.
        columns: The names in the header.
        rows: The lines below it.
    """

    path: Path
    columns: list[str]
    rows: list[Row]

    def error(self, message: str) -> DataError:
        """An error about this file."""
        return DataError(f"{self.path}: {message}")

    def column(self, name: str | None, usual: Sequence[str], argument: str) -> str:
        """The column of that name, or the first with one of the usual names.

        Raises:
            DataError: If there is none.
        """
        if name is None:
            by_lower = {column.lower(): column for column in reversed(self.columns)}
            if known := next((by_lower[usual_name] for usual_name in usual if usual_name in by_lower), None):
                return known
            raise self.error(
                f"no column has a usual name like {usual[0]!r}; which column is it? Give `{argument}`, one of "
                f"{join_names(self.columns, 20)}.{self._multi_label_hint(argument)}"
            )
        if name not in self.columns:
            cure = nearest(name, self.columns) or f"Columns are {join_names(self.columns, 20)}."
            raise self.error(f"there is no column {name!r}, which `{argument}` names. {cure}")
        return name

    def _multi_label_hint(self, argument: str) -> str:
        """What to give if several columns hold nothing but 0 and 1."""
        bits = [column for column in self.columns if all(row.cells[column].strip() in _BITS for row in self.rows)]
        several = argument == "label_column" and len(bits) > 1
        return f" For several labels per image: label_column={bits!r}." if several else ""


class _Labelled(NamedTuple):
    """One image of a table; ``label`` has a part per label column."""

    path: Path
    id: str
    label: tuple[str, ...]
    line: int


def open_table(path: Path) -> CsvTable:
    """Read the cells of a table as text.

    Raises:
        DataError: If it is missing, or not a table.
    """
    if not os.path.isfile(path):
        raise DataError(f"There is no file {path}. Check the path; relative paths start at {Path.cwd()}.")
    try:
        # utf-8-sig drops the byte order mark that spreadsheet programs write
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    if not "".join(lines).strip():
        raise DataError(f"{path} is empty. Write a header line and one line per image.")
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        columns = [column.strip() for column in next(reader)]
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Check quotes and line ends.") from error
    return _checked(CsvTable(path, columns, []), rows)


def _checked(table: CsvTable, rows: list[tuple[int, list[str]]]) -> CsvTable:
    if repeated := sorted({column for column in table.columns if table.columns.count(column) > 1}):
        raise table.error(f"columns that occur twice: {join_names(repeated)}. Rename one of each.")
    if not rows:
        raise table.error("there is a header but no row. Write one line per image.")
    if uneven := [str(line) for line, cells in rows if len(cells) != len(table.columns)]:
        raise table.error(f"lines that do not have {len(table.columns)} cells like the header: {join_names(uneven)}.")
    table.rows = [Row(line, dict(zip(table.columns, cells, strict=True))) for line, cells in rows]
    return table


def _base(table: CsvTable, column: str, image_dir: Path, split: str) -> Path:
    """The folder that the cells are relative to: ``image_dir``, or its folder of that split if the files are there."""
    first = table.rows[0].cells[column].strip()
    folders = [image_dir, *(image_dir / name for name in _SPLIT_FOLDERS[split])]
    return next((folder for folder in folders if os.path.lexists(folder / first)), image_dir)


def _locate(table: CsvTable, row: Row, column: str, base: Path, image_dir: Path) -> tuple[Path, str]:
    """The file that a cell names, and its id: its path relative to ``image_dir``."""
    cell = row.cells[column]
    if "\0" in cell:  # which no file system has; asked for such a file, Python raises an error of its own
        raise table.error(f"line {row.line} has a NUL byte in column {column!r}. Save the table as UTF-8 text.")
    if not os.path.lexists(base / cell):
        cell = cell.strip()
    if not cell:
        raise table.error(f"line {row.line} has no file name in column {column!r}. Fill it in or remove the line.")
    path, root = Path(os.path.abspath(base / cell)), os.path.abspath(image_dir)
    # As written, since a name with .. is never wanted, and with all links followed.
    if not path.is_relative_to(root) or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise table.error(
            f"line {row.line} leads outside of the image folder {image_dir}: {cell!r}. "
            "Give an `image_dir` that holds all images."
        )
    return path, text(path.relative_to(root).as_posix())


def _unique(table: CsvTable, rows: list[_Labelled], notices: list[str]) -> list[_Labelled]:
    kept: dict[str, _Labelled] = {}
    for row in rows:
        first = kept.setdefault(row.id, row)
        if first.label != row.label:
            raise table.error(
                f"lines {first.line} and {row.line} give {row.id} different labels. Keep one of them, or use "
                "several label columns if both are right."
            )
    if len(kept) < len(rows):
        notices.append(f"{table.path.name}: {len(rows) - len(kept)} rows that repeat another are counted once.")
    return list(kept.values())


def _label(table: CsvTable, row: Row, columns: Sequence[str], multi_label: bool) -> tuple[str, ...]:
    cells = tuple(row.cells[column].strip() for column in columns)
    if not multi_label and not cells[0]:
        raise table.error(f"line {row.line} has no label in column {columns[0]!r}. Fill it in or remove the line.")
    if multi_label:
        for column, cell in zip(columns, cells, strict=True):
            if cell not in _BITS:
                raise table.error(
                    f"line {row.line}, column {column!r}: a label of several must be 0 or 1. Got {cell!r} instead. "
                    "For one label per image give a single `label_column`."
                )
        return tuple(str(_BITS[cell]) for cell in cells)
    return cells


@dataclass
class _Reader:
    """Reads the tables of all splits with the same options; the classes are those of the first."""

    image_dir: Path | None
    image_column: str | None
    label_column: str | Sequence[str] | None
    notices: list[str]
    classes: tuple[str, ...] = ()

    def read(self, path: Path, split: str) -> ImageTable:
        table = open_table(path)
        image_dir = self.image_dir or path.parent
        if not os.path.isdir(image_dir):
            raise DataError(f"There is no image folder {image_dir}. Give `image_dir`.")
        column = table.column(self.image_column, IMAGE_NAMES, "image_column")
        columns, multi_label = self._label_columns(table)
        base = _base(table, column, image_dir, split)
        rows = []
        for row in table.rows:
            image, id = _locate(table, row, column, base, image_dir)
            rows.append(_Labelled(image, id, _label(table, row, columns, multi_label), row.line))
        rows = _unique(table, rows, self.notices)
        if not any(os.path.exists(row.path) for row in rows):
            raise table.error(
                f"none of its {len(rows)} files is in {image_dir}, for example {rows[0].id}. Give `image_dir`."
            )
        return self._table(table, rows, columns, multi_label)

    def _label_columns(self, table: CsvTable) -> tuple[list[str], bool]:
        if self.label_column is None or isinstance(self.label_column, str):
            return [table.column(self.label_column, LABEL_NAMES, "label_column")], False
        columns = [table.column(name, (), "label_column") for name in self.label_column]
        return columns, len(columns) > 1

    def _table(self, table: CsvTable, rows: list[_Labelled], columns: list[str], multi_label: bool) -> ImageTable:
        paths, ids = [row.path for row in rows], [row.id for row in rows]
        if multi_label:
            self.classes = tuple(columns)
            bits = torch.tensor([[int(cell) for cell in row.label] for row in rows], dtype=torch.uint8)
            return ImageTable(paths, ids, bits, columns)
        labels = [row.label[0] for row in rows]
        # Byte order, as for folders, so that the same data in the other format gives the same classes.
        self.classes = self.classes or tuple(sorted(set(labels), key=str.encode))
        if extra := sorted(set(labels) - set(self.classes)):
            raise table.error(
                f"labels that the training table does not have: {join_names(extra)}. Correct or remove these rows."
            )
        number = {name: index for index, name in enumerate(self.classes)}
        return ImageTable(paths, ids, torch.tensor([number[label] for label in labels]), self.classes)
