"""What is known of data once they are read: their facts, a table of these for people, and a digest of each sample."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from autotimm.data.file_facts import Problem, file_digests
from autotimm.data.table import Table
from autotimm.errors import DataError, printable
from autotimm.records.digest import state_digest
from autotimm.records.sample_index import Content
from autotimm.repro.streams import scope
from autotimm.serialization import plain_value
from autotimm.types import DataSpec

__all__ = ["Facts", "Summary", "content", "summarize"]


def content(tables: Sequence[Table], progress: bool = True) -> Content:
    """Digest all samples of some tables: files in parallel, with a progress bar if it takes long.

    Args:
        tables: The tables; an id that occurs in several has the digest of the last.
        progress: Whether a progress bar may appear.

    Raises:
        DataError: If a file cannot be read.
    """
    by_id: dict[str, str] = {}
    for table in tables:
        files = table.files()
        digests = _with_targets(table, _digests(files, progress)) if files else _samples(table)
        by_id |= zip(table.ids, digests, strict=True)
    return Content({id: by_id[id] for id in sorted(by_id, key=lambda id: id.encode("utf-8", "surrogatepass"))})


def _with_targets(table: Table, images: Sequence[str]) -> Iterator[str]:
    for index, image in enumerate(images):
        target = table.target_digest(index)
        yield hashlib.sha256(f"{image} {target}".encode()).hexdigest() if target else image


def _samples(table: Table) -> Iterator[str]:
    for index, id in enumerate(table.ids):
        with scope(0, "content", id):  # a table of the user's own may draw random numbers while it loads
            sample = table.load(index)
        yield state_digest({"image": sample.image, "target": sample.target})


def _digests(files: Sequence[Path], progress: bool) -> list[str]:
    digests: list[str] = []
    known = file_digests(files, progress)
    for path in files:
        digest = known[path]
        if isinstance(digest, Problem):
            raise DataError(
                f"The file {path} must be readable. It is not ({digest.reason}). Replace it or remove it from the data."
            )
        digests.append(digest)
    return digests


class Facts(ABC):
    """Properties of data that follow from their tables; the first one that is used reads the data.

    Attributes:
        image_size: See :class:`autotimm.DataModule`, like the rest.
        eval_batch_size: Samples per batch in validation, test and prediction.
        crop_pct: Share of the resized image that evaluation's central crop keeps.
        interpolation: How images are resized.
        notices: One line for each problem or peculiarity of the data.
        arguments: The arguments of the constructor, by name.
    """

    image_size: int
    eval_batch_size: int
    crop_pct: float
    interpolation: str
    notices: list[str]
    arguments: dict[str, Any]

    @property
    @abstractmethod
    def tables(self) -> dict[str, Table]:
        """The samples of each split."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the class indices."""
        return self.tables["train"].class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have several classes."""
        return self.tables["train"].multi_label

    @property
    def spec(self) -> DataSpec:
        """What a model must know of this data."""
        return DataSpec(
            class_names=self.class_names,
            multi_label=self.multi_label,
            image_size=self.image_size,
            eval_batch_size=self.eval_batch_size,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            eval_transforms=plain_value(self.arguments.get("eval_transforms")),
            kind=self.tables["train"].kind,
            category_ids=self.tables["train"].category_ids,
        )

    def class_counts(self, split: str = "train") -> tuple[int, ...]:
        """Return the samples per class, in class order."""
        return self.tables[split].counts()

    def class_amounts(self, split: str = "train") -> tuple[int, ...]:
        """Return what balanced weights count, in class order: pixels where each has a class, else samples."""
        table, totals = self.tables[split], dict.fromkeys(self.class_names, 0)
        for index in range(len(table)):
            for name, amount in table.amounts(index).items():
                totals[name] += amount
        return tuple(totals.values())

    def assignments(self) -> list[tuple[str, str, str]]:
        """Return (id, class, split) of every sample; the classes of a multi-label sample are joined by ``|``."""
        return [
            (table.ids[index], "|".join(table.labels(index)), split)
            for split, table in self.tables.items()
            for index in range(len(table))
        ]

    def summary(self) -> Summary:
        """Return the samples per class and split as a rich table, with the notices below it."""
        tables = self.tables
        total = sum(map(len, tables.values()))
        return summarize(tables, f"{total} images, {self.num_classes} classes", self.notices)


_ROWS = 30
_BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Summary(RichTable):
    """A rich table that plain ``print`` shows too."""

    def __str__(self) -> str:
        stream = StringIO()
        Console(file=stream, width=100, emoji=False).print(self)
        return stream.getvalue().rstrip()


def _bar(count: int, largest: int) -> str:
    """A bar of up to 20 characters, in steps of an eighth of one."""
    eighths = round(count / max(largest, 1) * _BAR * 8)
    rest = _EIGHTHS[eighths % 8] if eighths % 8 else ""
    return "█" * (eighths // 8) + rest


def _shown(counts: Sequence[int]) -> list[int]:
    """The classes that get a row: all, or the largest of many, in class order."""
    largest = sorted(range(len(counts)), key=lambda index: -counts[index])[:_ROWS]
    return sorted(largest)


def summarize(tables: Mapping[str, Table], title: str, notes: Sequence[str]) -> Summary:
    """Return a table of samples per class and split, with a bar for the training samples.

    Args:
        tables: The tables by split.
        title: The headline.
        notes: Lines below the table.
    """
    names = tables["train"].class_names
    counts = {split: table.counts() for split, table in tables.items()}
    train = counts["train"]
    summary = Summary(
        title=escape(printable(title)), box=SIMPLE_HEAD, title_justify="left", caption_justify="left", show_footer=True
    )
    summary.caption = "\n".join(f"• {escape(printable(note))}" for note in notes) or None
    summary.add_column("class", "images" if tables["train"].multi_label else "total", overflow="fold", style="bold")
    for split, table in tables.items():
        summary.add_column(split, str(len(table)), justify="right")
    summary.add_column("", style="cyan", min_width=_BAR)
    shown = _shown(train)
    for index in shown:
        cells = [str(counts[split][index]) for split in tables]
        summary.add_row(Text(printable(names[index])), *cells, _bar(train[index], max(train)))
    if len(shown) < len(names):
        rest = [sum(counts[split]) - sum(counts[split][index] for index in shown) for split in tables]
        summary.add_row(f"… {len(names) - len(shown)} more", *map(str, rest), "", style="dim")
    return summary
