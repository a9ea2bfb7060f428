"""Measure a trained task on labelled images, and keep what a test found with its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.data.inference_loaders import labelled_loader
from autotimm.data.module import DataModule
from autotimm.errors import RunError
from autotimm.evidence import Evidence, collecting, write_evidence
from autotimm.records.run_folder import DIGESTS, PER_CLASS, RunFolder
from autotimm.runs.predict import known_data
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.train.progress import say

__all__ = ["Measured", "keep_test", "measure_files", "measure_module"]


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
    made: Mapping[str, Any] | None,
) -> Measured:  # fmt: skip
    """Measure on a folder or a table.

    Args:
        task: The task.
        trainer: Who runs it.
        verb: ``validate`` or ``test``, which is also the part of the folder that is taken.
        place: The folder, or a CSV file.
        trained: The digest of each training sample by id: a notice says how many of them are measured on.
        made: The options that the run was made with, for files that can be read in several ways.

    Raises:
        DataError: If the images cannot be read, or have classes that the task does not know.
    """
    say(*_thresholds_said(task))
    notices: list[str] = []
    split = verb.replace("validate", "val")
    loader = labelled_loader(place, known_data(task), split, notices=notices, trained=trained, made=made)
    say(*notices, f"data: {len(loader.dataset)} images of {place}")
    measure = trainer.validate if verb == "validate" else trainer.test
    return _measured(task, measure(task, dataloaders=loader))


def measure_module(task: Task, trainer: AutoTrainer, verb: str, data: DataModule, *, evidence: bool) -> Measured:
    """Measure on the validation or test images of a data module.

    Args:
        task: The task.
        trainer: Who runs it.
        verb: ``validate`` or ``test``.
        data: The data module.
        evidence: Whether to collect what is predicted.
    """
    say(*_thresholds_said(task))
    measure = trainer.validate if verb == "validate" else trainer.test
    results, found = collecting(task, "test", lambda: measure(task, datamodule=data), wanted=evidence)
    return _measured(task, results, found)


def _measured(task: Task, results: list[Mapping[str, float]], evidence: Evidence | None = None) -> Measured:
    metrics = {name: float(value) for each in results for name, value in each.items()}
    return Measured(metrics, task.class_table, evidence)


def keep_test(folder: RunFolder, measured: Measured) -> None:
    """Keep the results of a test with the run; one that cannot be written to must not lose the metrics."""
    kept: dict[str, Any] = {"test": measured.metrics, PER_CLASS: measured.per_class}
    try:
        if measured.evidence is not None:
            digest = write_evidence(folder.path, measured.evidence)
            kept[DIGESTS] = folder.results().get(DIGESTS, {}) | {"test": digest}
        folder.add_results(**kept)
    except (OSError, RunError) as error:  # a read-only run, or a full disk
        why = error.strerror if isinstance(error, OSError) else error
        say(f"the metrics are not kept with the run, which cannot be written to ({why})")


def _thresholds_said(task: Task) -> list[str]:
    """From which score on metrics count labels, and predictions have them; nothing for the likeliest class alone."""
    if task.threshold is None:
        return []
    objects = task.spec is not None and task.spec.kind != "classes"
    metrics = "objects of all scores" if objects else f"labels from a score of {task.threshold:g} on"
    fitted = () if task.calibration is None else task.calibration.thresholds
    where = "a score fitted for each class" if fitted else f"{task.threshold:g}"
    return [f"metrics count {metrics}; predictions begin at {where}"]
