"""Class tables: files beside masks that say which pixel value or color stands for which class."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.annotations.masks import IGNORED, MaskCode, color_key
from autotimm.data.formats.listing import Listing, relative
from autotimm.errors import DataError, join_names
from autotimm.records.csv_cells import true_cell
from autotimm.serialization import parse_json

__all__ = ["BACKGROUND_NAMES", "ClassRow", "ClassTable", "class_table", "find_class_table"]

_FILES = (
    "_classes.csv", "class_dict.csv", "classes.csv", "class_dict_seg.csv", "labelmap.txt", "label_colors.txt",
    "classes.json", "class_dict.json", "labelmap.json", "labels.json", "meta.json", "classes.txt", "labels.txt",
    "class_names.txt", "classnames.txt", "label_names.txt", "objectInfo150.txt",
)  # fmt: skip
_VALUE_COLUMNS = ("pixel value", "value", "id", "index", "class id", "class_id", "label id", "label_id")
_NAME_COLUMNS = ("class", "name", "class name", "class_name", "label", "title")
_ADE20K = ("wall", 150)  # the first of its classes, and their number
_NUMBERED = re.compile(r"(\d+)\s*[:,\s]\s*(\D.*)")  # 7 road
_VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled")


BACKGROUND_NAMES = ("background", "_background_", "bg")
"""What the class of everything else is called, in lower case."""


class ClassRow(NamedTuple):
    """One row of a table.

    Attributes:
        name: The class.
        value: Its pixel value, if the table gives one.
        color: Its color as :func:`autotimm.data.annotations.masks.color_key`, if the table gives one.
    """

    name: str
    value: int | None = None
    color: int | None = None


class ClassTable(NamedTuple):
    """Which pixel value or color stands for which class.

    Attributes:
        rows: The rows, sorted by value where all have one.
        source: The file that they come from, for errors.
    """

    rows: tuple[ClassRow, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in order, without void and ignored ones."""
        return tuple(dict.fromkeys(row.name for row in self.rows if row.name.lower() not in _VOID_NAMES))

    @property
    def has_values(self) -> bool:
        """Whether every class has a value of its own, and not just a place in a list."""
        return all(row.value is not None for row in self.rows)

    @property
    def has_colors(self) -> bool:
        """Whether there are colors."""
        return any(row.color is not None for row in self.rows)

    def counts_from_one(self, highest: int) -> bool:
        """Whether lines without values belong to the values from 1 on, as those of ADE20K, where 0 is unknown.

        Args:
            highest: The highest value of the masks, except 255.
        """
        if self.has_colors or any(row.value is not None for row in self.rows):
            return False
        first, number = self.rows[0].name.lower(), len(self.rows)
        is_ade = first.split(",")[0].strip() == _ADE20K[0] and number == _ADE20K[1]
        return is_ade or (highest == number and first not in (*BACKGROUND_NAMES, *_VOID_NAMES))

    def from_one(self) -> ClassTable:
        """The same lines with the values from 1 on, and 0 for what is unknown."""
        rows = [row._replace(value=number) for number, row in enumerate(self.rows, 1)]
        return ClassTable((ClassRow(_VOID_NAMES[0], 0), *rows), self.source)

    def codes(self) -> list[MaskCode]:
        """The ways to read masks by this table: by its colors and by its values; by places where it has neither."""
        number = {name: index for index, name in enumerate(self.names)}
        classes = tuple(number.get(row.name, IGNORED) for row in self.rows)
        codes = []
        if self.has_colors:
            colored = [
                (row.color, index) for row, index in zip(self.rows, classes, strict=True) if row.color is not None
            ]
            codes.append(MaskCode(True, tuple(color for color, _ in colored), tuple(index for _, index in colored)))
        if self.has_values or not self.has_colors:
            values = tuple(index if row.value is None else row.value for index, row in enumerate(self.rows))
            codes.append(MaskCode(False, values, classes))
        return codes


def find_class_table(listing: Listing, notices: list[str] | None = None) -> ClassTable | None:
    """The table in a folder or just below it; those of several splits must agree.

    A file without a line for a class, as tools write for a set that nobody has labelled yet, is none.

    Args:
        listing: The folder.
        notices: Receives a line about such a file.

    Raises:
        DataError: If one cannot be read, or two disagree.
    """
    folders = [listing.root, *listing.folders(listing.root)]
    for name in _FILES:
        files = [folder / name for folder in folders if os.path.isfile(folder / name)]
        tables = [class_table(file) for file in files if _rows_of(file)]
        if notices is not None and len(tables) < len(files):
            empty = join_names([relative(file, listing.root) for file in files if not _rows_of(file)])
            notices.append(f"{empty} names no class, and is not used.")
        if different := [table.source for table in tables if table.rows != tables[0].rows]:
            raise DataError(f"{tables[0].source} and {different[0]} disagree on the classes. Make them equal.")
        if tables:
            return tables[0]
    return None


def class_table(source: Path | Mapping[str, Any]) -> ClassTable:
    """Read a table: a CSV, text or JSON file, or a mapping from names to values or colors.

    Raises:
        DataError: If it cannot be read.

    Example:
        >>> class_table({"road": (128, 64, 128), "car": "#00008e"}).names
        ('road', 'car')
    """
    if isinstance(source, Mapping):
        with _as_data_error("What is given as `colors`"):
            return _table(list(_from_json(source)), "the colors given")
    return _table(_rows_of(source), str(source))


