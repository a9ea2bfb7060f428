"""Tables: how the rest of the library sees a data set. Ids, class names, and one sample at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autotimm.data.image_io import read_image
from autotimm.types import Sample

__all__ = ["ImageTable", "Subset", "Table", "rarest_labels"]


class Table(ABC):
    """A list of samples with ids and classes, loaded one by one.

    To read a data format of your own, subclass this and return it from :meth:`DataModule.read`.

    Attributes:
        ids: One id per sample: unique, ``/``-separated, the same on every machine. Splits and augmentation are keyed
            by it, so that a sample keeps its side and its random numbers when others are added.
        class_names: Names of the classes in the order of the class indices.
        multi_label: Whether a sample may have several classes.
        kind: The kind of the targets, see :class:`autotimm.types.DataSpec`.
        strata: The class index of each sample, for stratified splits and balanced draws; ``None`` if there is none.
        draws_random: Whether :meth:`load` may draw from a global generator (``random``, NumPy, torch). ``False`` saves
            time.
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    multi_label: bool = False
    kind: str = "classes"
    strata: Sequence[int] | None = None
    draws_random: bool = True

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Read one sample; its image is decoded, and neither resized nor augmented.

        Raises:
            DataError: If it cannot be read.
        """

    def files(self) -> tuple[Path, ...]:
        """Return one image file per sample, to be checked before training; nothing if samples are not files."""
        return ()

    def labels(self, index: int) -> tuple[str, ...]:
        """Return the names of the classes of a sample, without loading it."""
        return () if self.strata is None else (self.class_names[self.strata[index]],)

    def amounts(self, index: int) -> dict[str, int]:
        """Return how much of each of its classes a sample has, for balanced weights: pixels, or else 1."""
        return dict.fromkeys(self.labels(index), 1)

    def target_digest(self, index: int) -> str:
        """Return the SHA-256 of a target in a file of its own; nothing where :meth:`labels` is all of the target."""
        return ""

    def counts(self) -> tuple[int, ...]:
        """Return how many samples each class has, in class order."""
        totals = dict.fromkeys(self.class_names, 0)
        for index in range(len(self)):
            for name in self.labels(index):
                totals[name] += 1
        return tuple(totals.values())

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
        self.paths = tuple(str(path) for path in paths)
        self.ids, self.class_names, self.targets = tuple(ids), tuple(class_names), targets
        self.multi_label = targets is not None and targets.ndim == 2
        self.strata = None if targets is None else rarest_labels(targets) if self.multi_label else targets.tolist()

    def load(self, index: int) -> Sample:
        """Decode one file. The target is an ``int``, or a float vector (C,) for multi-label, or ``None``."""
        return Sample(read_image(self.paths[index]), self._target(index), self.ids[index])

    def _target(self, index: int) -> Any:
        if self.targets is None:
            return None
        return self.targets[index].float() if self.multi_label else int(self.targets[index])

    def files(self) -> tuple[Path, ...]:
        """Return the image files."""
        return tuple(Path(path) for path in self.paths)

    def labels(self, index: int) -> tuple[str, ...]:
        """Return the names of the classes of a sample."""
        if self.multi_label and self.targets is not None:
            return tuple(self.class_names[label] for label in self.targets[index].nonzero().flatten().tolist())
        return super().labels(index)


class Subset(Table):
    """Some samples of another table.

    Args:
        table: The other table.
        indices: The indices of the samples, in this order.
    """

    def __init__(self, table: Table, indices: Sequence[int]) -> None:
        self.table, self.indices = table, tuple(indices)
        self.ids = tuple(table.ids[index] for index in self.indices)
        self.class_names, self.multi_label, self.kind = table.class_names, table.multi_label, table.kind
        self.draws_random = table.draws_random
        self.strata = None if table.strata is None else [table.strata[index] for index in self.indices]

    def load(self, index: int) -> Sample:
        """Read one sample of the other table."""
        return self.table.load(self.indices[index])

    def files(self) -> tuple[Path, ...]:
        """Return the files of these samples."""
        files = self.table.files()
        return tuple(files[index] for index in self.indices) if files else ()

    def labels(self, index: int) -> tuple[str, ...]:
        """Return the names of the classes of a sample."""
        return self.table.labels(self.indices[index])

    def amounts(self, index: int) -> dict[str, int]:
        """Return those of the other table."""
        return self.table.amounts(self.indices[index])

    def target_digest(self, index: int) -> str:
        """Return that of the other table."""
        return self.table.target_digest(self.indices[index])
