"""What pixel values of masks stand for, as files beside the masks say it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.annotations.masks import IGNORED, MaskCode, color_key
from autotimm.data.formats.listing import list_folder
from autotimm.errors import DataError, join_names

__all__ = ["ClassTable", "Meaning", "class_table", "find_class_table"]

_FILES = (
    "_classes.csv", "class_dict.csv", "classes.csv", "class_dict_seg.csv", "labelmap.txt", "label_colors.txt",
    "classes.json", "class_dict.json", "labelmap.json", "labels.json", "meta.json", "classes.txt", "labels.txt",
)  # fmt: skip
_VALUE = ("pixel value", "value", "id", "index", "class id", "class_id", "label id", "label_id")
_NAME = ("class", "name", "class name", "class_name", "label", "title")
_VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled")


class Meaning(NamedTuple):
    """One line of a table.

    Attributes:
        name: The class.
        value: Its pixel value, if that is said.
        color: Its color as :func:`autotimm.data.annotations.masks.color_key`, if that is said.
    """

    name: str
    value: int | None = None
    color: int | None = None


class ClassTable(NamedTuple):
    """What pixel values stand for.

    Attributes:
        meanings: The lines, sorted by value where all have one.
        source: Where that is said.
    """

    meanings: tuple[Meaning, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in order; what is called void or ignored is none."""
        return tuple(dict.fromkeys(one.name for one in self.meanings if one.name.lower() not in _VOID))

    def codes(self) -> list[MaskCode]:
        """The ways to read masks by this table: by color if it has colors, by value in any case."""
        number = {name: index for index, name in enumerate(self.names)}
        classes = tuple(number.get(one.name, IGNORED) for one in self.meanings)
        values = tuple(row if one.value is None else one.value for row, one in enumerate(self.meanings))
        by_value = MaskCode(False, values, classes)
        colors = tuple(one.color for one in self.meanings if one.color is not None)
        return [MaskCode(True, colors, classes), by_value] if len(colors) == len(classes) else [by_value]


def find_class_table(root: Path) -> ClassTable | None:
    """The table in a folder or one below it; those of several splits must agree.

    Raises:
        DataError: If one cannot be read, or two disagree.
    """
    folders = [root, *(Path(entry.path) for entry in list_folder(root)[0])]
    for name in _FILES:
        tables = [class_table(folder / name) for folder in folders if (folder / name).is_file()]
        if different := [one.source for one in tables if one.meanings != tables[0].meanings]:
            raise DataError(f"{tables[0].source} and {different[0]} disagree on the classes. Make them equal.")
        if tables:
            return tables[0]
    return None


def class_table(given: Path | Mapping[str, Any]) -> ClassTable:
    """Read a table: a CSV, text or JSON file, or a mapping from names to values or colors.

    Raises:
        DataError: If it cannot be read.

    Example:
        >>> class_table({"road": (128, 64, 128), "car": "#00008e"}).names
        ('road', 'car')
    """
    if isinstance(given, Mapping):
        return _table(_from_json(given), "the colors given")
    try:
        content = given.read_bytes().decode("utf-8-sig")
        if given.suffix.lower() == ".csv":
            meanings = _from_csv(content.splitlines())
        else:
            meanings = _from_json(json.loads(content)) if given.suffix.lower() == ".json" else _from_text(content)
        return _table(meanings, str(given))
    except OSError as error:
        raise DataError(f"{given} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"{given} is no table of classes: {error}. See the page on data formats.") from error


def _table(meanings: Iterable[Meaning], source: str) -> ClassTable:
    found = list(meanings)
    if not found:
        raise DataError(f"{source} names no class. Write a line for each.")
    if all(one.value is not None for one in found):
        found.sort(key=lambda one: one.value or 0)
    for what in ("value", "color"):
        keys = [getattr(one, what) for one in found if getattr(one, what) is not None]
        if len(set(keys)) < len(keys):
            raise DataError(f"{source} gives two classes the same {what}. Correct it.")
    names = {one.name for one in found}
    if len(names) > IGNORED:
        raise DataError(f"{source} has {len(names)} classes, and {IGNORED} is the most. Take some together.")
    return ClassTable(tuple(found), source)


def _from_csv(lines: Sequence[str]) -> Iterable[Meaning]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, skipinitialspace=True) if any(row)]
    header = [cell.lower() for cell in rows[0]]

    def column(names: Sequence[str]) -> int | None:
        return next((header.index(name) for name in names if name in header), None)

    name, value = column(_NAME), column(_VALUE)
    rgb = [column(names) for names in (("r", "red"), ("g", "green"), ("b", "blue"))]
    if name is None:
        raise ValueError(f"no column is called like {join_names(list(_NAME))}")
    for row in rows[1:]:
        color = None if None in rgb else color_key(*(_byte(row[at]) for at in rgb if at is not None))
        yield Meaning(row[name], None if value is None else int(row[value]), color)


def _from_text(content: str) -> Iterable[Meaning]:
    """``name:r,g,b:parts:actions`` as CVAT writes, ``r g b name`` as CamVid, ``7 name``, or names alone."""
    lines = [line.strip() for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in lines:
        if found := re.fullmatch(r"([^:]+):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?::.*)?", line):
            yield Meaning(found[1].strip(), color=color_key(*(_byte(found[at]) for at in (2, 3, 4))))
        elif found := re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\D.*)", line):
            yield Meaning(found[4].strip(), color=color_key(*(_byte(found[at]) for at in (1, 2, 3))))
        elif found := re.fullmatch(r"(\d+)\s*[:,\s]\s*(\D.*)", line):
            yield Meaning(found[2].strip(), int(found[1]))
        else:
            yield Meaning(line)


def _from_json(content: Any) -> Iterable[Meaning]:
    if isinstance(content, Mapping) and isinstance(content.get("classes"), (list, dict)):
        content = content["classes"]
    if isinstance(content, Mapping):
        entries = list(content.items())
        if all(re.fullmatch(r"\d+", str(key)) for key, _ in entries):
            return [Meaning(str(name), int(key)) for key, name in entries]
        return [_meaning(str(name), meaning) for name, meaning in entries]
    return [Meaning(one) if isinstance(one, str) else _from_entry(one) for one in content]


def _from_entry(one: Mapping[str, Any]) -> Meaning:
    name = next((str(one[key]) for key in ("name", "title", "label", "class") if key in one), None)
    if name is None:
        raise ValueError(f"there is no name in {dict(one)!r}")
    value = next((int(one[key]) for key in ("value", "id", "index") if isinstance(one.get(key), int)), None)
    return Meaning(name, value, _color(one["color"]) if "color" in one else None)


def _meaning(name: str, meaning: Any) -> Meaning:
    return Meaning(name, meaning) if isinstance(meaning, int) else Meaning(name, color=_color(meaning))


def _color(given: Any) -> int:
    if isinstance(given, str):
        digits = given.removeprefix("#")
        if not re.fullmatch(r"[0-9a-fA-F]{6}", digits):
            raise ValueError(f"{given!r} is no color")
        return int(digits, 16)
    red, green, blue = (_byte(part) for part in given)
    return color_key(red, green, blue)


def _byte(given: Any) -> int:
    number = int(given)
    if not 0 <= number <= 255:
        raise ValueError(f"{given!r} is no part of a color")
    return number
