"""What is known of data once they are read: their facts, digests of the samples, and which files changed since."""

from __future__ import annotations

import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from autotimm.data.file_facts import Problem, file_digests, image_sizes, stamp_rows
from autotimm.data.image_facts import image_digests
from autotimm.data.image_io import BROKEN
from autotimm.data.table import AT_ONCE, Packed, Subset, Table
from autotimm.data.texts import file_names
from autotimm.errors import DataError, printable
from autotimm.image_size import ImageSize
from autotimm.records.digest import state_digest
from autotimm.records.sample_index import Content
from autotimm.repro.streams import scope
from autotimm.serialization import plain_value
from autotimm.types import DataSpec

__all__ = ["ChangedFiles", "Facts", "Snapshot", "Summary", "content", "original_sizes", "summarize"]


def content(tables: Iterable[Table], progress: bool = True, *, cached: bool = True) -> Content:
    """Digest all samples of some tables: files in parallel, with a progress bar if it takes long.

    Args:
        tables: The tables; an id that occurs in several has the digest of the last.
        progress: Whether a progress bar may appear.
        cached: Whether digests of the user's cache may be used where the stamp of a file is that of the digest. What
            checks a record says ``False``: every file is read.

    Raises:
        DataError: If a file cannot be read.
    """
    tables = list(tables)
    return _by_id(tables, [_sample_digests(table, progress, cached)[0] for table in tables])


def original_sizes(table: Table) -> list[tuple[int, int] | None]:
    """Width and height of each image; ``None`` for one that cannot be read, and nothing where samples are no files."""
    if (packed := table.packed()) is not None:
        return [packed.rows.size(place) for place in packed.places.tolist()]
    files = table.files()
    sizes = image_sizes(files)
    return [sizes.get(file) for file in files]


class ChangedFiles(NamedTuple):
    """Files that have not the content any more that they had, or that are gone.

    Attributes:
        files: The files, sorted.
        ids: The ids of their samples, sorted.
    """

    files: tuple[Path, ...]
    ids: tuple[str, ...]


class Snapshot:
    """The digests of all samples, and what tells later which files have changed since.

    Samples that are not files of their own, such as those of a data set in one archive, are digested and not followed.

    Args:
        tables: The tables, as for :func:`content`.
        progress: Whether a progress bar may appear.
        cached: Whether digests of the user's cache may be used.

    Raises:
        DataError: If a file cannot be read.
    """

    def __init__(self, tables: Iterable[Table], progress: bool = True, *, cached: bool = True) -> None:
        self._tables = list(tables)
        # The stamps are older than the digests: a file that changes while it is read has another one afterwards.
        listed = [_sample_digests(table, progress, cached) for table in self._tables]
        self._digests, self._stamps = [digests for digests, _ in listed], [stamps for _, stamps in listed]

    @property
    def content(self) -> Content:
        """The digests by id, made when they are asked for: they take more memory than all that is kept."""
        return _by_id(self._tables, self._digests)

    def changed(self) -> ChangedFiles:
        """The files whose content has changed since; only those with another stamp are read again.

        A file with another stamp and the same bytes has been touched, copied or linked, and is no finding.
        """
        files: set[Path] = set()
        ids: set[str] = set()
        for table, stamps, digests in zip(self._tables, self._stamps, self._digests, strict=True):
            differs = np.flatnonzero((_stamps(table) != stamps).any(axis=1))
            moved: dict[int, list[Path]] = defaultdict(list)
            if len(differs):
                others, places = differs.tolist(), {*differs.tolist()}
                sources = itertools.islice(enumerate(_sources(table)), others[-1] + 1)
                for index, name in (source for place, source in sources if place in places):
                    moved[index].append(Path(name))
            for index, digest in zip(moved, _digests_now(table, [*moved]), strict=True):
                if digest != digests[index].tobytes():
                    files |= {*moved[index]}
                    ids.add(table.ids[index])
        return ChangedFiles(tuple(sorted(files)), tuple(sorted(ids)))


def _sources(table: Table) -> Iterator[tuple[int, str]]:
    """The files of each sample, with its index: the image, then those of the target."""
    names = file_names(table.files())
    if _has_no_target_files(table):
        yield from enumerate(names)
        return
    for index, image in enumerate(names):
        yield index, image
        for path in table.target_files(index):
            yield index, os.fspath(path)


def _has_no_target_files(table: Table) -> bool:
    """Whether a table is known to read no target from a file, so that nothing has to be asked of each sample."""
    table = table.table if isinstance(table, Subset) else table
    return type(table).target_files is Table.target_files and type(table).target_digest is Table.target_digest


