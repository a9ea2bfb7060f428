"""Labelled images for a model that knows its classes: read as its training read them, with its indices of classes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autotimm.constants import IGNORE_INDEX
from autotimm.data.annotations.masks import IGNORED, MaskTable
from autotimm.data.formats.class_csv import IMAGE_NAMES, LABEL_NAMES, read_csv
from autotimm.data.formats.class_folders import split_folder
from autotimm.data.formats.csv_table import CsvTable, open_table
from autotimm.data.formats.data_format import Report
from autotimm.data.formats.listing import Listing, text
from autotimm.data.formats.metadata_jsonl import METADATA_FILE
from autotimm.data.formats.recognize import read_classes, read_spatial
from autotimm.data.formats.table_images import TableImages
from autotimm.data.table import ImageTable, Packed, Table
from autotimm.errors import DataError, join_names
from autotimm.types import DataSpec, Sample

__all__ = ["Relabelled", "read_labelled", "read_relabelled"]

_SUFFIXES = (".csv", ".tsv")
_FOLDERS = {"val": ("val", "valid", "validation"), "test": ("test",)}


def read_labelled(
    path: str | Path, spec: DataSpec, split: str, notices: list[str], recorded: Mapping[str, Any] | None = None
) -> ImageTable:
    """Read a folder or a table of labelled images for a model that knows its classes.

    Args:
        path: A folder with a sub-folder for the split, a folder of class folders, or a CSV file.
        spec: What the model remembers of its data.
        split: ``"val"`` or ``"test"``.
        notices: Receives one line for each thing that was left out or looks strange.
        recorded: The recorded arguments of the run's data module: its ``image_column``, ``label_column`` and
            ``image_dir`` are used for a table that has such columns and whose images are not beside it.

    Raises:
        DataError: If there are no such images, or they have classes that the model does not know.
    """
    path = Path(path)
    if path.suffix.lower() in _SUFFIXES:
        table = _table(path.expanduser(), spec, split, notices, recorded or {})
    else:
        table = _folder(path, split, notices, (recorded or {}).get("class_levels"))
        table = table.with_classes(table.targets, _as_known(table.class_names, spec))
    return table.with_classes(_renumbered(table, spec, path), spec.class_names)


def _folder(path: Path, split: str, notices: list[str], class_levels: int | None) -> ImageTable:
    """Read the part of a folder for a split, or a folder without splits."""
    has_labels = os.path.isfile(path / METADATA_FILE)  # of all splits
    folder = None if has_labels else split_folder(path, split)
    if folder is None and not has_labels and (train := split_folder(path, "train")):
        raise DataError(
            f"There is no {split} data in {path}: it has {text(train.name)}/ but no {split}/. Give such a folder."
        )
    tables = read_classes(Listing(folder or path), notices, class_levels=class_levels)
    if split not in tables and len(tables) > 1:
        raise DataError(f"There is no {split} data in {path}: it has {join_names(sorted(tables))}. Give such a folder.")
    return tables.get(split) or tables["train"]


def _as_known(names: Sequence[str], spec: DataSpec) -> list[str]:
    """Names of classes as the model has them: those of older models may be decomposed (NFD)."""
    known = {unicodedata.normalize("NFC", name): name for name in spec.class_names}
    return [known.get(name, name) for name in names]


def _table(path: Path, spec: DataSpec, split: str, notices: list[str], recorded: Mapping[str, Any]) -> ImageTable:
    """Read a table as that of the training was read: the verbs that evaluate have no option to say how."""
    table = open_table(path)
    image_column = _column(table, recorded.get("image_column"), IMAGE_NAMES, "image paths")
    separator = recorded.get("label_separator")
    label_columns: str | list[str]
    if spec.multi_label and separator is None:
        label_columns = list(spec.class_names)
        if missing := [name for name in label_columns if name not in table.columns]:
            raise DataError(
                f"{path} has no column for {join_names(missing)}, classes of the model. Add zeros and ones for each."
            )
    else:
        label_column = recorded.get("label_column")
        label_column = label_column[0] if isinstance(label_column, (list, tuple)) else label_column
        label_columns = _column(table, label_column, LABEL_NAMES, "classes")
    folder = _image_folder(path, [row.cells[image_column].strip() for row in table.rows], split, recorded)
    tables = read_csv(
        {"train": path},
        notices,
        image_dir=folder,
        image_column=image_column,
        label_column=label_columns,
        label_separator=separator,
        only=split,
    )
    return tables["train"]


def _column(table: CsvTable, recorded: str | None, usual: Sequence[str], what: str) -> str:
    """The column that the run had, or the first with a usual name."""
    if recorded in table.columns:
        return str(recorded)
    if column := table.usual_column(usual):
        return column
    raise DataError(
        f"{table.path} has no column {recorded or usual[0]!r} of {what}, but {join_names(table.columns, 20)}. "
        "Rename that column."
    )


def _image_folder(path: Path, names: Sequence[str], split: str, recorded: Mapping[str, Any]) -> Path:
    """The folder that the paths in a table are relative to: that of the table, or as in the training's tables."""
    recorded_dir = _recorded_image_dir(recorded)
    roots = [path.parent] if recorded_dir is None else [path.parent, recorded_dir]
    for root in roots:
        for folder in (root, *(root / name for name in _FOLDERS[split])):
            if any(_holds(folder, name) for name in names):
                return folder
    for root in filter(os.path.isdir, roots):
        images = TableImages(path.name, root, split, names, Report(strict=False))
        if any(found is not None and os.path.isfile(found) for found in map(images.find, names)):
            return root
    searched = " nor in ".join(str(root) for root in roots)
    cure = "Put the table where its paths start."
    raise DataError(f"{path}: none of its {len(names)} files is in {searched}, for example {names[0]}. {cure}")


