"""Measure a trained task on labelled images, and keep what a test found with its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.inference_loaders import labelled_loader
from autotimm.data.module import DataModule
from autotimm.errors import RunError
from autotimm.evidence import Evidence, collecting, write_evidence
from autotimm.records.run_folder import DIGESTS, PER_CLASS, VIEWED, RunFolder
from autotimm.runs.predict import known_data, viewing
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.train.progress import say
from autotimm.types import DataSpec

__all__ = ["Measured", "groups_of_test", "keep_test", "measure_files", "measure_module", "measured_of"]


class Measured(NamedTuple):
    """What a task reaches on labelled images.

    Attributes:
        metrics: Value by name; none where there were no images.
        per_class: Value by name for each class, such as ``{"cat": {"AP": 0.5}}``; NaN where it is unknown.
        evidence: What was predicted, where that was asked for and the task has such evidence.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    evidence: Evidence | None = None


def measure_files(
    task: Task, trainer: AutoTrainer, verb: str, place: str | Path, *, trained: Mapping[str, str],
    made: Mapping[str, Any] | None, tta: str | None = None,
) -> Measured:  # fmt: skip
    """Measure on a folder or a table.

    Args:
        task: The task.
        trainer: Who runs it.
        verb: ``validate`` or ``test``, which is also the part of the folder that is taken.
        place: The folder, or a CSV file.
        trained: The digest of each training sample by id: a notice says how many of them are measured on.
        made: The options that the run was made with, for files that can be read in several ways.
        tta: How each image is looked at more than once; ``None`` for once.

    Raises:
        DataError: If the images cannot be read, or have classes that the task does not know.
        UsageError: If the task cannot look at images more than once.
    """
    views = viewing(task, tta, verb)
    say(*_thresholds_said(task), *_views_said(tta))
    notices: list[str] = []
    split = verb.replace("validate", "val")
    loader = labelled_loader(place, known_data(task), split, notices=notices, trained=trained, made=made)
    say(*notices, f"data: {len(loader.dataset)} images of {place}")
    measure = trainer.validate if verb == "validate" else trainer.test
    with views:
        return measured_of(task, measure(task, dataloaders=loader))


def measure_module(
    task: Task, trainer: AutoTrainer, verb: str, data: DataModule, *, evidence: bool, tta: str | None = None
) -> Measured:
    """Measure on the validation or test images of a data module.

    Args:
        task: The task.
        trainer: Who runs it.
        verb: ``validate`` or ``test``.
        data: The data module.
        evidence: Whether to collect what is predicted, of images that are looked at once.
        tta: How each image is looked at more than once; ``None`` for once.

    Raises:
        UsageError: If the task cannot look at images more than once.
    """
    views = viewing(task, tta, verb, None if tta is None else _spec_of(data))
    say(*_thresholds_said(task), *_views_said(tta))
    measure = trainer.validate if verb == "validate" else trainer.test
    with views:
        results, found = collecting(
            task, "test", lambda: measure(task, datamodule=data), wanted=evidence and tta is None
        )
    return measured_of(task, results, found)


def _spec_of(data: DataModule) -> DataSpec:
    data.setup()  # a module of the caller's own may have images of another size than the task has learned
    return data.spec


def measured_of(task: Task, results: list[Mapping[str, float]], evidence: Evidence | None = None) -> Measured:
    """What a trainer has returned of a task that it has measured."""
    metrics = {name: float(value) for each in results for name, value in each.items()}
    return Measured(metrics, task.class_table, evidence)


def groups_of_test(measured: Measured, tta: str | None = None) -> dict[str, dict[str, Any]]:
    """The groups of ``results.json`` of a test; those of several views are never where those of the plain test are."""
    groups: dict[str, dict[str, Any]] = {"test": measured.metrics, PER_CLASS: measured.per_class}
    return groups if tta is None else {VIEWED: {tta: groups}}


def keep_test(folder: RunFolder, measured: Measured, tta: str | None = None) -> None:
    """Keep the results of a test with the run; one that cannot be written to must not lose the metrics."""
    kept = groups_of_test(measured, tta)
    try:
        if tta is not None:
            kept[VIEWED] = folder.results().get(VIEWED, {}) | kept[VIEWED]
        if measured.evidence is not None:
            digest = write_evidence(folder.path, measured.evidence)
            kept[DIGESTS] = folder.results().get(DIGESTS, {}) | {"test": digest}
        folder.add_results(**kept)
    except (OSError, RunError) as error:  # a read-only run, or a full disk
        why = error.strerror if isinstance(error, OSError) else error
        say(f"the metrics are not kept with the run, which cannot be written to ({why})")


def _views_said(tta: str | None) -> list[str]:
    """That metrics are of several views; nothing where each image is looked at once."""
    return [] if tta is None else [f"metrics are those of several views of each image ({tta}); there are no losses"]


def _thresholds_said(task: Task) -> list[str]:
    """From which score on metrics count labels, and predictions have them; nothing for the likeliest class alone."""
    if task.threshold is None:
        return []
    objects = task.spec is not None and task.spec.kind != "classes"
    metrics = "objects of all scores" if objects else f"labels from a score of {task.threshold:g} on"
    fitted = () if task.calibration is None else task.calibration.thresholds
    where = "a score fitted for each class" if fitted else f"{task.threshold:g}"
    return [f"metrics count {metrics}; predictions begin at {where}"]
