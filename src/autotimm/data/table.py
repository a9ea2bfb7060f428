"""Tables: how the rest of the library sees a data set. Ids, class names, and one sample at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from autotimm.data.image_channels import read_as
from autotimm.data.image_reading import UPRIGHT_RGB, ImageReading, current_reading
from autotimm.data.texts import Paths, Picked, TextsView, as_texts
from autotimm.types import Sample

if TYPE_CHECKING:
    from autotimm.data.packed.row_store import Rows
    from autotimm.data.pixel_cache import PixelCache

__all__ = [
    "AT_ONCE",
    "ImageTable",
    "Objects",
    "Packed",
    "Subset",
    "Table",
    "balanced_weights",
    "packed_at",
    "rarest_labels",
]

AT_ONCE = 32
"""Samples of a packed data set that are read at once: more take more memory, and save no more time."""


class Objects(NamedTuple):
    """The objects of an image, as arrays of K rows.

    Attributes:
        boxes: ``float32`` (K, 4): x1, y1, x2, y2 in pixels, within the image.
        labels: ``int64`` (K,): class indices.
        crowd: ``bool`` (K,): what is neither trained on nor counted.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


class Packed(NamedTuple):
    """Where the files of samples are in a packed data set.

    Attributes:
        rows: All rows of the data set.
        places: The number of the row of each sample (N,).
    """

    rows: Rows
    places: NDArray[np.int64]


class Table(ABC):
    """A list of samples with ids and classes, loaded one by one.

    To read a data format of your own, subclass this and return it from :meth:`DataModule.read`.

    Attributes:
        ids: One id per sample: unique, ``/``-separated, the same on every machine. Splits and augmentation are keyed
            by it, so that a sample keeps its side and its random numbers when others are added. A tuple, or for many
            samples :class:`autotimm.data.texts.Texts`, which is equal to one and takes a fifth of the memory.
        class_names: Names of the classes in the order of the class indices.
        multi_label: Whether a sample may have several classes.
        kind: The kind of the targets, see :class:`autotimm.types.DataSpec`.
        strata: The class index of each sample, for stratified splits and balanced draws; ``None`` if there is none.
        category_ids: The numbers that a COCO file gives the classes, in their order; empty if there is none.
        groups: The group of each sample, from a column of a table that was asked for; ``None`` without one.
        reading: How its image files become pixels.
        cache: Where decoded pictures of its files are kept, see :meth:`cached`.
        packed_rows: The rows that hold its files, in a data set that was packed; ``None`` where files are in folders.
        packed_places: The number of the row of each sample (N,), if there are rows.
        draws_random: Whether :meth:`load` may draw from a global generator (``random``, NumPy, torch). ``False`` saves
            time.
    """

    ids: Sequence[str]
    class_names: tuple[str, ...] = ()
    multi_label: bool = False
    kind: str = "classes"
    strata: Sequence[int] | None = None
    category_ids: tuple[int, ...] = ()
    groups: Sequence[str] | None = None
    reading: ImageReading = UPRIGHT_RGB
    cache: PixelCache | None = None
    packed_rows: Rows | None = None
    packed_places: NDArray[np.int64] = np.zeros(0, np.int64)
    draws_random: bool = True

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Read one sample; its image is decoded, and neither resized nor augmented.

        Raises:
            DataError: If it cannot be read.
        """

    def at_least(self, size: tuple[int, int] | None) -> Table:
        """Return a table of the same samples whose images may be decoded at a reduced scale; by default this one.

        Args:
            size: Height and width that every image must keep, unless it has less; ``None`` for all of it.
        """
        return self

    def cached(self, cache: PixelCache) -> Table:
        """Return a table of the same samples whose :meth:`picture` comes from a cache."""
        table = copy(self)
        table.cache = cache
        return table

    def picture(self, path: str | Path) -> tv_tensors.Image:
        """Decode an image file of a sample as :attr:`reading` says, or take it from the cache: the same pixels.

        Args:
            path: The file; in a packed data set the number of its row, as text.

        Raises:
            DataError: If it cannot be read.
        """
        if self.packed_rows is not None:
            return self.packed_rows.picture(int(str(path)), self.reading)
        return read_as(path, self.reading) if self.cache is None else self.cache.read(path, self.reading)

    def files(self) -> Sequence[Path]:
        """Return one image file per sample, to be checked before training; nothing if samples are not files."""
        return ()

    def packed(self) -> Packed | None:
        """Return the rows that hold the files of these samples; ``None`` if the data set was not packed."""
        return None

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Read the files of samples that are loaded next all at once, if they are rows of a packed data set."""
        if (packed := self.packed()) is not None:
            packed.rows.fetch(packed.places[np.array(indices, np.int64)].tolist())

    def labels(self, index: int) -> tuple[str, ...]:
        """Return the names of the classes of a sample, without loading it."""
        return () if self.strata is None else (self.class_names[self.strata[index]],)

    def amounts(self, index: int) -> dict[str, int]:
        """Return how much of each of its classes a sample has, for balanced weights: pixels, or else 1."""
        return dict.fromkeys(self.labels(index), 1)

    def objects(self, index: int) -> Objects | None:
        """Return the objects of a sample without loading it; ``None`` where samples have none."""
        return None

    def most_objects(self) -> int:
        """Return how many objects an image has at most; 0 where samples have none."""
        return 0

    def target_digest(self, index: int) -> str:
        """Return the SHA-256 of a target in a file of its own; nothing where :meth:`labels` is all of the target."""
        return ""

    def target_files(self, index: int) -> tuple[Path, ...]:
        """Return the files that :meth:`load` reads a target from, such as a mask: part of :meth:`target_digest`."""
        return ()

    def counts(self) -> tuple[int, ...]:
        """Return how many samples each class has, in class order."""
        if self.strata is not None and self._has_one_label():
            return tuple(np.bincount(_whole(self.strata), minlength=len(self.class_names)).tolist())
        totals = dict.fromkeys(self.class_names, 0)
        for index in range(len(self)):
            for name in self.labels(index):
                totals[name] += 1
        return tuple(totals.values())

    def _has_one_label(self) -> bool:
        """Whether the strata are all that :meth:`labels` tells."""
        return type(self).labels is Table.labels

    def __len__(self) -> int:
        return len(self.ids)