def _rows_of(source: Path) -> list[ClassRow]:
    """The rows of a file; none if it holds no more than a header.

    Raises:
        DataError: If it cannot be read.
    """
    with _as_data_error(str(source)):
        content = source.read_bytes().decode("utf-8-sig")
        if not content.strip():
            return []
        if source.suffix.lower() == ".csv":
            return list(_from_csv(content))
        return list(_from_json(parse_json(content)) if source.suffix.lower() == ".json" else _from_text(content))


@contextmanager
def _as_data_error(source: str) -> Iterator[None]:
    """Say of what goes wrong in a block that it is no class table."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, csv.Error) as error:
        raise DataError(f"{source} is not a class table: {error}. See the page on data formats.") from error


def _table(rows: Iterable[ClassRow], source: str) -> ClassTable:
    listed = list(rows)
    if not listed:
        raise DataError(f"{source} names no class. Write a line for each.")
    if all(row.value is not None for row in listed):
        listed.sort(key=lambda row: row.value or 0)
    for what in ("value", "color"):
        keys = [getattr(row, what) for row in listed if getattr(row, what) is not None]
        if len(set(keys)) < len(keys):
            raise DataError(f"{source} gives two classes the same {what}. Correct it.")
    names = {row.name for row in listed}
    if len(names) > IGNORED:
        raise DataError(f"{source} has {len(names)} classes, and {IGNORED} is the maximum. Merge some.")
    return ClassTable(tuple(listed), source)


def _from_csv(content: str) -> Iterable[ClassRow]:
    lines = csv.reader(io.StringIO(content, newline=""), skipinitialspace=True)
    rows = [[cell.strip() for cell in row] for row in lines if any(row)]
    header = [cell.lower() for cell in rows[0]]

    def column(names: Sequence[str]) -> int | None:
        return next((header.index(name) for name in names if name in header), None)

    name, value = column(_NAME_COLUMNS), column(_VALUE_COLUMNS)
    rgb = [column(names) for names in (("r", "red"), ("g", "green"), ("b", "blue"))]
    if name is None:
        raise ValueError(f"no column is named one of {join_names(list(_NAME_COLUMNS))}")
    for row in rows[1:]:
        color = None if None in rgb else color_key(*(_byte(row[at]) for at in rgb if at is not None))
        yield ClassRow(true_cell(row[name]), None if value is None else int(row[value]), color)


def _from_text(content: str) -> Iterable[ClassRow]:
    """``name:r,g,b:parts:actions`` as CVAT writes, ``r g b name`` as CamVid, ``7 name``, ADE20K's table, or names."""
    lines = [line.strip() for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and re.match(r"Idx\t.*\tName", lines[0]):  # ADE20K, whose masks are 0 where nothing is known
        yield ClassRow(_VOID_NAMES[0], 0)
        for cells in (line.split("\t") for line in lines[1:]):
            yield ClassRow(cells[-1].strip(), int(cells[0]))
        return
    numbered = all(_NUMBERED.fullmatch(line) for line in lines)  # else "3 wheeler" is a name as any other
    for line in lines:
        if match := re.fullmatch(r"([^:]+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?::.*)?", line):
            yield ClassRow(match[1].strip(), color=color_key(*(_byte(match[at]) for at in (2, 3, 4))))
        elif match := re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\D.*)", line):
            yield ClassRow(match[4].strip(), color=color_key(*(_byte(match[at]) for at in (1, 2, 3))))
        elif numbered and (match := _NUMBERED.fullmatch(line)):
            yield ClassRow(match[2].strip(), int(match[1]))
        else:
            yield ClassRow(line)


def _from_json(content: Any) -> Iterable[ClassRow]:
    if isinstance(content, Mapping) and isinstance(content.get("classes"), (list, dict)):
        content = content["classes"]
    if isinstance(content, Mapping):
        entries = list(content.items())
        if all(re.fullmatch(r"\d+", str(key)) for key, _ in entries):
            return [ClassRow(str(name), int(key)) for key, name in entries]
        return [_from_value(str(name), value) for name, value in entries]
    return [ClassRow(entry) if isinstance(entry, str) else _from_entry(entry) for entry in content]


def _from_entry(entry: Mapping[str, Any]) -> ClassRow:
    name = next((str(entry[key]) for key in ("name", "title", "label", "class") if key in entry), None)
    if name is None:
        raise ValueError(f"there is no name in {dict(entry)!r}")
    value = next((int(entry[key]) for key in ("value", "id", "index") if isinstance(entry.get(key), int)), None)
    return ClassRow(name, value, _color(entry["color"]) if "color" in entry else None)


def _from_value(name: str, value: Any) -> ClassRow:
    return ClassRow(name, value) if isinstance(value, int) else ClassRow(name, color=_color(value))


def _color(color: Any) -> int:
    if isinstance(color, str):
        digits = color.removeprefix("#")
        if not re.fullmatch(r"[0-9a-fA-F]{6}", digits):
            raise ValueError(f"{color!r} is not a color")
        return int(digits, 16)
    red, green, blue = (_byte(channel) for channel in color)
    return color_key(red, green, blue)


def _byte(channel: Any) -> int:
    number = int(channel)
    if not 0 <= number <= 255:
        raise ValueError(f"{channel!r} is not a number from 0 to 255")
    return number
