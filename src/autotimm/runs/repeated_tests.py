"""The tests of a run, made again with the best weights of its replay: the plain one, and those of several views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotimm.errors import UsageError
from autotimm.evidence import collecting, write_evidence
from autotimm.records.run_folder import DIGESTS, write_results
from autotimm.runs.file_contents import read_data
from autotimm.runs.labelled_images import groups_of_test, measured_of
from autotimm.runs.predict import viewing
from autotimm.runs.recorded_run import RecordedRun, tested_evidence, tested_views
from autotimm.runs.replayed_run import Replay
from autotimm.runs.restore import Rebuilt, read_config, trainer_settings
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import TaskRecord, read_checkpoint
from autotimm.tasks.views import views_of
from autotimm.train import AutoTrainer
from autotimm.train.trainer import measuring_trainer
from autotimm.types import Calibration

__all__ = ["tested_again"]


def tested_again(run: RecordedRun, rebuilt: Rebuilt, replay: Replay, *, epochs: int) -> Replay:
    """A replay with what the tests of the run measure of its best weights, where they are made again.

    A test takes about as long as the validation of as many images. Tests are made again, the plain one first, as long
    as they have no more images together than the training has seen; each view of an image counts as one.

    Args:
        run: The record.
        rebuilt: The objects that were trained.
        replay: What they have left.
        epochs: How many times the training has seen its images.
    """
    task, best, names = rebuilt.task, replay.folder / "checkpoints" / "best.ckpt", tested_views(run.folder)
    images = len(rebuilt.data.tables.get("test", ()))
    if replay.other_hardware or not (images and best.is_file() and isinstance(task, Task)):
        return replay
    left = len(rebuilt.data.tables["train"]) * epochs
    checkpoint = read_checkpoint(best)
    task.load_state_dict(checkpoint["state_dict"])
    if run.has_test and (left := left - images) >= 0:
        replay = replace(replay, test=_plain_test(run, rebuilt, replay.folder))
    fitted = TaskRecord.of(checkpoint, best).calibration if names else None
    task.calibration = None if fitted is None else Calibration.from_dict(fitted)  # predictions of views have it
    for name in names:
        if (left := left - images * len(views_of(name, rebuilt.data.spec.image_size))) >= 0:
            replay = replace(replay, views={**replay.views, name: _test_of_views(name, run, rebuilt, replay.folder)})
    return replay


def _plain_test(run: RecordedRun, rebuilt: Rebuilt, folder: Path) -> dict[str, Any]:
    results, evidence = collecting(
        rebuilt.task.eval(), "test", lambda: _trainer(run).test(rebuilt.task, datamodule=rebuilt.data),
        wanted="test" in (tested_evidence(run.folder) or {}),
    )  # fmt: skip
    groups = groups_of_test(measured_of(rebuilt.task, results))
    if evidence is not None:
        groups[DIGESTS] = {"test": write_evidence(folder, evidence)}
    return _as_recorded(groups, folder)


def _test_of_views(name: str, run: RecordedRun, rebuilt: Rebuilt, folder: Path) -> Mapping[str, Any]:
    """What a test of several views measures; nothing for views that the task refuses, which no run has tested."""
    task = rebuilt.task.eval()
    try:
        views = viewing(task, name, "test", rebuilt.data.spec)
    except UsageError:
        return {}
    with views:
        results = _trainer(run).test(task, datamodule=rebuilt.data)
    return _as_recorded(groups_of_test(measured_of(task, results)), folder)


def _trainer(run: RecordedRun) -> AutoTrainer:
    return measuring_trainer(trainer_settings(read_config(run.folder)))


def _as_recorded(groups: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Groups of metrics as a run has written them: sorted, and with null where nothing was measured."""
    path = folder / "tested.json"
    write_results(path, groups)
    recorded: dict[str, Any] = read_data(path)
    return recorded
