"""What the label cells of a table mean: missing labels, zeros and ones, several labels in one cell, names of splits."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["bit_of", "combined_by", "is_missing", "label_of", "split_of_cell", "tags_of"]

# As pandas, R and databases write what is missing. "none" and "NA" are names of classes as well, and not among them.
_MISSING = frozenset({"", "nan", "NaN", "NAN", "None", "null", "NULL", "n/a", "N/A", "#N/A", "<NA>"})
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SEPARATORS = ("|", ";", ",", " ")


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no label.

    Example:
        >>> [is_missing(cell) for cell in ("NaN", " ", "None", "none", "0")]
        [True, True, True, False, False]
    """
    return cell.strip() in _MISSING


def label_of(cell: str) -> str:
    """The name of a class: composed (NFC), so that it is that of a folder, whatever system wrote it."""
    return unicodedata.normalize("NFC", cell.strip())


def bit_of(cell: str) -> int | None:
    """0 or 1, also written as 1.0 or True; ``None`` if the cell is something else."""
    return _BITS.get(cell.strip().lower())


def split_of_cell(cell: str) -> str | None:
    """The split that a cell names; ``None`` if it names none."""
    return _SPLITS.get(cell.strip().lower())


def tags_of(cell: str, separator: str) -> tuple[str, ...]:
    """The labels in a cell, each once and sorted; white space of any length is one separator.

    Example:
        >>> tags_of("rain | night|rain", "|"), tags_of("clear  primary", " ")
        (('night', 'rain'), ('clear', 'primary'))
    """
    parts = cell.split(separator) if separator.strip() else cell.split()
    return tuple(sorted({label_of(part) for part in parts if not is_missing(part)}, key=str.encode))


def combined_by(labels: Iterable[str]) -> str | None:
    """The separator of labels that are combinations of a few tags; ``None`` if they are not.

    ``|`` and ``;`` are in no ordinary name: it is enough that two labels share a tag. Commas and spaces are: there must
    be fewer tags than labels, and some tag must stand at several places, counted from both ends.

    Example:
        >>> combined_by(["rain|night", "night"]), combined_by(["a b", "b", "b c", "a b c"])
        ('|', ' ')
        >>> combined_by(["blue circle", "red circle", "red square"]), combined_by(["Sparrow, House", "Sparrow, Song"])
        (None, None)
    """
    distinct = sorted(set(labels))
    for separator in _SEPARATORS:
        lists = [_parts(label, separator) for label in distinct]
        starts: dict[str, set[int]] = {}
        ends: dict[str, set[int]] = {}
        uses: dict[str, int] = {}
        for parts in lists:
            for place, part in enumerate(parts):
                starts.setdefault(part, set()).add(place)
                ends.setdefault(part, set()).add(len(parts) - place)
                uses[part] = uses.get(part, 0) + 1
        if max(map(len, lists), default=0) < 2:
            continue
        shared = any(number > 1 for number in uses.values())
        moves = any(len(starts[part]) > 1 and len(ends[part]) > 1 for part in uses)
        if shared if separator in "|;" else moves and len(uses) < len(distinct):
            return separator
    return None


def _parts(label: str, separator: str) -> Sequence[str]:
    parts = label.split(separator) if separator.strip() else label.split()
    return [part.strip() for part in parts if part.strip()]
