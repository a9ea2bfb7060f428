"""Rows in litData's chunks.

There are two streams of chunks, since litData reads whole items: ``rows/`` has split, id and target of each row, and is
read once from its beginning; ``images/`` has id, image and masks, and is read by random access. An item is a list of
three byte strings. The description is ``autotimm.json``. See https://github.com/Lightning-AI/litData.

litData knows serializers that unpickle what they read. A stream that names any other than that of bytes is refused.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autotimm.data.packed.row_store import Head, ListedRow, Row, Rows, unreadable
from autotimm.errors import DataError, missing_extra, sentence
from autotimm.records.atomic import write_text
from autotimm.records.readers import Fields, misfit
from autotimm.serialization import parse_json

__all__ = ["LitDataRows", "write_litdata"]

_HEAD, _INDEX, _ROWS, _IMAGES = "autotimm.json", "index.json", "rows", "images"
_CHUNK_BYTES = 1 << 26
_CHUNK = re.compile(r"chunk-\d+-\d+\.bin")
_LARGEST_INDEX = 1 << 28  # bytes
_BROKEN = (OSError, ValueError, RuntimeError, LookupError, TypeError, struct.error)  # what litData raises of a file
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_SPEC = [1, {"type": "builtins.list", "context": "null", "children_spec": [_LEAF] * 3}]
_KNOWN = {"chunk_size", "chunk_bytes", "data_format", "data_spec", "types", "item_loader"}
_SHAPE = Fields(
    {
        "chunks": [Fields({"chunk_bytes": int, "chunk_size": int, "filename": str},
                          ("chunk_bytes", "chunk_size", "filename"))],
        "config": Fields({"data_format": [str], "data_spec": str}, ("data_format", "data_spec")),
    },
    ("chunks", "config"),
)  # fmt: skip


def _litdata() -> Any:
    try:
        import litdata  # an optional extra
    except ImportError:
        raise missing_extra("A data set of litData", "litdata") from None
    return litdata


class LitDataRows(Rows):
    """The rows in chunks of litData.

    Args:
        path: The folder with both streams.
    """

    engine = "litdata"

    @staticmethod
    def is_there(path: Path) -> bool:
        """Whether a folder has chunks of litData, also of other programs."""
        if os.path.isfile(path / _IMAGES / _INDEX) and os.path.isfile(path / _HEAD):
            return True
        try:
            with open(path / _INDEX, "rb") as file:
                start = file.read(64)
        except OSError:
            return False
        return start.startswith(b'{"chunks": [{"chunk_bytes"')

    def _open(self, stream: str) -> Any:
        # One item at a time: a window of them would be read for each image of a shuffled epoch.
        return _litdata().StreamingDataset(str(self.path / stream), batch_decode=0)

    def _images(self) -> Any:
        """The stream of images, opened by this process."""
        return self._here(partial(self._open, _IMAGES))

    def _failed(self, error: BaseException) -> DataError:
        return unreadable(f"The chunks of {self.path}", error)

    def description(self) -> bytes:
        """What stands in ``autotimm.json``; refuses other streams than ours."""
        _litdata()
        if not os.path.isfile(self.path / _HEAD):
            raise DataError(
                f"The chunks of {self.path} must be some that `autotimm pack` wrote. There is no {_HEAD}. Pack the "
                "folder that they were made of."
            )
        numbers = [_check_stream(self.path / stream) for stream in (_ROWS, _IMAGES)]
        if numbers[0] != numbers[1]:
            raise DataError(f"{self.path} has {numbers[0]} rows and {numbers[1]} images. Pack the data again.")
        try:
            return (self.path / _HEAD).read_bytes()
        except OSError as error:
            raise self._failed(error) from None

    def listed(self) -> Iterator[ListedRow]:
        """All rows in order, without their images."""
        try:
            rows = self._open(_ROWS)
            for place in range(_check_stream(self.path / _ROWS)):  # litData counts those of one process alone
                yield ListedRow(*(bytes(part).decode("utf-8", "surrogatepass") for part in rows[place]))
        except _BROKEN as error:
            raise self._failed(error) from None

    def read(self, places: Sequence[int]) -> list[Row]:
        """The files of some rows, by random access."""
        try:
            images = self._images()
            found = (images[place] for place in places)
            return [
                Row(bytes(id).decode("utf-8", "surrogatepass"), bytes(image), bytes(masks))
                for id, image, masks in found
            ]
        except _BROKEN as error:
            raise self._failed(error) from None


def _check_stream(folder: Path) -> int:
    """Check the index of a stream before litData opens it; return the number of items.

    Raises:
        DataError: If it names other serializers, other files than its own, or is damaged.
    """
    index, cure = folder / _INDEX, "Use an intact copy, or pack it again."
    owner = f"the index {index}"
    try:
        content = index.read_bytes() if index.stat().st_size <= _LARGEST_INDEX else b""
        value = parse_json(content)
    except (OSError, ValueError) as error:
        raise DataError(f"The index {index} must be readable JSON. It is not ({error}). {cure}") from None
    if (wrong := misfit(value, _SHAPE)) is not None:
        raise DataError(sentence(wrong.name or "content", owner, wrong.must, wrong.got, cure))
    config = value["config"]
    if config["data_format"] != ["bytes"] * 3:
        must = "bytes, three times: other serializers may run code of whoever wrote the file"
        raise DataError(sentence("data_format", owner, must, config["data_format"], cure))
    others = {name for name in config.keys() - _KNOWN if config[name] is not None}
    if others or config.get("item_loader") not in (None, "PyTreeLoader") or not _is_spec(config["data_spec"]):
        raise DataError(f"The index {index} must be as `autotimm pack` writes it. It is not. {cure}")
    for chunk in value["chunks"]:
        file = folder / chunk["filename"]
        if not _CHUNK.fullmatch(chunk["filename"]) or file.is_symlink() or not file.is_file():
            raise DataError(sentence("filename", owner, "a chunk beside it", chunk["filename"], cure))
        if chunk["chunk_size"] < 0 or file.stat().st_size != chunk["chunk_bytes"]:
            raise DataError(f"The chunk {file} must have the size that its index says. It has another. {cure}")
    return sum(chunk["chunk_size"] for chunk in value["chunks"])


def _is_spec(text: str) -> bool:
    try:
        return bool(parse_json(text) == _SPEC)
    except ValueError:
        return False


def write_litdata(path: Path, head: Head, rows: Iterator[tuple[ListedRow, Row]]) -> None:
    """Write both streams, of which nothing can be opened before all of it is there.

    Args:
        path: A folder that is new or empty.
        head: What describes them.
        rows: The rows, in order.

    Raises:
        UsageError: Without the extra.
        OSError: If they cannot be written.
    """
    _litdata()
    from litdata.streaming.cache import Cache  # comes with litData

    streams = {}
    for name in (_ROWS, _IMAGES):
        (path / name).mkdir(parents=True)
        streams[name] = Cache(str(path / name), chunk_bytes=_CHUNK_BYTES)
    for place, (listed, row) in enumerate(rows):
        streams[_ROWS][place] = [part.encode("utf-8", "surrogatepass") for part in listed]
        streams[_IMAGES][place] = [row.id.encode("utf-8", "surrogatepass"), row.image, row.masks]
    for stream in streams.values():
        stream.done()
        stream.merge()
    write_text(path / _HEAD, head.written().decode())
