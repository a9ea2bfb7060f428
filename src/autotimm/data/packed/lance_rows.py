"""Rows in a Lance data set.

A row has the columns ``split``, ``id`` and ``target`` (text) and ``image`` and ``masks`` (bytes); the description
stands in the metadata of the schema. See https://lance.org/format/.

A data set is opened at the version that was read first: rows that somebody adds later do not change a run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from autotimm.data.packed.row_store import Head, ListedRow, Row, Rows, unreadable
from autotimm.data.table import AT_ONCE
from autotimm.errors import DataError, missing_extra

__all__ = ["LanceRows", "write_lance"]

_TEXTS, _BYTES = ("split", "id", "target"), ("image", "masks")
_KEY = b"autotimm"
_BLOCK = 4096  # rows that are listed at once
_BROKEN = (OSError, ValueError, RuntimeError, KeyError)  # what Lance raises of a file; errors of Arrow are ValueErrors


def _lance() -> Any:
    try:
        import lance  # an optional extra
    except ImportError:
        raise missing_extra("A Lance data set", "lance") from None
    # Loading processes are not forked from this one, and others do not use Lance.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    return lance


class LanceRows(Rows):
    """The rows of a Lance data set.

    Args:
        path: The folder of the data set.
    """

    engine = "lance"
    may_fork = False  # its threads do not survive it: a forked process ends with a segmentation fault, or waits forever

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._version: int | None = None

    @staticmethod
    def is_there(path: Path) -> bool:
        """Whether a folder is a Lance data set, also one that autotimm did not write."""
        return os.path.isdir(path / "_versions")

    def _data(self) -> Any:
        """The data set, opened by this process."""
        return self._here(self._open)

    def _open(self) -> Any:
        lance = _lance()
        try:
            opened = lance.dataset(str(self.path), version=self._version)
        except _BROKEN as error:
            raise self._failed(error) from None
        self._version = opened.version
        return opened

    def _failed(self, error: BaseException) -> DataError:
        return unreadable(f"The Lance data set {self.path}", error)

    def description(self) -> bytes:
        """What stands in the metadata of the schema; refuses other columns than ours."""
        schema = self._data().schema
        wanted = {**dict.fromkeys(_TEXTS, "string"), **dict.fromkeys(_BYTES, "large_binary")}
        columns = {field.name: str(field.type) for field in schema}
        content = (schema.metadata or {}).get(_KEY)
        if content is None or any(columns.get(name) != kind for name, kind in wanted.items()):
            have = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
            raise DataError(
                f"The Lance data set {self.path} must be one that `autotimm pack` wrote. It has the columns {have}. "
                "Pack the folder that it was made of."
            )
        return bytes(content)

    def listed(self) -> Iterator[ListedRow]:
        """All rows in order, of which no other column is read."""
        try:
            for batch in self._data().scanner(columns=list(_TEXTS), batch_size=_BLOCK, scan_in_order=True).to_batches():
                texts = (batch.column(name).to_pylist() for name in _TEXTS)
                for row in zip(*texts, strict=True):
                    yield ListedRow(*(text or "" for text in row))
        except _BROKEN as error:
            raise self._failed(error) from None

    def read(self, places: Sequence[int]) -> list[Row]:
        """The files of some rows, by random access."""
        try:
            found = self._data().take(list(places), columns=["id", *_BYTES])
            columns = (found.column(name).to_pylist() for name in ("id", *_BYTES))
            return [Row(id or "", image or b"", masks or b"") for id, image, masks in zip(*columns, strict=True)]
        except _BROKEN as error:
            raise self._failed(error) from None


def write_lance(path: Path, head: Head, rows: Iterator[tuple[ListedRow, Row]]) -> None:
    """Write a Lance data set, of which nothing can be opened before all of it is there.

    Args:
        path: A folder that is new or empty.
        head: What describes it.
        rows: Its rows, in order.

    Raises:
        UsageError: Without the extra.
        OSError: If it cannot be written.
    """
    lance = _lance()
    import pyarrow as pa  # comes with Lance

    kinds = {**dict.fromkeys(_TEXTS, pa.string()), **dict.fromkeys(_BYTES, pa.large_binary())}
    schema = pa.schema(list(kinds.items()), metadata={_KEY: head.written()})

    def batches() -> Iterator[Any]:
        while some := list(islice(rows, AT_ONCE)):
            columns = [(*listed, row.image, row.masks) for listed, row in some]
            arrays = [pa.array(column, kind) for column, kind in zip(zip(*columns), kinds.values(), strict=True)]  # noqa: B905
            yield pa.record_batch(arrays, schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(path), schema=schema)
