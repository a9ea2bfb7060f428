"""Data for a trained model: images to predict, and labelled images with the model's classes in the model's order.

Loaders transform images as the model's record of its data says.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from autotimm.constants import IGNORE_INDEX
from autotimm.data.annotations.masks import IGNORED, MaskTable
from autotimm.data.data_facts import content
from autotimm.data.formats.class_csv import IMAGE_NAMES, LABEL_NAMES, read_csv
from autotimm.data.formats.class_folders import split_folder
from autotimm.data.formats.csv_table import CsvTable, open_table
from autotimm.data.formats.data_format import Report
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.formats.listing import Listing, text
from autotimm.data.formats.metadata_jsonl import METADATA_FILE
from autotimm.data.formats.recognize import read_classes, read_spatial
from autotimm.data.formats.table_images import TableImages
from autotimm.data.image_reading import reading_as, reading_of
from autotimm.data.loader import (
    KeyedDataset,
    KeyedLoader,
    collate_samples,
    default_workers,
    transformed_loader,
    workers_for_whole_images,
)
from autotimm.data.module import DataModule
from autotimm.data.table import ImageTable, Packed, Subset, Table
from autotimm.data.transforms.image_transforms import ImageTransform, SampleTransform, eval_transform, pixels_needed
from autotimm.data.transforms.spatial_transforms import SpatialTransform
from autotimm.data.transforms.tile_transforms import WholeImage
from autotimm.data.unreadable_images import leave_out_unreadable
from autotimm.errors import DataError, ModelError, join_names
from autotimm.records.imports import Kind, RecordedNames, import_named
from autotimm.records.sample_index import seen_in_training
from autotimm.records.trust import of_record
from autotimm.repro.sampler import KeyedBatchSampler
from autotimm.serialization import construct, is_object, lost_objects
from autotimm.types import DataSpec, Sample

__all__ = [
    "Relabelled", "as_evaluated", "evaluated_sample", "evaluation_loader", "evaluation_transform", "labelled_loader",
    "labelled_table", "least_size", "predict_loader", "read_labelled", "read_relabelled", "recorded_data",
    "uploaded_sample",
]  # fmt: skip

DATA_MODULE = Kind(
    "data module", "a subclass of pytorch_lightning.LightningDataModule", LightningDataModule, ("autotimm",)
)
TRANSFORM = Kind(
    "`eval_transforms`",
    "a function of an image",
    base=None,
    libraries=("autotimm.data.transforms", "torchvision.transforms"),
    function=lambda function: True,  # it is called with an image
)
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
    if spec.multi_label and separator is None:
        label_columns: str | list[str] = list(spec.class_names)
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
    by_lower = {column.lower(): column for column in reversed(table.columns)}
    if column := next((by_lower[name] for name in usual if name in by_lower), None):
        return column
    raise DataError(
        f"{table.path} has no column {recorded or usual[0]!r} of {what}, but {join_names(table.columns, 20)}. "
        "Rename that column."
    )


def _image_folder(path: Path, names: Sequence[str], split: str, recorded: Mapping[str, Any]) -> Path:
    """The folder that the paths in a table are relative to: that of the table, or as in the training's tables."""
    data_dir, train_csv = recorded.get("path") or recorded.get("data_dir"), recorded.get("train_csv")
    if data_dir and Path(data_dir).suffix.lower() in _SUFFIXES:
        data_dir, train_csv = None, data_dir
    image_dir = recorded.get("image_dir") or (train_csv and (data_dir or Path(train_csv).parent))
    roots = [path.parent, *([Path(image_dir).expanduser()] if image_dir else [])]
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


def _holds(folder: Path, name: str) -> bool:
    file = os.path.abspath(folder / name)
    return os.path.lexists(file) and Path(file).is_relative_to(os.path.abspath(folder))


def _renumbered(table: ImageTable, spec: DataSpec, path: Path) -> Tensor:
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


_MASK = re.compile(r"[-_ ]masks?$", re.IGNORECASE)


