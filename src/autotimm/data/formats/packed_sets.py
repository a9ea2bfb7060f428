"""Packed data sets as formats of data: which folders are some, and reading them as any other."""

from __future__ import annotations

import os
from abc import ABC
from typing import ClassVar

from autotimm.constants import TASKS
from autotimm.data.formats.data_format import Format, ReadOptions, Sighting
from autotimm.data.formats.listing import Listing
from autotimm.data.formats.parquet_rows import ParquetRows, is_shard
from autotimm.data.image_reading import current_reading
from autotimm.data.packed.lance_rows import LanceRows
from autotimm.data.packed.litdata_rows import LitDataRows
from autotimm.data.packed.row_store import Rows, read_head
from autotimm.data.packed.row_targets import tables_of
from autotimm.data.table import Table
from autotimm.errors import DataError

__all__ = ["PACKED", "PackedFormat", "packed_format"]

_TASKS = {"classes": ("classification",), "boxes": ("detection",), "instances": ("instance", "detection"),
          "pixels": ("segmentation",)}  # fmt: skip


class PackedFormat(Format, ABC):
    """A data set whose images are in rows: what ``autotimm pack`` wrote of a folder, or parquet files."""

    tasks: ClassVar[tuple[str, ...]] = TASKS
    rows: ClassVar[type[Rows]]
    """The rows of the engine."""

    def see(self, listing: Listing) -> Sighting | None:
        """What the description of the data set says."""
        if not self.rows.is_there(listing.path):
            return None
        rows: Rows = listing.opened.get(self.name) or self.rows(listing.path)
        listing.opened[self.name] = rows
        head = read_head(rows.description(), listing.path)
        number = sum(head.samples.values())
        return Sighting(f"{number} packed images ({self.name}) with {head.kind}", _TASKS[head.kind])

    def read(self, listing: Listing, notices: list[str], options: ReadOptions) -> dict[str, Table]:
        """Read the rows without their images; see the base class."""
        rows: Rows = listing.opened.pop(self.name, None) or self.rows(listing.path)  # only one reading may have them
        head = read_head(rows.description(), listing.path)
        upright = current_reading().upright
        if head.kind != "classes" and head.upright != upright:
            made = "turned by their EXIF tags" if head.upright else "as they are stored"
            raise DataError(
                f"The targets of {listing.path} are for images {made}. Give ignore_exif={not head.upright}."
            )
        notices.extend(rows.notices())
        return tables_of(rows, head, masks=options.masks)


class LanceFormat(PackedFormat):
    """Rows in a Lance data set."""

    name = "lance"
    rows = LanceRows


class LitDataFormat(PackedFormat):
    """Rows in chunks of litData."""

    name = "litdata"
    rows = LitDataRows


class ParquetFormat(PackedFormat):
    """Images and classes in parquet files, as on the Hugging Face hub."""

    name = "parquet"
    rows = ParquetRows
    tasks = ("classification",)

    def see(self, listing: Listing) -> Sighting | None:
        """What the files say; a folder is not listed for it again."""
        folders = [folder for folder in (listing.path, listing.path / "data") if os.path.isdir(folder)]
        if folders and not any(is_shard(path.name) for folder in folders for path in listing.files(folder)):
            return None
        return super().see(listing)


PACKED: tuple[PackedFormat, ...] = (LanceFormat(), LitDataFormat(), ParquetFormat())
"""The formats of packed data sets."""


def packed_format(listing: Listing, task: str | None = None) -> PackedFormat | None:
    """The format of a packed data set; ``None`` if a folder is none.

    Args:
        listing: The folder.
        task: What it shall be used for.

    Raises:
        DataError: If it is one for another task, or damaged.
    """
    for format in PACKED:
        sighting = format.see(listing)
        if sighting is not None:
            if task not in (None, *sighting.tasks):
                raise DataError(
                    f"{listing.path} must have data for {task}. It has {sighting.what}. Give another path or task."
                )
            return format
    return None
