"""Labelled images that a trained model is measured on: its classes in its order, whatever the folder holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from autotimm.data.formats.csv import read_csv
from autotimm.data.formats.folder import read_folder
from autotimm.data.formats.walk import some
from autotimm.data.table import ImageTable
from autotimm.errors import DataError
from autotimm.types import DataSpec

__all__ = ["read_labelled"]

_FOLDERS = {"val": ("val", "valid", "validation"), "test": ("test",)}


def read_labelled(path: str | Path, spec: DataSpec, split: str, notices: list[str]) -> ImageTable:
    """Read a folder or a table of labelled images for a model that knows its classes.

    Args:
        path: A folder with a sub-folder for the split, a folder of class folders, or a CSV file.
        spec: What the model remembers of its data.
        split: ``"val"`` or ``"test"``.
        notices: Receives one line for each thing that was left out or looks strange.

    Raises:
        DataError: If there are no such images, or they have classes that the model does not know.
    """
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        columns = list(spec.class_names) if spec.multi_label else None
        table = read_csv({"train": path}, notices, label_column=columns)["train"]
    else:
        inside = [path / name for name in _FOLDERS[split] if (path / name).is_dir()]
        if not inside and (path / "train").is_dir():
            raise DataError(f"There is no {split} data in {path}: it has train/ but no {split}/. Give such a folder.")
        table = read_folder(inside[0] if inside else path, notices)["train"]
    return ImageTable(table.paths, table.ids, _renumbered(table, spec, path), spec.class_names)


def _renumbered(table: ImageTable, spec: DataSpec, path: Path) -> Tensor:
    if unknown := [name for name in table.class_names if name not in spec.class_names]:
        raise DataError(
            f"{path} has classes that the model does not know: {some(unknown)}. It knows "
            f"{some(list(spec.class_names))}. Rename or remove these."
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