def predict_loader(
    paths: str | Path | Iterable[str | Path], spec: DataSpec, *, notices: list[str], num_workers: int | None = None
) -> KeyedLoader:
    """Load images for prediction, transformed as in evaluation.

    Args:
        paths: An image, a folder (searched to any depth), or several of either.
        spec: The model's record of its data.
        notices: Receives a line about each thing that was left out.
        num_workers: Processes that load; ``None`` is one per CPU, and none for a handful of images.

    Raises:
        DataError: If there is nothing to predict, or no image can be read.
    """
    with reading_as(reading_of(spec)):
        table = read_paths(paths if isinstance(paths, (str, Path)) else list(paths), notices)
    return evaluation_loader(_without_masks(table, notices) if spec.kind == "pixels" else table, spec, num_workers)


def _without_masks(table: Table, notices: list[str]) -> Table:
    """Leave out masks that lie beside their images, as in the folder that a segmenter was trained on."""
    stems = [file.with_suffix("") for file in table.files()]
    all_stems = {*stems}
    image_stems = [stem.with_name(_MASK.sub("", stem.name) or stem.name) for stem in stems]
    pairs = enumerate(zip(stems, image_stems, strict=True))
    masks = {index for index, (stem, image) in pairs if image != stem and image in all_stems}
    if not masks:
        return table
    notices.append(f"{len(masks)} masks beside their images are left out.")
    return Subset(table, [index for index in range(len(table)) if index not in masks])


def labelled_loader(
    path: str | Path, spec: DataSpec, split: str, *, notices: list[str], trained: Mapping[str, str] | None = None,
    made: Mapping[str, Any] | None = None,
) -> KeyedLoader:  # fmt: skip
    """Load labelled images to evaluate a model on.

    Paths are read by :func:`~autotimm.data.inference_loaders.read_labelled` and, with boxes and masks, by
    :func:`~autotimm.data.inference_loaders.read_relabelled`.

    Args:
        path: The images and their labels.
        spec: The model's record of its data.
        split: ``"val"`` or ``"test"``.
        notices: Receives a line about each thing that was left out, and one if the model was trained on some of the
            images.
        trained: Digests of the samples that it was trained on, by id.
        made: The recorded options of its run, or its class paths and arguments: how its tables were read.

    Raises:
        DataError: If there are none, or they have classes that the model does not know.
    """
    table = labelled_table(path, spec, split, notices, made)
    if trained:
        notices += seen_in_training(trained, content([table]), "images")
    return evaluation_loader(table, spec)


def labelled_table(
    path: str | Path, spec: DataSpec, split: str, notices: list[str], made: Mapping[str, Any] | None = None
) -> Table:
    """The table of :func:`labelled_loader`, without images that cannot be read; see there for the arguments."""
    with reading_as(reading_of(spec)):
        if spec.kind == "classes":
            recorded = made.get("data", {}).get("init_args") if made and "data" in made else made
            table: Table = read_labelled(path, spec, split, notices, recorded)
        else:
            table = read_relabelled(path, spec, split, notices)
        return leave_out_unreadable({split: table}, notices)[0][split]


def recorded_data(recorded: Mapping[str, Any]) -> DataModule:
    """The data module of a run, built again from its ``config.yaml``.

    Args:
        recorded: ``class_path`` and ``init_args`` of the data module.

    Raises:
        DataError: If it was given objects, which no file can hold.
        ModelError: If its class cannot be imported, or is not trusted.
    """
    name, arguments = recorded["class_path"], recorded.get("init_args") or {}
    if lost := lost_objects(arguments):
        raise DataError(
            f"The {' and '.join(f'`{argument}`' for argument in lost)} of the run's data, an object, must be given "
            "again: no file holds it. Build the data module as before, and give it as `data`."
        )
    with RecordedNames(of_record()):
        module: DataModule = construct(import_named(name, DATA_MODULE), arguments)
    return module


