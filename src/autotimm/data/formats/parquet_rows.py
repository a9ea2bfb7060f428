"""Images and their classes in parquet files, as data sets of the Hugging Face hub are stored.

One column holds image files, as bytes or as a struct of ``bytes`` and ``path``; another holds the class of each image,
or several. Which they are, and the names of the classes, stands in the metadata that the library ``datasets`` writes
(https://huggingface.co/docs/hub/datasets-image); without it the columns are found by their names. A path in a row names
the sample and is never opened, since it may lead anywhere.

Rows are read by whole row groups, of which ``datasets`` makes small ones for images.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autotimm.data.formats.listing import split_of
from autotimm.data.packed.row_store import SPLITS, Head, ListedRow, Row, Rows, unreadable
from autotimm.errors import DataError, join_names, missing_extra
from autotimm.serialization import parse_json

__all__ = ["ParquetRows", "is_shard"]

_SUFFIX = ".parquet"
_SHARD = re.compile(r".+-\d+-of-\d+\.parquet$")  # as `datasets` and the hub name them
_KEY = b"huggingface"
_LABELS = ("label", "labels", "class", "category")
_IMAGES = ("image", "img", "images")
_LARGEST_GROUP = 1 << 30  # bytes: each image that is read may need all of its group
_CLASSES = 1 << 20
_OPEN = 64  # files that are open at once; data sets have hundreds, and systems have limits
_CURE = "Use an intact copy."
_BROKEN = (OSError, ValueError, RuntimeError, KeyError)  # what Arrow raises of a file


class _Columns(NamedTuple):
    """Which columns hold what.

    Attributes:
        image: The column with image files.
        has_path: Whether it is a struct, with a name beside the bytes.
        label: The column with classes.
        names: The names of the classes by their numbers; ``None`` where the values are the names.
        several: Whether an image may have several classes.
    """

    image: str
    has_path: bool
    label: str
    names: tuple[str, ...] | None
    several: bool


class _File(NamedTuple):
    """A file of a split.

    Attributes:
        path: Where it is.
        split: ``train``, ``val`` or ``test``.
    """

    path: Path
    split: str


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet  # an optional extra
    except ImportError:
        raise missing_extra("A parquet data set", "parquet") from None
    return parquet


class ParquetRows(Rows):
    """The rows of parquet files.

    Args:
        path: A file, whose rows are all for training, or a folder of files whose names say their split, such as
            ``data/train-00000-of-00002.parquet``.
    """

    engine = "parquet"
    cure = "Give every row an image and a class."

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._unlisted: dict[Path, list[tuple[Any, str]]] = {}  # what was read of a file before its rows are listed

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_unlisted": {}}

    @staticmethod
    def is_there(path: Path) -> bool:
        """Whether a path is a parquet file, or a folder that has files of the names that ``datasets`` gives them."""
        if path.suffix.lower() == _SUFFIX:
            return path.is_file()
        return any(is_shard(name) for folder in (path, path / "data") for name in _names_in(folder))

    @cached_property
    def _paths(self) -> list[Path]:
        """All files."""
        if self.path.is_file():
            return [self.path]
        folders = (self.path, self.path / "data")
        return sorted(folder / name for folder in folders for name in _names_in(folder) if name.endswith(_SUFFIX))

    @cached_property
    def _files(self) -> list[_File]:
        """The files with classes, by split and name."""
        alone = len(self._paths) == 1
        splits = ("train" if alone else split_of(path.name) or "train" for path in self._paths)
        found = [_File(*each) for each in zip(self._paths, splits, strict=True)]
        labelled = {split for split in SPLITS if self._has_classes([each for each in found if each.split == split])}
        files = [each for split in SPLITS if split in labelled for each in found if each.split == split]
        self._unlisted = {file.path: self._unlisted[file.path] for file in files if file.path in self._unlisted}
        return files

    def _has_classes(self, files: Sequence[_File]) -> bool:
        """Whether any row has a class: those of a test are often hidden, and written as -1."""
        return any(label not in (None, -1, []) for file in files for label, _ in self._rows_of(file))

    def notices(self) -> list[str]:
        """The files whose rows have no classes."""
        without = [path.name for path in self._paths if path not in {file.path for file in self._files}]
        return [f"no row of {join_names(without)} has a class: left out"] if without else []

    @cached_property
    def _columns(self) -> _Columns:
        """The columns of the first file, which all must have."""
        schema = self._open(self._paths[0]).schema_arrow
        features = _features(schema.metadata or {})
        kinds = {field.name: str(field.type) for field in schema}
        images = [name for name, kind in features.items() if _type(kind) == "Image" and name in kinds]
        images = images or [name for name in _IMAGES if name in kinds]
        classes = {name: found for name, kind in features.items() if (found := _classes(kind)) and name in kinds}
        labels = [*classes] or [name for name in _LABELS if name in kinds]
        labels = [name for name in labels if name in _LABELS] if len(labels) > 1 else labels
        if len(images) != 1 or len(labels) != 1 or not _holds_files(kinds[images[0]]):
            have = join_names([f"{name} ({kind.partition('<')[0]})" for name, kind in kinds.items()])
            raise DataError(
                f"{self.path} must have one column with image files, such as `image`, and one with classes, such as "
                f"`label`. It has {have}. Boxes and masks in parquet are not read."
            )
        image, label = images[0], labels[0]
        names = classes.get(label)
        return _Columns(image, kinds[image].startswith("struct"), label, names, kinds[label].startswith("list"))

    def _open(self, path: Path) -> Any:
        """A file, opened once by each process."""
        opened: dict[Path, Any] = self._here(dict)
        if path not in opened:
            if len(opened) >= _OPEN:
                opened.clear()
            parquet = _parquet()
            try:
                opened[path] = parquet.ParquetFile(str(path))
            except _BROKEN as error:
                raise unreadable(str(path), error, _CURE) from None
        return opened[path]

    def _labels_of(self, file: _File) -> Iterator[tuple[Any, str]]:
        """Class and name of each row of a file; the images are not read."""
        columns, opened = self._columns, self._open(file.path)
        wanted = [columns.label, *([f"{columns.image}.path"] if columns.has_path else [])]
        try:
            for batch in opened.iter_batches(columns=wanted, use_threads=False):
                labels = batch.column(columns.label).to_pylist()
                names = batch.column(columns.image).to_pylist() if columns.has_path else [None] * len(labels)
                yield from ((label, (name or {}).get("path") or "") for label, name in zip(labels, names, strict=True))
        except _BROKEN as error:
            raise unreadable(str(file.path), error, _CURE) from None

    def _rows_of(self, file: _File) -> list[tuple[Any, str]]:
        """Class and name of each row of a file, kept until its rows are listed: a column is read once."""
        if file.path not in self._unlisted:
            self._unlisted[file.path] = list(self._labels_of(file))
        return self._unlisted[file.path]

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        if self._columns.names is not None:
            return self._columns.names
        values: set[Any] = set()
        for file in self._files:
            values.update(
                value if isinstance(value, (int, str)) else None
                for label, _ in self._rows_of(file)
                for value in _as_list(label)
            )
        if len(values) > _CLASSES or None in values:
            raise DataError(
                f"The column `{self._columns.label}` of {self.path} must hold classes, as texts or numbers."
            )
        return tuple(map(str, sorted(values, key=lambda value: (isinstance(value, str), value))))

    def description(self) -> bytes:
        """The classes of the files, and how many rows there are of each split."""
        samples = Counter(dict.fromkeys(SPLITS, 0))
        for file in self._files:
            opened = self._open(file.path)
            groups = (opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups))
            largest = max((group.total_byte_size for group in groups), default=0)
            if largest > _LARGEST_GROUP:
                raise DataError(
                    f"The row groups of {file.path} must have at most {_LARGEST_GROUP / 1e9:.1f} GB, since reading one "
                    f"image may take all of one. One has {largest / 1e9:.1f} GB. Write smaller ones."
                )
            samples[file.split] += opened.metadata.num_rows
        return Head("classes", self._class_names, self._columns.several, (), True, dict(samples)).written()

    def listed(self) -> Iterator[ListedRow]:
        """All rows in order, without their images."""
        numbers = {name: number for number, name in enumerate(self._class_names)}
        names = self._columns.names
        for split in SPLITS:
            files = [file for file in self._files if file.split == split]
            rows = [row for file in files for row in self._rows_of(file)]
            for file in files:
                del self._unlisted[file.path]
            called = Counter(os.path.basename(path) for _, path in rows)
            by_name = len(called) == len(rows) and not called.keys() & {"", os.curdir, os.pardir}
            for number, (label, path) in enumerate(rows):
                values = _as_list(label)
                target = [numbers[str(value)] for value in values] if names is None else values
                id = os.path.basename(path) if by_name else f"{number:06d}"
                yield ListedRow(split, f"{split}/{id}", json.dumps(target))

    @cached_property
    def _starts(self) -> list[tuple[int, int, int]]:
        """The first row of each row group, with the numbers of its file and its group."""
        starts, row = [], 0
        for number, file in enumerate(self._files):
            metadata = self._open(file.path).metadata
            for group in range(metadata.num_row_groups):
                starts.append((row, number, group))
                row += metadata.row_group(group).num_rows
        return starts

    def read(self, places: Sequence[int]) -> list[Row]:
        """The files of some rows, by row groups."""
        firsts = np.array([start[0] for start in self._starts])
        groups = (np.searchsorted(firsts, places, side="right") - 1).tolist()
        rows: dict[int, Row] = {}
        for group in sorted({*groups}):
            first, number, of_file = self._starts[group]
            images = self._images_of(self._files[number].path, of_file)
            for place in (place for place, own in zip(places, groups, strict=True) if own == group):
                rows[place] = Row(self.ids[place], self._content(images[place - first].as_py(), place), b"")
        return [rows[place] for place in places]

    def _images_of(self, path: Path, group: int) -> Any:
        try:
            column = self._columns.image
            return self._open(path).read_row_group(group, columns=[column], use_threads=False).column(column)
        except _BROKEN as error:
            raise unreadable(str(path), error, _CURE) from None

    def _content(self, held: Any, place: int) -> bytes:
        """The image file in a row."""
        content = held.get("bytes") if isinstance(held, dict) else held
        if not isinstance(content, bytes):
            raise DataError(f"{self._name(place)} has no image in it. {self.cure} A path alone is not opened.")
        return content


def is_shard(name: str) -> bool:
    """Whether a file has a name that ``datasets`` and the hub give."""
    return _SHARD.match(name) is not None


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _as_list(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [] if label is None else [label]


def _holds_files(kind: str) -> bool:
    return kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What ``datasets`` says of the columns; nothing if another program wrote the file."""
    try:
        features = parse_json(metadata[_KEY])["info"]["features"]
        return dict(features)
    except (LookupError, ValueError, TypeError):
        return {}


def _type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _classes(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes of a column, also of lists; ``None`` for any other column."""
    if _type(feature) in ("Sequence", "List", "LargeList"):
        feature = feature.get("feature")
    names = feature.get("names") if _type(feature) == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