def _stamps(table: Table) -> NDArray[np.int64]:
    """The stamps of all files of a table without their paths, (files, 5); zeros for one that is not there.

    An array: a million named tuples take ten times the memory, for as long as the training.
    """
    return stamp_rows(name for _, name in _sources(table))


def _by_id(tables: Sequence[Table], digests: Sequence[NDArray[np.uint8]]) -> Content:
    by_id: dict[str, str] = {}
    for table, of_table in zip(tables, digests, strict=True):
        whole, size = of_table.tobytes().hex(), 2 * of_table.shape[1]
        by_id |= {id: whole[place : place + size] for id, place in zip(table.ids, itertools.count(0, size))}
    return Content({id: by_id[id] for id in sorted(by_id, key=lambda id: id.encode("utf-8", "surrogatepass"))})


def _sample_digests(table: Table, progress: bool, cached: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The SHA-256 of each sample, (samples, 32), and the stamps before they were taken."""
    if (packed := table.packed()) is not None:
        return _packed_digests(table, packed, cached), _stamps(table)
    files = file_names(table.files())
    if not len(files):
        return np.frombuffer(bytes.fromhex("".join(_samples(table))), np.uint8).reshape(-1, 32), _stamps(table)
    stamps = None if _has_no_target_files(table) else _stamps(table)
    digests, of_images, problems = image_digests(files, progress, cached=cached)
    for problem in problems.values():
        raise DataError(
            f"The file {problem.path} must be readable. It is not ({problem.reason}). Replace it or remove it from the "
            "data."
        )
    if stamps is None:
        return digests, of_images
    for index, image in enumerate(digests):
        digests[index] = np.frombuffer(_with_target(table, index, image.tobytes()), np.uint8)
    return digests, stamps


def _packed_digests(table: Table, packed: Packed, cached: bool) -> NDArray[np.uint8]:
    """The SHA-256 of each sample of a packed data set, (samples, 32): those of the folder that was packed."""
    digests = np.zeros((len(table), 32), np.uint8)
    for first in range(0, len(table), AT_ONCE):
        indices = range(first, min(first + AT_ONCE, len(table)))
        if not cached or table.kind != "classes":
            table.read_ahead(indices)
        for index in indices:
            image = packed.rows.digest(int(packed.places[index]), cached=cached)
            digests[index] = np.frombuffer(_with_target(table, index, image), np.uint8)
    return digests


def _digests_now(table: Table, indices: Sequence[int]) -> Iterator[bytes | None]:
    """The digests of some samples, read from their files again; ``None`` for one that can no longer be read."""
    files = table.files()
    images = file_digests([files[index] for index in indices], progress=False, cached=False)
    for index in indices:
        image = images[files[index]]
        try:
            digest = None if isinstance(image, Problem) else _with_target(table, index, bytes.fromhex(image))
        except BROKEN:  # a mask is gone
            digest = None
        yield digest


def _with_target(table: Table, index: int, image: bytes) -> bytes:
    target = table.target_digest(index)
    return hashlib.sha256(f"{image.hex()} {target}".encode()).digest() if target else image


def _samples(table: Table) -> Iterator[str]:
    for index, id in enumerate(table.ids):
        with scope(0, "content", id):  # a table of the user's own may draw random numbers while it loads
            sample = table.load(index)
        yield state_digest({"image": sample.image, "target": sample.target})


class Facts(ABC):
    """Properties of data that follow from their tables; the first one that is used reads the data.

    Attributes:
        image_size: See :class:`autotimm.DataModule`, like the rest.
        eval_batch_size: Samples per batch in validation, test and prediction.
        in_chans: Channels of the images.
        ignore_exif: Whether images are read as they are stored.
        crop_pct: Share of the resized image that evaluation's central crop keeps.
        interpolation: How images are resized.
        overlap: Share of their sides that tiles have in common; ``None`` if images are not cut into tiles.
        decode: How much of a JPEG is decoded, ``reduced`` or ``full``.
        notices: One line for each problem or peculiarity of the data.
        arguments: The arguments of the constructor, by name.
    """

    image_size: ImageSize
    eval_batch_size: int
    in_chans: int
    ignore_exif: bool
    crop_pct: float
    interpolation: str
    overlap: float | None = None
    decode: str = "full"
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
            in_chans=self.in_chans,
            ignore_exif=self.ignore_exif,
            overlap=self.overlap,
            decode=self.decode,
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
