"""A CSV file as text: its columns and lines, and which column is meant. What cells mean is for those who read it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from autotimm.data.formats.table_labels import bit_of
from autotimm.errors import DataError, join_names, nearest

__all__ = ["CsvTable", "Row", "open_table"]


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
            if known := self.usual_column(usual):
                return known
            raise self.error(
                f"no column has a usual name like {usual[0]!r}; which column is it? Give `{argument}`, one of "
                f"{join_names(self.columns, 20)}.{self._multi_label_hint(argument)}"
            )
        if name not in self.columns:
            cure = nearest(name, self.columns) or f"Columns are {join_names(self.columns, 20)}."
            raise self.error(f"there is no column {name!r}, which `{argument}` names. {cure}")
        return name

    def usual_column(self, names: Sequence[str]) -> str | None:
        """The column that has the first of these names to occur, whatever their case; ``None`` without one."""
        by_lower = {column.lower(): column for column in reversed(self.columns)}  # of columns alike the first
        return next((by_lower[name] for name in names if name in by_lower), None)

    def _multi_label_hint(self, argument: str) -> str:
        """What to give if several columns hold nothing but 0 and 1."""
        bits = [column for column in self.columns if all(bit_of(row.cells[column]) is not None for row in self.rows)]
        several = argument == "label_column" and len(bits) > 1
        return f" For several labels per image: label_column={bits!r}." if several else ""


def open_table(path: Path) -> CsvTable:
    """Read the cells of a table as text.

    Raises:
        DataError: If it is missing, or not a table.
    """
    if not os.path.isfile(path):
        raise DataError(f"There is no file {path}. Check the path; relative paths start at {Path.cwd()}.")
    try:
        # utf-8-sig drops the byte order mark that spreadsheet programs write
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    # Not str.splitlines, which breaks lines at U+2028 and at other characters that are part of a cell.
    first = next((line for line in io.StringIO(content, newline="") if line.strip()), None)
    if first is None:
        raise DataError(f"{path} is empty. Write a header line and one line per image.")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=max(",;\t", key=first.count))
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Check quotes and line ends.") from error
    if not rows:
        raise DataError(f"{path} has no header. Write the names of its columns into the first line.")
    columns = [column.strip() for column in rows[0][1]]
    return _checked(CsvTable(path, columns, []), rows[1:])


def _checked(table: CsvTable, rows: list[tuple[int, list[str]]]) -> CsvTable:
    """The table with its lines, if these fit its header; columns without a name are left out."""
    named = [column for column in table.columns if column]  # spreadsheets write columns without name or content
    if repeated := sorted({column for column in named if named.count(column) > 1}):
        raise table.error(f"columns that occur twice: {join_names(repeated)}. Rename one of each.")
    if not rows:
        raise table.error("there is a header but no row. Write one line per image.")
    width = len(table.columns)
    # More cells than the header has are no fault while they are empty: spreadsheets write such lines too.
    if uneven := [str(line) for line, cells in rows if len(cells) < width or any(map(str.strip, cells[width:]))]:
        raise table.error(f"lines that do not have {width} cells like the header: {join_names(uneven)}.")
    places = [(place, column) for place, column in enumerate(table.columns) if column]
    table.rows = [Row(line, {column: cells[place] for place, column in places}) for line, cells in rows]
    table.columns = named
    return table