def rarest_labels(targets: Tensor) -> list[int]:
    """Return for each row of 0/1 targets (N, C) the rarest of its classes over all rows; C for a row of zeros.

    A split that is stratified by it keeps rare classes on both sides.

    Example:
        >>> rarest_labels(torch.tensor([[1, 1], [1, 0], [0, 0]]))
        [1, 0, 2]
    """
    counts = targets.sum(0)
    # Zeros cost more than any count. argmin returns the first of equals, so that ties are no matter of chance.
    cost = torch.where(targets > 0, counts, targets.shape[0] + 1)
    return torch.where(targets.sum(1) > 0, cost.argmin(1), targets.shape[1]).tolist()


def balanced_weights(table: Table) -> list[float] | None:
    """Weights that draw every class equally often: the inverse of each class's size; ``None`` without classes."""
    if table.strata is None:
        return None
    _, own, sizes = np.unique(_whole(table.strata), return_inverse=True, return_counts=True)
    weights: list[float] = (1 / sizes)[own].tolist()
    return weights


class ImageTable(Table):
    """Image files and their classes.

    Args:
        paths: One file per sample.
        ids: One id per sample.
        targets: Class indices (N,), or zeros and ones (N, C) for multi-label, or ``None`` where classes are unknown.
        class_names: Names of the classes.
    """

    draws_random = False

    def __init__(
        self,
        paths: Sequence[str | Path],
        ids: Sequence[str],
        targets: Tensor | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.paths = paths if isinstance(paths, TextsView) else as_texts(map(str, paths))
        self.ids = as_texts(ids)
        self.class_names, self.targets = tuple(class_names), targets
        self.reading = current_reading()
        self.multi_label = targets is not None and targets.ndim == 2
        if targets is not None:
            self.strata = array("q", rarest_labels(targets) if self.multi_label else targets.numpy().tobytes())

    def load(self, index: int) -> Sample:
        """Decode one file. The target is an ``int``, or a float vector (C,) for multi-label, or ``None``."""
        return Sample(self.picture(self.paths[index]), self._target(index), self.ids[index])

    def at_least(self, size: tuple[int, int] | None) -> ImageTable:
        """Return a table of the same files, of which JPEGs are decoded at a reduced scale."""
        reduced = copy(self)
        reduced.reading = self.reading._replace(least=size)
        return reduced

    def with_classes(self, targets: Tensor | None, class_names: Sequence[str]) -> ImageTable:
        """Return a table of the same files with other targets and names of classes."""
        table = ImageTable(self.paths, self.ids, targets, class_names)
        table.packed_rows, table.packed_places = self.packed_rows, self.packed_places
        return table

    def _target(self, index: int) -> Any:
        if self.targets is None:
            return None
        return self.targets[index].float() if self.multi_label else int(self.targets[index])

    def files(self) -> Sequence[Path]:
        """Return the image files."""
        return Paths(self.paths) if self.packed_rows is None else ()

    def packed(self) -> Packed | None:
        """Return the rows that hold the images of a packed data set."""
        return packed_at(self)

    def labels(self, index: int) -> tuple[str, ...]:
        """Return the names of the classes of a sample."""
        if self.multi_label and self.targets is not None:
            return tuple(self.class_names[label] for label in self.targets[index].nonzero().flatten().tolist())
        return super().labels(index)

    def _has_one_label(self) -> bool:
        return not self.multi_label


class Subset(Table):
    """Some samples of another table.

    Args:
        table: The other table.
        indices: The indices of the samples, in this order.
    """

    def __init__(self, table: Table, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.table, self.indices = table, _whole(indices)
        self.ids = Picked(table.ids, self.indices)
        self.class_names, self.multi_label, self.kind = table.class_names, table.multi_label, table.kind
        self.draws_random, self.category_ids, self.reading = table.draws_random, table.category_ids, table.reading
        if table.strata is not None:
            strata = _whole(table.strata)[self.indices]
            self.strata = array("q", strata.tobytes()) if isinstance(table.strata, array) else strata.tolist()
        self.groups = None if table.groups is None else [table.groups[index] for index in self.indices.tolist()]

    def at_least(self, size: tuple[int, int] | None) -> Subset:
        """Return the same samples, decoded as the other table does."""
        reduced = copy(self)
        reduced.table = self.table.at_least(size)
        return reduced

    def cached(self, cache: PixelCache) -> Subset:
        """Return the same samples, from the cache as the other table takes them."""
        kept = copy(self)
        kept.cache, kept.table = cache, self.table.cached(cache)
        return kept

    def load(self, index: int) -> Sample:
        """Read one sample of the other table."""
        return self.table.load(self._place(index))

    def _place(self, index: int) -> int:
        return int(self.indices[index])

    def files(self) -> Sequence[Path]:
        """Return the files of these samples."""
        files = self.table.files()
        if isinstance(files, Paths):
            return Paths(Picked(files.names, self.indices))
        return tuple(files[index] for index in self.indices.tolist()) if files else ()

    def packed(self) -> Packed | None:
        """Return the rows of these samples."""
        packed = self.table.packed()
        return None if packed is None else packed._replace(places=packed.places[self.indices])

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Read the files of these samples at once, as the other table does."""
        self.table.read_ahead(self.indices[np.array(indices, np.int64)].tolist())

    def labels(self, index: int) -> tuple[str, ...]:
        """Return the names of the classes of a sample."""
        return self.table.labels(self._place(index))

    def amounts(self, index: int) -> dict[str, int]:
        """Return those of the other table."""
        return self.table.amounts(self._place(index))

    def objects(self, index: int) -> Objects | None:
        """Return those of the other table."""
        return self.table.objects(self._place(index))

    def most_objects(self) -> int:
        """Return that of the other table."""
        return self.table.most_objects()

    def target_digest(self, index: int) -> str:
        """Return that of the other table."""
        return self.table.target_digest(self._place(index))

    def target_files(self, index: int) -> tuple[Path, ...]:
        """Return those of the other table."""
        return self.table.target_files(self._place(index))


def packed_at(table: Table) -> Packed | None:
    """The rows of a table that has files of its own, if these were packed."""
    return None if table.packed_rows is None else Packed(table.packed_rows, table.packed_places)


def _whole(numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers as an array of 64 bits each."""
    return np.asarray(numbers, np.int64)
