"""Labelled data that a trained model is evaluated on, with the model's classes in the model's order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autotimm.constants import IGNORE_INDEX
from autotimm.data.formats.class_csv import IMAGE_NAMES, LABEL_NAMES, open_table, read_csv
from autotimm.data.formats.class_folders import read_folder
from autotimm.data.formats.recognize import read_spatial
from autotimm.data.table import ImageTable, Table
from autotimm.errors import DataError, join_names
from autotimm.types import DataSpec, Sample

__all__ = ["Relabelled", "read_labelled", "read_relabelled"]


_SUFFIXES = (".csv", ".tsv")
_FOLDERS = {"val": ("val", "valid", "validation"), "test": ("test",)}


def read_labelled(
    path: str | Path, spec: DataSpec, split: str, notices: list[str], made: Mapping[str, Any] | None = None
) -> ImageTable:
    """Read a folder or a table of labelled images for a model that knows its classes.

    Args:
        path: A folder with a sub-folder for the split, a folder of class folders, or a CSV file.
        spec: What the model remembers of its data.
        split: ``"val"`` or ``"test"``.
        notices: Receives one line for each thing that was left out or looks strange.
        made: What the run's data was made with: ``image_column``, ``label_column`` and ``image_dir`` hold for a table
            too, where it has such columns and its images are not beside it.

    Raises:
        DataError: If there are no such images, or they have classes that the model does not know.
    """
    path = Path(path)
    if path.suffix.lower() in _SUFFIXES:
        table = _table(path.expanduser(), spec, split, notices, made or {})
    else:
        inside = [path / name for name in _FOLDERS[split] if (path / name).is_dir()]
        if not inside and (path / "train").is_dir():
            raise DataError(f"There is no {split} data in {path}: it has train/ but no {split}/. Give such a folder.")
        table = read_folder(inside[0] if inside else path, notices)["train"]
    return ImageTable(table.paths, table.ids, _renumbered(table, spec, path), spec.class_names)


def _table(path: Path, spec: DataSpec, split: str, notices: list[str], made: Mapping[str, Any]) -> ImageTable:
    """Read a table as that of the training was read; whoever measures has no option to say how."""
    sheet = open_table(path)
    images = _column(path, sheet.columns, made.get("image_column"), IMAGE_NAMES, "image paths")
    if spec.multi_label:
        labels: str | list[str] = list(spec.class_names)
        if lacking := [name for name in labels if name not in sheet.columns]:
            raise DataError(
                f"{path} has no column for {join_names(lacking)}, classes of the model. Add zeros and ones for each."
            )
    else:
        recorded = made.get("label_column")
        recorded = recorded[0] if isinstance(recorded, (list, tuple)) else recorded
        labels = _column(path, sheet.columns, recorded, LABEL_NAMES, "classes")
    folder = _folder(path, [row.cells[images].strip() for row in sheet.rows], split, made)
    return read_csv({"train": path}, notices, image_dir=folder, image_column=images, label_column=labels)["train"]


def _column(path: Path, columns: Sequence[str], recorded: str | None, usual: Sequence[str], what: str) -> str:
    """The column that the run had, or one with a usual name."""
    by_lower = {column.lower(): column for column in reversed(columns)}
    found = recorded if recorded in columns else next((by_lower[name] for name in usual if name in by_lower), None)
    if found is None:
        name = recorded or usual[0]
        raise DataError(
            f"{path} has no column {name!r} of {what}, but {join_names(list(columns), 20)}. Rename that column."
        )
    return found


def _folder(path: Path, names: Sequence[str], split: str, made: Mapping[str, Any]) -> Path:
    """Where the paths of a table start: beside it, or where those of the training's tables do."""
    given, table = made.get("path") or made.get("data_dir"), made.get("train_csv")
    if given and Path(given).suffix.lower() in _SUFFIXES:
        given, table = None, given
    recorded = made.get("image_dir") or (table and (given or Path(table).parent))
    roots = [path.parent, *([Path(recorded).expanduser()] if recorded else [])]
    for root in roots:
        for folder in (root, *(root / name for name in _FOLDERS[split])):
            if any(_holds(folder, name) for name in names):
                return folder
    looked = " nor in ".join(str(root) for root in roots)
    cure = "Put the table where its paths start."
    raise DataError(f"{path}: none of its {len(names)} files is in {looked}, for example {names[0]}. {cure}")


def _holds(folder: Path, name: str) -> bool:
    file = os.path.abspath(folder / name)
    return os.path.lexists(file) and Path(file).is_relative_to(os.path.abspath(folder))


def _renumbered(table: ImageTable, spec: DataSpec, path: Path) -> Tensor:
    if unknown := [name for name in table.class_names if name not in spec.class_names]:
        raise DataError(
            f"{path} has classes that the model does not know: {join_names(unknown)}. It knows "
            f"{join_names(list(spec.class_names))}. Rename or remove these."
        )
    if table.multi_label != spec.multi_label:
        one, several = (
            "one class per image. Give class folders",
            "a column of zeros and ones per class. Give a CSV file",
        )
        raise DataError(
            f"{path} has labels of another kind than the model, which needs {several if spec.multi_label else one}."
        )
    assert table.targets is not None
    numbers = torch.tensor([spec.class_names.index(name) for name in table.class_names])
    if not table.multi_label:
        return numbers[table.targets]
    targets = torch.zeros(len(table), len(spec.class_names), dtype=table.targets.dtype)
    targets[:, numbers] = table.targets
    return targets


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
        numbers = torch.full((256,), IGNORE_INDEX, dtype=torch.uint8)
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
        raise DataError(f"There is no {split} data in {path}: it has {join_names(sorted(tables))}. Give such a folder.")
    table = tables.get(split) or next(iter(tables.values()))
    if unknown := [name for name in table.class_names if name not in spec.class_names]:
        raise DataError(
            f"{path} has classes that the model does not know: {join_names(unknown)}. It knows "
            f"{join_names(list(spec.class_names))}. Rename or remove these."
        )
    return Relabelled(table, spec.class_names)
