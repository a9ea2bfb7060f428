"""Tables as CSV that a spreadsheet opens without running a part of them.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return for a formula, and a
formula can start programs. Names of files, classes and metrics may begin so. In tables for people such a name gets an
apostrophe in front, as does one that would be taken for a name with an apostrophe: what is read back is the true name.

``files.csv`` and ``splits.csv`` of a run are records for programs: their names stay as they are, since the digest of
the splits is one of the file's bytes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

__all__ = ["csv_text", "safe_cell", "true_cell"]

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def safe_cell(text: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula.

    Example:
        >>> safe_cell("cat"), safe_cell("=cmd()"), safe_cell("'=cmd()")
        ('cat', "'=cmd()", "''=cmd()")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def true_cell(cell: str) -> str:
    """The name that :func:`safe_cell` has written.

    Example:
        >>> [true_cell(safe_cell(name)) for name in ("cat", "-1.jpg", "'quoted'", "'-1.jpg")]
        ['cat', '-1.jpg', "'quoted'", "'-1.jpg"]
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    r"""Rows as CSV with ``\n`` at the end of each line, the same on every system."""
    line = io.StringIO()
    # With its own line ends the writer quotes a carriage return in a name, at which a reader would end the line.
    writer = csv.writer(line, lineterminator="\r\n")
    lines = []
    for row in rows:
        writer.writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n"))
        line.seek(0)
        line.truncate()
    return "".join(f"{text}\n" for text in lines)
