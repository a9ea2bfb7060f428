"""Help pages: headings, aligned tables and lines, no wider than the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

__all__ = ["Page"]

_WIDEST = 110
_GAP = 2


class Page:
    """Text for a terminal that grows section by section. All its tables share one left column."""

    def __init__(self) -> None:
        """Start an empty page, as wide as the terminal."""
        self._blocks: list[tuple[str, list[tuple[str, str]]]] = []
        self._width = min(shutil.get_terminal_size().columns, _WIDEST)

    def lines(self, lines: list[str], heading: str = "") -> None:
        """Add lines, with a heading or without."""
        self._blocks.append((heading, [(line, "") for line in lines]))

    def table(self, heading: str, rows: list[tuple[str, str]]) -> None:
        """Add rows of what to type and what it means."""
        self._blocks.append((heading, rows))

    def __str__(self) -> str:
        """Lay out all sections that are not empty."""
        column = _GAP + max((len(left) for _, rows in self._blocks for left, right in rows if right), default=0)
        blocks = []
        for heading, rows in self._blocks:
            indent = _GAP if heading else 0
            lines = [f"{_bold(heading)}:"] if heading else []
            lines += [self._row(left, right, indent, column) for left, right in rows]
            blocks.append("\n".join(lines))
        return "\n\n".join(block for block in blocks if block)

    def _row(self, left: str, right: str, indent: int, column: int) -> str:
        margin = " " * indent
        if not right:
            # A command is to be copied, not wrapped.
            return f"{margin}{left}" if indent else textwrap.fill(left, self._width)
        hanging = " " * (indent + column)
        return textwrap.fill(
            right,
            max(self._width, len(hanging) + 30),
            initial_indent=f"{margin}{left:<{column}}",
            subsequent_indent=hanging,
            break_on_hyphens=False,
        )


def _bold(text: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[1m{text}\033[0m"
