"""What a data module holds, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from autotimm.data.table import Table

__all__ = ["Summary", "summarize"]

_ROWS = 30
_BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Summary(RichTable):
    """A rich table that plain ``print`` shows as well."""

    def __str__(self) -> str:
        stream = StringIO()
        Console(file=stream, width=100).print(self)
        return stream.getvalue().rstrip()


def _bar(count: int, largest: int) -> str:
    """A bar of up to 20 characters, in steps of an eighth of one."""
    eighths = round(count / max(largest, 1) * _BAR * 8)
    rest = _EIGHTHS[eighths % 8] if eighths % 8 else ""
    return "█" * (eighths // 8) + rest


def _shown(counts: Sequence[int]) -> list[int]:
    """The classes that get a row: all, or with many the largest, in class order."""
    largest = sorted(range(len(counts)), key=lambda index: -counts[index])[:_ROWS]
    return sorted(largest)


def summarize(tables: Mapping[str, Table], title: str, notes: Sequence[str]) -> Summary:
    """Draw samples per class and split, a bar for the training samples, and notes below.

    Args:
        tables: The tables by split.
        title: The headline.
        notes: Lines for below the table.
    """
    names = tables["train"].class_names
    counts = {split: table.counts() for split, table in tables.items()}
    train = counts["train"]
    summary = Summary(
        title=escape(title), box=SIMPLE_HEAD, title_justify="left", caption_justify="left", show_footer=True
    )
    summary.caption = "\n".join(f"• {escape(note)}" for note in notes) or None
    summary.add_column("class", "images" if tables["train"].multi_label else "total", overflow="fold", style="bold")
    for split, table in tables.items():
        summary.add_column(split, str(len(table)), justify="right")
    summary.add_column("", style="cyan", min_width=_BAR)
    shown = _shown(train)
    for index in shown:
        cells = [str(counts[split][index]) for split in tables]
        summary.add_row(escape(names[index]), *cells, _bar(train[index], max(train)))
    if len(shown) < len(names):
        rest = [sum(counts[split]) - sum(counts[split][index] for index in shown) for split in tables]
        summary.add_row(f"… {len(names) - len(shown)} more", *map(str, rest), "", style="dim")
    return summary