def _recorded_image_dir(recorded: Mapping[str, Any]) -> Path | None:
    """The folder of the images in the training's tables; ``None`` for a training without tables."""
    data_dir, train_csv = recorded.get("path") or recorded.get("data_dir"), recorded.get("train_csv")
    if data_dir and Path(data_dir).suffix.lower() in _SUFFIXES:  # a table in place of a folder
        data_dir, train_csv = None, data_dir
    if image_dir := recorded.get("image_dir"):
        return Path(image_dir).expanduser()
    return Path(data_dir or Path(train_csv).parent).expanduser() if train_csv else None


def _holds(folder: Path, name: str) -> bool:
    """Whether a folder has a file of that name, which may not lead out of it."""
    file = os.path.abspath(folder / name)
    return os.path.lexists(file) and Path(file).is_relative_to(os.path.abspath(folder))


def _renumbered(table: ImageTable, spec: DataSpec, path: Path) -> Tensor:
    """The targets with the class indices of the model; refuses classes and kinds of labels that it does not know."""
    _check_classes(table, spec, path)
    if table.multi_label != spec.multi_label:
        needed = (
            "a column of zeros and ones per class. Give a CSV file"
            if spec.multi_label
            else "one class per image. Give class folders"
        )
        raise DataError(f"{path} has labels of another kind than the model, which needs {needed}.")
    assert table.targets is not None
    numbers = torch.tensor([spec.class_names.index(name) for name in table.class_names])
    if not table.multi_label:
        return numbers[table.targets]
    targets = torch.zeros(len(table), len(spec.class_names), dtype=table.targets.dtype)
    targets[:, numbers] = table.targets
    return targets


def _check_classes(table: Table, spec: DataSpec, path: str | Path) -> None:
    if unknown := [name for name in table.class_names if name not in spec.class_names]:
        raise DataError(
            f"{path} has classes that the model does not know: {join_names(unknown)}. It knows "
            f"{join_names(list(spec.class_names))}. Rename or remove these."
        )


def read_relabelled(path: str | Path, spec: DataSpec, split: str, notices: list[str]) -> Table:
    """Read data with boxes, outlines or a class per pixel for a model that knows its classes.

    Args:
        path: The folder, or a file that names the rest.
        spec: What the model remembers of its data.
        split: ``"val"`` or ``"test"``; a folder without splits is read whole.
        notices: Receives one line for each thing that was left out or looks strange.

    Raises:
        DataError: If there are no such images, or they have classes that the model does not know.
    """
    tables = read_spatial(path, "auto", spec.kind, notices)
    if split not in tables and len(tables) > 1:
        raise DataError(f"There is no {split} data in {path}: it has {join_names(sorted(tables))}. Give such a folder.")
    table = tables.get(split) or next(iter(tables.values()))
    _check_classes(table, spec, path)
    if isinstance(table, MaskTable) and not table.code.by_color:
        # A list of names may count from 0 or from 1, which masks that lack the last class do not tell.
        meanings = zip(table.code.keys, table.code.classes, strict=True)
        named = [f"{key} {table.class_names[index]}" for key, index in meanings if index != IGNORED]
        notices.append(f"Pixel values are read as: {join_names(named, 10)}.")
    return Relabelled(table, spec.class_names)


class Relabelled(Table):
    """A table of boxes, masks or label images with the class indices of a model.

    Args:
        table: The table.
        class_names: The model's classes, which include all of the table's.
    """

    def __init__(self, table: Table, class_names: tuple[str, ...]) -> None:
        self.table, self.class_names = table, class_names
        self.ids, self.kind, self.draws_random = table.ids, table.kind, table.draws_random
        self.multi_label, self.reading = table.multi_label, table.reading
        self._numbers = torch.tensor([class_names.index(name) for name in table.class_names], dtype=torch.int64)

    def load(self, index: int) -> Sample:
        """Read a sample of the other table, with renumbered labels."""
        sample = self.table.load(index)
        truth = None if sample.truth is None else self._renumbered(sample.truth)
        return sample._replace(target=self._renumbered(sample.target), truth=truth)

    def _renumbered(self, target: Any) -> Any:
        if isinstance(target, dict):
            return {**target, "labels": self._numbers[target["labels"]]}
        numbers = torch.full((256,), IGNORE_INDEX, dtype=torch.uint8)
        numbers[: len(self._numbers)] = self._numbers.to(torch.uint8)
        return type(target)(numbers[target.long()])

    def files(self) -> Sequence[Path]:
        """The image files."""
        return self.table.files()

    def labels(self, index: int) -> tuple[str, ...]:
        """Names of the classes of a sample."""
        return self.table.labels(index)

    def amounts(self, index: int) -> dict[str, int]:
        """As in the other table."""
        return self.table.amounts(index)

    def packed(self) -> Packed | None:
        """As in the other table."""
        return self.table.packed()

    def read_ahead(self, indices: Sequence[int]) -> None:
        """As in the other table."""
        self.table.read_ahead(indices)

    def target_digest(self, index: int) -> str:
        """As in the other table."""
        return self.table.target_digest(index)

    def target_files(self, index: int) -> tuple[Path, ...]:
        """As in the other table."""
        return self.table.target_files(index)
