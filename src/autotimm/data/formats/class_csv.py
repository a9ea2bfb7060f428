"""Tables of image files and labels as CSV."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from autotimm.data.formats.box_csv import has_boxes, is_label_table
from autotimm.data.formats.csv_table import CsvTable, Row, open_table
from autotimm.data.formats.data_format import Format, ReadOptions, Report, Sighting
from autotimm.data.formats.listing import Listing, relative, split_of, text
from autotimm.data.formats.table_images import TableImages
from autotimm.data.formats.table_labels import bit_of, combined_by, is_missing, label_of, split_of_cell, tags_of
from autotimm.data.table import ImageTable
from autotimm.errors import DataError, join_names, require

__all__ = ["IMAGE_NAMES", "LABEL_NAMES", "ClassCsv", "read_csv"]

IMAGE_NAMES = ("image", "filename", "file_name", "file", "path", "image_path", "filepath", "img", "image_id", "name")
LABEL_NAMES = ("label", "class", "target", "category", "class_name", "label_name", "y")
_SUFFIXES = (".csv", ".tsv")
_SPLIT_NAMES = ("split", "set", "subset", "fold")


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
        return read_csv({"train": listing.path}, notices, strict=options.strict)


def read_csv(
    files: Mapping[str, Path],
    notices: list[str],
    *,
    image_dir: Path | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    strict: bool = False,
    only: str | None = None,
    group: str | None = None,
) -> dict[str, ImageTable]:
    """Read one CSV file per split.

    Files are UTF-8 with a header; commas, semicolons or tabs separate cells. File names are relative to ``image_dir``
    (or to its ``train/``, ``val/`` or ``test/``, if the files are there) and may not lead out of it; ids without an
    extension and paths of another computer are found by name, see
    :class:`autotimm.data.formats.table_images.TableImages`. Rows that repeat another are dropped, and those without a
    label. Where one table is given, a column of split names (split, set, subset or fold) is used. Classes are the
    labels of the training rows in byte order ("10" comes before "2", as for folders).

    Args:
        files: Path per split; ``train`` must be among them.
        notices: Receives one line for each thing that was left out or looks strange.
        image_dir: Folder of the images. Default: the folder of each CSV file.
        image_column: Column of the file names. Default: the first with a usual name (image, filename, path, ...).
        label_column: Column of the class. Several: one column of zeros and ones per class, for multi-label.
            Default: the first with a usual name (label, class, target, ...).
        label_separator: What separates the labels in a cell, for multi-label; a space is white space of any length.
        strict: Refuse rows without a label, and ambiguous file names, instead of leaving them out.
        only: Take the rows of this split alone from a table with a column of splits. They are the ``train`` returned.
        group: A column that names the group of each image, if the table has one of that name.

    Returns:
        One table per split.

    Raises:
        DataError: If a file, a column or a cell is wrong.
    """
    if label_column is not None and not label_column:
        raise DataError("The `label_column` names no column. Give one, or several for multi-label.")
    if label_separator is not None and label_column is not None and not isinstance(label_column, str):
        require(
            len(label_column) == 1, "label_separator", "a table", "left out with several label columns",
            label_separator, "Give one `label_column`, whose cells hold several labels.",
        )  # fmt: skip
    reader = _Reader(image_dir, image_column, label_column, label_separator, strict, notices, group)
    if len(files) == 1:
        tables = reader.read_splits(files["train"], only)
    else:
        tables = {split: reader.read(files[split], split) for split in ("train", "val", "test") if split in files}
    for split, table in tables.items():
        if split != "train" and (shared := sorted(set(table.ids) & set(tables["train"].ids))):
            notices.append(f"{len(shared)} images are in both the train and the {split} table: {join_names(shared)}.")
    return tables


class _Labelled(NamedTuple):
    """One image of a table; ``label`` has a part per label column."""

    path: Path
    id: str
    label: tuple[str, ...]
    line: int


@dataclass
class _Reader:
    """Reads the tables of all splits with the same options; the classes are those of the first.

    A table has one label per image, or one column of zeros and ones per class, or several labels in a cell.
    """

    image_dir: Path | None
    image_column: str | None
    label_column: str | Sequence[str] | None
    label_separator: str | None
    strict: bool
    notices: list[str]
    group: str | None
    classes: tuple[str, ...] = ()

    def read_splits(self, path: Path, only: str | None) -> dict[str, ImageTable]:
        """Read the only table, with its column of splits if it has one."""
        table = open_table(path)
        column = self._split_column(table)
        if column is None:
            return {"train": self._read(table, table.rows, "train", path.name)}
        parts: dict[str, list[Row]] = {}
        for row in table.rows:
            parts.setdefault(str(split_of_cell(row.cells[column])), []).append(row)
        wanted = [only] if only else [split for split in ("train", "val", "test") if split in parts]
        needed = only or "train"
        if needed not in parts:
            raise table.error(f"no row is of the split {needed}; column {column!r} has {join_names(sorted(parts))}.")
        counts = [f"{len(parts[split])} {split}" for split in wanted]
        self.notices.append(f"{path.name}: rows are split by column {column!r}: {join_names(counts)}.")
        # The name of the table says nothing of their split: train.csv may have rows of all.
        tables = {split: self._read(table, parts[split], split, f"{split}.csv") for split in wanted}
        return {"train": tables[only]} if only else tables

    def read(self, path: Path, split: str) -> ImageTable:
        """Read the table of a split."""
        table = open_table(path)
        return self._read(table, table.rows, split, path.name)

    def _split_column(self, table: CsvTable) -> str | None:
        """The column of split names, unless it is asked for as another one; ``None`` if there is none."""
        labels = [self.label_column] if isinstance(self.label_column, str) else self.label_column or ()
        taken = {self.image_column, *labels}
        for column in table.columns:
            if column.lower() not in _SPLIT_NAMES or column in taken:
                continue
            cells = sorted({row.cells[column].strip() for row in table.rows})
            strange = [cell for cell in cells if split_of_cell(cell) is None]
            if not strange:
                return column
            shown = join_names([repr(cell) for cell in strange])
            if len(strange) < len(cells):
                raise table.error(
                    f"column {column!r} has {shown} besides names of splits. Write train, val or test, or rename the "
                    "column if it is to be ignored."
                )
            # All cells are something else: numbers of folds, for example.
            self.notices.append(f"{table.path.name}: column {column!r} names no splits but {shown}, and is not used.")
        return None

    def _read(self, table: CsvTable, rows: Sequence[Row], split: str, name: str) -> ImageTable:
        """Read rows of a split; ``name`` is that of the table, from which images of other splits are told apart."""
        image_dir = self.image_dir or table.path.parent
        if not os.path.isdir(image_dir):
            raise DataError(f"There is no image folder {image_dir}. Give `image_dir`.")
        image_column = table.column(self.image_column, IMAGE_NAMES, "image_column")
        label_columns = self._label_columns(table)
        _check_names(table, rows, image_column)
        report = Report(self.strict)
        labels = self._labels(table, rows, label_columns, report)
        images = TableImages(name, image_dir, split, [row.cells[image_column] for row in rows], report)
        labelled = []
        for row in rows:
            if row.line in labels and (image := _locate(table, row, image_column, images, image_dir)):
                labelled.append(_Labelled(*image, labels[row.line], row.line))
        report.close(self.notices)
        labelled = _unique(table, labelled, self.notices)
        if not any(os.path.exists(row.path) for row in labelled):
            example = f", for example {rows[0].cells[image_column].strip()}" if labelled else ""
            raise table.error(f"none of its {len(labelled)} files is in {image_dir}{example}. Give `image_dir`.")
        if images.elsewhere:
            found = join_names(list(dict.fromkeys(images.elsewhere)))
            self.notices.append(
                f"{table.path.name}: {len(images.elsewhere)} files are not where it says, and found by their names: "
                f"{found}."
            )
        image_table = self._image_table(table, labelled, label_columns)
        if self.group is not None and self.group in table.columns:
            image_table.groups = _groups(table, labelled, self.group)
        return image_table

    def _label_columns(self, table: CsvTable) -> list[str]:
        """The column of labels; several of them are one per class."""
        if self.label_column is None or isinstance(self.label_column, str):
            return [table.column(self.label_column, LABEL_NAMES, "label_column")]
        return [table.column(name, (), "label_column") for name in self.label_column]

    def _labels(
        self, table: CsvTable, rows: Sequence[Row], columns: list[str], report: Report
    ) -> dict[int, tuple[str, ...]]:
        """The labels of each line that has any: one, a zero or one per column, or those in its cell."""
        labels: dict[int, tuple[str, ...]] = {}
        for row in rows:
            if all(is_missing(row.cells[column]) for column in columns):
                where = f"{table.path.name}, line {row.line}"
                report.add(f"rows without a label in column {join_names(columns)}", "left out", where)
            elif self.label_separator is not None:
                labels[row.line] = tags_of(row.cells[columns[0]], self.label_separator)
            elif len(columns) > 1:
                labels[row.line] = _bits(table, row, columns)
            else:
                labels[row.line] = (label_of(row.cells[columns[0]]),)
        if not labels:
            raise table.error(f"no row has a label in column {join_names(columns)}. Fill them in.")
        if self.label_separator is None and len(columns) == 1 and not self.classes:
            _refuse_combinations(table, columns[0], {label for (label,) in labels.values()})
        return labels

    def _image_table(self, table: CsvTable, rows: list[_Labelled], columns: list[str]) -> ImageTable:
        paths, ids = [row.path for row in rows], [row.id for row in rows]
        has_bits, has_tags = len(columns) > 1, self.label_separator is not None
        if has_bits:
            self.classes = tuple(columns)
            bits = torch.tensor([[int(cell) for cell in row.label] for row in rows], dtype=torch.uint8)
            return ImageTable(paths, ids, bits, columns)
        labels = {label for row in rows for label in row.label}
        # Byte order, as for folders, so that the same data in the other format gives the same classes.
        self.classes = self.classes or tuple(sorted(labels, key=str.encode))
        if extra := sorted(labels - set(self.classes)):
            raise table.error(
                f"labels that the training table does not have: {join_names(extra)}. Correct or remove these rows."
            )
        number = {name: index for index, name in enumerate(self.classes)}
        if not has_tags:
            return ImageTable(paths, ids, torch.tensor([number[row.label[0]] for row in rows]), self.classes)
        bits = torch.zeros(len(rows), len(self.classes), dtype=torch.uint8)
        for index, row in enumerate(rows):
            bits[index, [number[label] for label in row.label]] = 1
        return ImageTable(paths, ids, bits, self.classes)


def _locate(table: CsvTable, row: Row, column: str, images: TableImages, image_dir: Path) -> tuple[Path, str] | None:
    """The file that a cell names, and its id: its path relative to ``image_dir``; ``None`` if it may be several."""
    path, root = images.find(row.cells[column]), os.path.abspath(image_dir)
    if path is None:
        return None
    # As written, since a name with .. is never wanted, and with all links followed.
    if not path.is_relative_to(root) or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise table.error(
            f"line {row.line} leads outside of the image folder {image_dir}: {row.cells[column]!r}. "
            "Give an `image_dir` that holds all images."
        )
    return path, text(path.relative_to(root).as_posix())


def _check_names(table: CsvTable, rows: Sequence[Row], column: str) -> None:
    """Refuse rows that name no file."""
    for row in rows:
        if "\0" in row.cells[column]:  # which no file system has; asked for such a file, Python raises its own error
            raise table.error(f"line {row.line} has a NUL byte in column {column!r}. Save the table as UTF-8 text.")
        if not row.cells[column].strip():
            raise table.error(f"line {row.line} has no file name in column {column!r}. Fill it in or remove the line.")


def _unique(table: CsvTable, rows: list[_Labelled], notices: list[str]) -> list[_Labelled]:
    """Each image once; refuses one with different labels."""
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


def _bits(table: CsvTable, row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    """Zeros and ones of several label columns."""
    for column in columns:
        if bit_of(row.cells[column]) is None:
            raise table.error(
                f"line {row.line}, column {column!r}: a label of several must be 0 or 1. Got "
                f"{row.cells[column].strip()!r} instead. For one label per image give a single `label_column`."
            )
    return tuple(str(bit_of(row.cells[column])) for column in columns)


def _groups(table: CsvTable, rows: list[_Labelled], column: str) -> list[str]:
    """The group of each image, as a column names it."""
    cells = {row.line: row.cells[column].strip() for row in table.rows}
    if empty := [str(row.line) for row in rows if not cells[row.line]]:
        raise table.error(f"lines without a group in column {column!r}: {join_names(empty)}. Fill them in.")
    return [cells[row.line] for row in rows]


def _refuse_combinations(table: CsvTable, column: str, labels: set[str]) -> None:
    """Refuse cells with several labels each: every combination would be a class."""
    if separator := combined_by(labels):
        raise table.error(
            f"column {column!r} holds several labels in a cell, and each of {len(labels)} combinations would "
            f"be a class: {join_names(sorted(labels), 3)}. Give label_separator={separator!r}."
        )
