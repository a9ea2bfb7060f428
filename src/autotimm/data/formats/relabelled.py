"""Data with boxes or masks that a trained model is measured on: its classes in its order, whatever the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autotimm.data.formats.spatial import read_spatial
from autotimm.data.formats.walk import some
from autotimm.data.spatial import UNKNOWN
from autotimm.data.table import Table
from autotimm.errors import DataError
from autotimm.types import DataSpec, Sample

__all__ = ["Relabelled", "read_relabelled"]


class Relabelled(Table):
    """Another table with the class indices that a model uses.

    Args:
        table: The table.
        class_names: The model's classes, among which are all of the table's.
    """

    def __init__(self, table: Table, class_names: tuple[str, ...]) -> None:
        self.table, self.class_names = table, class_names
        self.ids, self.kind, self.draws_random = table.ids, table.kind, table.draws_random
        self.multi_label = table.multi_label
        self._numbers = torch.tensor([class_names.index(name) for name in table.class_names], dtype=torch.int64)

    def load(self, index: int) -> Sample:
        """Read one sample of the other table."""
        sample = self.table.load(index)
        return sample._replace(target=self._renumbered(sample.target))

    def _renumbered(self, target: Any) -> Any:
        if isinstance(target, dict):
            return {**target, "labels": self._numbers[target["labels"]]}
        numbers = torch.full((256,), UNKNOWN, dtype=torch.uint8)
        numbers[: len(self._numbers)] = self._numbers.to(torch.uint8)
        return type(target)(numbers[target.long()])

    def files(self) -> tuple[Path, ...]:
        """The image files."""
        return self.table.files()

    def labels(self, index: int) -> tuple[str, ...]:
        """Names of the classes of a sample."""
        return self.table.labels(index)

    def amounts(self, index: int) -> dict[str, int]:
        """Those of the other table."""
        return self.table.amounts(index)

    def target_digest(self, index: int) -> str:
        """That of the other table."""
        return self.table.target_digest(index)


def read_relabelled(path: str | Path, spec: DataSpec, split: str, notices: list[str]) -> Table:
    """Read data of a model's kind, of the split that is asked for or of a folder without splits.

    Args:
        path: The folder, or a file that names the rest.
        spec: What the model remembers of its data.
        split: ``"val"`` or ``"test"``.
        notices: Receives one line for each thing that was left out or looks strange.

    Raises:
        DataError: If there are no such images, or they have classes that the model does not know.
    """
    tables = read_spatial(path, "auto", spec.kind, notices)
    if split not in tables and len(tables) > 1:
        raise DataError(f"There is no {split} data in {path}: it has {some(sorted(tables))}. Give such a folder.")
    table = tables.get(split) or next(iter(tables.values()))
    if unknown := [name for name in table.class_names if name not in spec.class_names]:
        raise DataError(
            f"{path} has classes that the model does not know: {some(unknown)}. It knows "
            f"{some(list(spec.class_names))}. Rename or remove these."
        )
    return Relabelled(table, spec.class_names)
