"""What a page shows of the evidence, whatever the task: a headline, tables, a matrix, charts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup

from autotimm.records.run_folder import FOLDS
from autotimm.report.intervals import Estimate
from autotimm.report.page_parts import SPLIT_NAMES

__all__ = ["Box", "Card", "Content", "Headline", "Matrix", "NumberTable", "Panel", "View", "shortened"]


class Headline(NamedTuple):
    """The result in one figure.

    Attributes:
        title: What it is called, such as ``Accuracy``.
        figure: Its value and interval.
        split: ``val``, ``test`` or ``folds``.
        samples: How many images it is measured on.
    """

    title: str
    figure: Estimate
    split: str
    samples: int

    @property
    def images(self) -> str:
        """The images, in words."""
        plural = "" if self.samples == 1 else "s"
        if self.split == FOLDS:
            return f"{self.samples:,} training image{plural}, each predicted by a fold that has not seen it"
        return f"{self.samples:,} {SPLIT_NAMES[self.split]} image{plural}"


class NumberTable(NamedTuple):
    """A table that can be sorted.

    Attributes:
        titles: The headings of the columns; the first is that of names.
        rows: A name and numbers; ``None`` where a number is undefined.
        links: For some cells, by row and column, the token of the cards that the cell opens.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[Any]]
    links: dict[tuple[int, int], str]


MOST_ROWS = 500
"""Rows of a table on a page at most; the table beside it has all."""


def shortened(table: NumberTable) -> tuple[NumberTable, str]:
    """The first rows of a table, and a sentence on the others; empty if there are none."""
    if len(table.rows) <= MOST_ROWS:
        return table, ""
    return table._replace(rows=table.rows[:MOST_ROWS]), f"The first {MOST_ROWS} of {len(table.rows):,} are shown."


class Matrix(NamedTuple):
    """A confusion matrix, or its largest mistakes where there are many classes.

    Attributes:
        rows: Names of what is true.
        columns: Names of what is predicted.
        counts: A row of numbers for each true name.
        links: The token of the cards that a cell opens, by row and column.
        unit: What is counted.
        pairs: Instead of the matrix: true and predicted name, count and token, the most frequent first.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]
    links: dict[tuple[int, int], str]
    unit: str
    pairs: Sequence[tuple[str, str, int, str]] = ()


class Panel(NamedTuple):
    """A chart with its text.

    Attributes:
        title: Its heading.
        chart: The chart.
        legend: The names of its lines, in their order; empty for one line.
        text: What it says, in a sentence.
        file: The table with its numbers, relative to the run folder; empty if all charts beside it share one.
    """

    title: str
    chart: Markup
    legend: Sequence[str]
    text: str
    file: str


class Box(NamedTuple):
    """A box drawn over a picture, in percent of its sides; whether it is a mistake decides how it looks."""

    left: float
    top: float
    width: float
    height: float
    color: str
    label: str
    wrong: bool


class View(NamedTuple):
    """A picture of a card.

    Attributes:
        label: What it shows; empty for the image alone.
        picture: The class of the image; empty for none.
        layer: The class of what is laid over it; empty for nothing.
        boxes: The boxes over it.
        ratio: Width over height.
    """

    label: str
    picture: str
    layer: str = ""
    boxes: Sequence[Box] = ()
    ratio: float = 1.0


class Card(NamedTuple):
    """A sample with its pictures.

    Attributes:
        id: Its id.
        tokens: What it is found by, with spaces between: ``t3`` if it has class 3, ``m3`` if that was missed, ``f3`` if
            it is predicted and not true, ``c3-5`` if 3 was predicted as 5. Cells of the matrix and of tables open them.
        wrong: Whether something is wrong about it.
        true: What is true, in words.
        found: What was predicted, in words.
        note: A figure, such as its confidence.
        views: Its pictures.
    """

    id: str
    tokens: str
    wrong: bool
    true: str
    found: str
    note: str
    views: Sequence[View]


@dataclass
class Content:
    """What a page shows of one split.

    Attributes:
        headline: The result.
        classes: The table per class.
        classes_text: What the table says, in a sentence.
        matrix: The confusion; ``None`` without.
        panels: Charts.
        cards: Samples, the worst first.
        cards_text: How they are sorted, in a sentence.
        tables: Further tables, by their title.
        numbers: The rows of each table that is written beside the page, by its name.
        left_out: A sentence on what is not on the page; empty if everything is.
        colors: The color of each class in pictures, as CSS writes it; empty where pictures have none.
    """

    headline: Headline
    classes: NumberTable
    classes_text: str = ""
    matrix: Matrix | None = None
    panels: list[Panel] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    cards_text: str = ""
    tables: dict[str, tuple[NumberTable, str]] = field(default_factory=dict)
    numbers: dict[str, list[list[Any]]] = field(default_factory=dict)
    left_out: str = ""
    colors: list[tuple[str, str]] = field(default_factory=list)