def evaluation_loader(table: Table, spec: DataSpec, num_workers: int | None = None) -> KeyedLoader:
    """Load the samples of a table in batches of evaluation, transformed as in evaluation.

    Args:
        table: The samples.
        spec: The model's record of its data.
        num_workers: Processes that load; ``None`` is one per CPU, and none for a handful of images.
    """
    transform = evaluation_transform(spec)
    if num_workers is None:
        num_workers = default_workers() if len(table) > 4 * spec.eval_batch_size else 0
        num_workers = num_workers if spec.tiling is None else workers_for_whole_images(table, num_workers)
    # Evaluation transforms draw no random numbers by default, so that the seed does not matter.
    at_once = spec.eval_batch_size if spec.tiling is None else 1  # a whole image gives batches of tiles
    batches = KeyedBatchSampler(len(table), at_once, seed=0, shuffle=False)
    return transformed_loader(
        as_evaluated(table, spec), batches, transform, stream="eval", collate=collate_samples, num_workers=num_workers
    )


def uploaded_sample(path: str | Path, name: str, spec: DataSpec) -> Sample:
    """Decode one image file as :func:`predict_loader` does, without its transforms.

    Args:
        path: The file.
        name: The id of the sample.
        spec: The model's record of its data.

    Raises:
        DataError: If it cannot be read.
    """
    with reading_as(reading_of(spec)):
        return as_evaluated(ImageTable([path], [name]), spec).load(0)


def evaluated_sample(sample: Sample, transform: SampleTransform) -> Sample:
    """Transform a decoded sample as the loaders of evaluation do: on its own random stream, with one thread.

    Args:
        sample: A sample without a target.
        transform: See :func:`evaluation_transform`.
    """
    # Evaluation transforms draw no random numbers by default, so that the seed does not matter.
    evaluated: Sample = KeyedDataset(_Decoded(sample), transform, seed=0, stream="eval")[0]
    return evaluated


class _Decoded(Table):
    """One sample that is decoded already."""

    draws_random = False

    def __init__(self, sample: Sample) -> None:
        self.sample, self.ids = sample, (sample.id,)

    def load(self, index: int) -> Sample:
        return self.sample


def least_size(spec: DataSpec) -> tuple[int, int] | None:
    """Height and width that JPEGs keep in evaluation; ``None`` if they are decoded in full."""
    reduced = spec.decode == "reduced" and spec.eval_transforms is None and reading_of(spec).is_rgb
    return pixels_needed(spec.image_size, spec.crop_pct) if reduced else None


def as_evaluated(table: Table, spec: DataSpec) -> Table:
    """A table whose images are decoded as in evaluation."""
    return table.at_least(least_size(spec))


def evaluation_transform(spec: DataSpec) -> SampleTransform:
    """The transforms that samples went through in evaluation.

    Raises:
        ModelError: If they are the user's own, and cannot be imported.
    """
    name, owner = "eval_transforms", "the model's data"
    if spec.tiling is not None:
        return WholeImage(spec.tiling, name, owner)
    if spec.kind != "classes":
        return SpatialTransform(None, spec.image_size, name, owner, keep_all=True, channels=spec.in_chans)
    return ImageTransform(_image_transforms(spec), name, owner, spec.in_chans)


def _image_transforms(spec: DataSpec) -> Callable[[Any], Any]:
    """The transforms of evaluation; the user's own only if they can be imported."""
    if spec.eval_transforms is None:
        return eval_transform(spec.image_size, spec.crop_pct, spec.interpolation)
    if not is_object(spec.eval_transforms):
        transforms: Callable[[Any], Any] = import_named(spec.eval_transforms, TRANSFORM)
        return transforms
    name = spec.eval_transforms.removeprefix("<object> ")
    raise ModelError(
        f"The model must predict with the transforms that it was evaluated with, your own {name}. They cannot be "
        "loaded: they are an object, which no checkpoint can hold. Give them as a function of a module, or use a "
        "trainer and `data.predict_loader(paths)`."
    )
