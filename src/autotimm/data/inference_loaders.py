"""Data for a trained model: images to predict, labelled images to evaluate it on, and the data of its run again.

Loaders transform images as the model's record of its data says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule

from autotimm.data.data_facts import content
from autotimm.data.formats.image_paths import read_paths
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
from autotimm.data.relabelled import read_labelled, read_relabelled
from autotimm.data.table import ImageTable, Subset, Table
from autotimm.data.transforms.image_transforms import ImageTransform, SampleTransform, eval_transform, pixels_needed
from autotimm.data.transforms.spatial_transforms import SpatialTransform
from autotimm.data.transforms.tile_transforms import WholeImage
from autotimm.data.unreadable_images import leave_out_unreadable
from autotimm.errors import DataError, ModelError
from autotimm.records.imports import Kind, RecordedNames, import_named
from autotimm.records.sample_index import seen_in_training
from autotimm.records.trust import of_record
from autotimm.repro.sampler import KeyedBatchSampler
from autotimm.serialization import construct, is_object, lost_objects
from autotimm.types import DataSpec, Sample

__all__ = [
    "as_evaluated", "evaluated_sample", "evaluation_loader", "evaluation_transform", "labelled_loader",
    "labelled_table", "least_size", "predict_loader", "recorded_data", "uploaded_sample",
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

    Paths are read by :func:`~autotimm.data.relabelled.read_labelled` and, with boxes and masks, by
    :func:`~autotimm.data.relabelled.read_relabelled`.

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
