"""Writing the files and targets of a data module into a packed data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autotimm.data.module import DataModule
from autotimm.data.packed.lance_rows import write_lance
from autotimm.data.packed.litdata_rows import write_litdata
from autotimm.data.packed.row_store import SPLITS, Head, ListedRow, Row
from autotimm.data.packed.row_targets import head_of, written_target
from autotimm.data.progress_bar import ProgressBar
from autotimm.data.table import AT_ONCE, Table
from autotimm.errors import DataError, UsageError, require_choice, sentence

__all__ = ["WRITERS", "PackedData", "pack"]

_Writer = Callable[[Path, Head, Iterator[tuple[ListedRow, Row]]], None]
WRITERS: Mapping[str, _Writer] = {"lance": write_lance, "litdata": write_litdata}
"""What writes the rows, by the name of the engine."""


class PackedData(NamedTuple):
    """What was written.

    Attributes:
        path: The folder.
        kind: The kind of the targets, see :class:`autotimm.types.DataSpec`.
        samples: The number of rows of each split.
        size: The bytes of all image files and masks.
    """

    path: Path
    kind: str
    samples: dict[str, int]
    size: int


def pack(data: DataModule, to: str, out: str | Path, progress: bool = True) -> PackedData:
    """Write the samples of a data module into a packed data set, on which training computes the same bits.

    Image files are copied as they are. Ids, order, and the splits that the data have of their own stay; what is not
    split is split when it is read, as the folder would be. Images that cannot be read are left out.

    Args:
        data: A data module that was not set up yet.
        to: ``lance`` or ``litdata``.
        out: A folder that is new or empty.
        progress: Whether a progress bar may appear.

    Raises:
        UsageError: If the samples are no files, or without the extra.
        DataError: If the data cannot be used.

    Example:
        >>> import tempfile
        >>> from autotimm import ImageDataModule
        >>> from autotimm.data.toy import write_toy_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     photos = ImageDataModule(write_toy_folder(f"{folder}/photos", n=40), num_workers=0)
        ...     packed = pack(photos, "lance", f"{folder}/photos.lance")
        ...     data = ImageDataModule(packed.path, num_workers=0)
        ...     data.assignments() == ImageDataModule(f"{folder}/photos", num_workers=0).assignments()
        True
    """
    require_choice("to", "pack", to, tuple(WRITERS))
    folder = Path(out).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            sentence("out", "pack", "a new or empty folder", str(out), "Nothing is written over: give another name.")
        )
    tables = data.own_tables()
    head, rows = head_of(tables), _Reading(tables, progress)
    try:
        WRITERS[to](folder, head, iter(rows))
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}. Give another `out`.") from error
    return PackedData(folder, head.kind, head.samples, rows.size)


class _Reading:
    """Reads the rows to write."""

    def __init__(self, tables: Mapping[str, Table], progress: bool) -> None:
        self._tables, self._progress, self.size = tables, progress, 0

    def __iter__(self) -> Iterator[tuple[ListedRow, Row]]:
        with ProgressBar(sum(map(len, self._tables.values())), self._progress, "packing") as bar:
            for split in SPLITS:
                for row in self._of_split(split) if split in self._tables else ():
                    yield row
                    bar.advance()

    def _of_split(self, split: str) -> Iterator[tuple[ListedRow, Row]]:
        table = self._tables[split]
        files, packed = table.files(), table.packed()
        for index, id in enumerate(table.ids):
            if packed is not None and index % AT_ONCE == 0:
                table.read_ahead(np.arange(index, min(index + AT_ONCE, len(table))).tolist())
            try:
                if packed is None:
                    image = files[index].read_bytes()
                else:
                    image = packed.rows.row(int(packed.places[index])).image
                target = written_target(table, index)
            except OSError as error:
                raise DataError(f"{id} cannot be read any more: {error.strerror or error}. Start again.") from error
            self.size += len(image) + len(target.masks)
            yield ListedRow(split, id, target.text), Row(id, image, target.masks)
