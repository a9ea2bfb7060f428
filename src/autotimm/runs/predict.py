"""Prediction on a file, a folder or a list of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from autotimm.data.formats.image_paths import read_paths
from autotimm.data.image_reading import reading_as, reading_of
from autotimm.data.inference_loaders import predict_loader
from autotimm.errors import ModelError, UsageError, sentence
from autotimm.tasks import ImageClassifier, SemanticSegmentor, Task
from autotimm.tasks.checkpoint import TaskRecord, read_checkpoint
from autotimm.tasks.detection import ObjectTask
from autotimm.tasks.views import check_sizes, looking, views_of
from autotimm.train import AutoTrainer
from autotimm.train.progress import say
from autotimm.types import DataSpec, ObjectPrediction, PixelPrediction, Prediction

__all__ = ["data_of_checkpoint", "image_files", "known_data", "predict", "viewing"]

_VIEWABLE = (ImageClassifier, ObjectTask, SemanticSegmentor)


def predict(
    task: Task,
    paths: str | Path | Iterable[str | Path],
    *,
    trainer: AutoTrainer | None = None,
    num_workers: int | None = None,
    fast: bool = False,
    threshold: float | None = None,
    raw: bool = False,
    tta: str | None = None,
) -> list[Prediction | ObjectPrediction | PixelPrediction]:
    """Predict images with a trained task.

    Args:
        task: A task that knows its data, as one loaded from a checkpoint does.
        paths: An image file, a folder (with all below it), or any number of them.
        trainer: Who runs it; a default trainer if not given.
        num_workers: Number of data loading processes; it never changes a result.
        fast: Do not pad batches to one fixed shape. The last bits of a result may then depend on the rest of its batch.
        threshold: Score in (0, 1) from which on labels or objects are reported, instead of the task's own.
        raw: Leave out the temperature and the thresholds that were fitted on validation samples.
        tta: Look at each image more than once: ``"flip"`` also mirrored, ``"multiscale"`` also at about 3/4 and 5/4 of
            its size. Probabilities of classes and pixels are averaged, objects are merged.

    Returns:
        One prediction per image, in the order of the paths and, within folders, of their names. Its kind is that of the
        task: classes, objects, or a class for each pixel.

    Raises:
        ModelError: If the task does not know its data.
        DataError: If there is no readable image.
        UsageError: If the threshold is out of range, or the task has none, or the views cannot be
            predicted.
    """
    views = viewing(task, tta)
    notices: list[str] = []
    loader = predict_loader(paths, known_data(task), notices=notices, num_workers=num_workers)
    say(*notices)
    trainer = trainer or AutoTrainer(run_dir=False, enable_checkpointing=False, devices=1)
    with views, task.padding(not fast), task.reporting_from(threshold, raw=raw):
        say(*_calibrated(task))
        batches = trainer.predict(task, loader)
    predictions: list[Any] = [prediction for batch in batches or [] for prediction in batch]
    return predictions


def viewing(
    task: Task, tta: str | None, verb: str = "predict", spec: DataSpec | None = None
) -> AbstractContextManager[None]:
    """The context in which a task looks at each image as often as was asked for.

    Args:
        task: The task.
        tta: One of :data:`autotimm.constants.VIEWS`; ``None`` for once.
        verb: ``predict``, ``validate`` or ``test``.
        spec: What is known of the images; by default what the task knows.

    Raises:
        UsageError: If the task cannot look at images more than once, or has nothing to measure then.
    """
    if tta is None:
        return nullcontext()
    spec, name = spec or known_data(task), type(task).__name__
    views = views_of(tta, spec.image_size, verb)
    if not isinstance(task, _VIEWABLE):
        must = "left out for a task of your own"
        raise UsageError(sentence("tta", verb, must, tta, f"How views of {name} are merged is not known."))
    if spec.tiling is not None:
        cure = "Tiles overlap, and show objects and pixels more than once already."
        raise UsageError(sentence("tta", verb, "left out for images in tiles", tta, cure))
    if verb != "predict":
        _check_measurable(task, tta, verb)
    check_sizes(task.network, views, spec.in_chans, verb)
    return looking(task, views)


def _check_measurable(task: Task, tta: str, verb: str) -> None:
    """Refuse a task whose own step may look at images once, or which has only losses to measure."""
    if type(task).step not in {each.step for each in _VIEWABLE}:
        cure = f"It is not known whether the `step` of {type(task).__name__} looks at an image more than once."
        raise UsageError(sentence("tta", verb, "left out for a task with a `step` of its own", tta, cure))
    stage = verb.replace("validate", "val")
    if not any(stage in config.stages for config in task.metric_configs):
        cure = "Several views of an image have no losses."
        raise UsageError(sentence("tta", verb, f"left out for a task without metrics of {stage}", tta, cure))


def _calibrated(task: Task) -> list[str]:
    """What is said of predictions that are not those of the network alone."""
    fitted = task.calibration
    if fitted is None or fitted.changes_nothing:
        return []
    parts = [f"temperature {fitted.temperature:.3g}"] if fitted.temperature != 1 else []
    parts += [f"a threshold for each class ({fitted.aim})"] if fitted.thresholds else []
    return [f"calibrated on {fitted.samples} validation images: {' and '.join(parts)}"]


def known_data(task: Task) -> DataSpec:
    """The data specification that a task has stored.

    Raises:
        ModelError: If it has none, since it was neither trained on a data module nor loaded.
    """
    if task.spec is None:
        raise ModelError(f"The {type(task).__name__} must know its data to read files. Load it from a checkpoint.")
    return task.spec


def data_of_checkpoint(path: str | Path) -> DataSpec:
    """The data specification of the task in a checkpoint, without building the task.

    Raises:
        ModelError: If it has none, or the file is not a checkpoint of a task.
    """
    spec = TaskRecord.of(read_checkpoint(path), path).spec
    if spec is None:
        raise ModelError(f"The task of {path} must know its data to read files. Train it on a data module.")
    return DataSpec.from_dict(spec)


def image_files(paths: str | Path | Iterable[str | Path], data: DataSpec) -> dict[str, Path]:
    """The file of each image that :func:`predict` finds in the same paths, by its id.

    Args:
        paths: As for :func:`predict`.
        data: What the model knows of its data.

    Raises:
        DataError: If there is no readable image.
    """
    with reading_as(reading_of(data)):
        table = read_paths(paths if isinstance(paths, (str, Path)) else list(paths), [], progress=False)
    return dict(zip(table.ids, table.files(), strict=True))
