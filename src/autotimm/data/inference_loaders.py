"""Loaders for a trained model, which transform images as the model's record of its data says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from autotimm.data.content_digest import content
from autotimm.data.formats.evaluation_tables import read_labelled, read_relabelled
from autotimm.data.formats.image_paths import read_paths
from autotimm.data.loader import KeyedLoader, collate_samples, default_workers, transformed_loader
from autotimm.data.module import DataModule
from autotimm.data.table import Subset, Table
from autotimm.data.table_checks import readable
from autotimm.data.transforms.image_transforms import ImageTransform, SampleTransform, eval_transform
from autotimm.data.transforms.spatial_transforms import SpatialTransform
from autotimm.errors import DataError, ModelError
from autotimm.records.sample_index import seen_in_training
from autotimm.repro.sampler import KeyedBatchSampler
from autotimm.serialization import construct, import_object, is_object, lost_objects
from autotimm.types import DataSpec

__all__ = ["labelled_loader", "predict_loader", "recorded_data"]

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
    table = read_paths(paths if isinstance(paths, (str, Path)) else list(paths), notices)
    return _loader(_without_masks(table, notices) if spec.kind == "pixels" else table, spec, num_workers)


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

    Paths are read by :func:`~autotimm.data.formats.evaluation_tables.read_labelled` and, with boxes and masks, by
    :func:`~autotimm.data.formats.evaluation_tables.read_relabelled`.

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
    if spec.kind == "classes":
        recorded = made.get("data", {}).get("init_args") if made and "data" in made else made
        table: Table = read_labelled(path, spec, split, notices, recorded)
    else:
        table = read_relabelled(path, spec, split, notices)
    tables, _ = readable({split: table}, notices)
    if trained:
        notices += seen_in_training(trained, content([tables[split]]), "images")
    return _loader(tables[split], spec, None)


def recorded_data(recorded: Mapping[str, Any]) -> DataModule:
    """The data module of a run, built again from its ``config.yaml``.

    Args:
        recorded: ``class_path`` and ``init_args`` of the data module.

    Raises:
        DataError: If its class cannot be imported, or it was given objects, which no file can hold.
    """
    name, arguments = recorded["class_path"], recorded.get("init_args") or {}
    if lost := lost_objects(arguments):
        raise DataError(
            f"The {' and '.join(f'`{argument}`' for argument in lost)} of the run's data, an object, must be given "
            "again: no file holds it. Build the data module as before, and give it as `data`."
        )
    try:
        module: DataModule = construct(import_object(name), arguments)
    except ImportError as error:
        raise DataError(
            f"The run's data module {name} must be importable. It is not ({error}). Install or import its module, or "
            "give another one as `data`."
        ) from None
    return module


def _loader(table: Table, spec: DataSpec, num_workers: int | None) -> KeyedLoader:
    transform = _transform(spec)
    if num_workers is None:
        num_workers = default_workers() if len(table) > 4 * spec.eval_batch_size else 0
    # Evaluation transforms draw no random numbers by default, so that the seed does not matter.
    batches = KeyedBatchSampler(len(table), spec.eval_batch_size, seed=0, shuffle=False)
    return transformed_loader(
        table, batches, transform, stream="eval", collate=collate_samples, num_workers=num_workers
    )


def _transform(spec: DataSpec) -> SampleTransform:
    """The transforms that samples went through in evaluation."""
    name, owner = "eval_transforms", "the model's data"
    if spec.kind != "classes":
        return SpatialTransform(None, spec.image_size, name, owner)
    return ImageTransform(_image_transforms(spec), name, owner)


def _image_transforms(spec: DataSpec) -> Callable[[Any], Any]:
    """The transforms of evaluation; the user's own only if they can be imported."""
    if spec.eval_transforms is None:
        return eval_transform(spec.image_size, spec.crop_pct, spec.interpolation)
    reason = "they are an object, which no checkpoint can hold"
    if not is_object(spec.eval_transforms):
        try:
            transforms: Callable[[Any], Any] = import_object(spec.eval_transforms)
            return transforms
        except ImportError as error:
            reason = str(error)
    name = spec.eval_transforms.removeprefix("<object> ")
    raise ModelError(
        f"The model must predict with the transforms that it was evaluated with, your own {name}. They cannot be "
        f"loaded: {reason}. Give them as a function of a module, or use a trainer and `data.predict_loader(paths)`."
    )
