"""Runs that were made from objects: build them again from the class paths and arguments that the run has recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotimm.config import argument_of
from autotimm.data.inference_loaders import recorded_data
from autotimm.data.module import DataModule
from autotimm.errors import ModelError
from autotimm.records.run_folder import RunFolder
from autotimm.repro.seed import as_drawn
from autotimm.runs.this_machine import name_of_place
from autotimm.serialization import construct, is_object, takes
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import task_class_named
from autotimm.train import AutoTrainer

__all__ = ["build_classes", "replayed_settings", "require_plain"]


def build_classes(
    config: Mapping[str, Any], decided: Mapping[str, Any], folder: RunFolder, changes: Mapping[str, Any],
    seeds: Mapping[str, Any], set_up: Callable[[DataModule], None], *, place: str | Path | None = None,
    workers: int | None = None,
) -> tuple[Task, DataModule, AutoTrainer]:  # fmt: skip
    """Build the objects of class paths and arguments.

    Args:
        config: Class paths and arguments.
        decided: What a finder has decided.
        folder: Where the trainer writes.
        changes: Other arguments than the recorded ones, by their names or with their part, as ``model.lr``.
        seeds: The root seeds that objects with ``seed=None`` have drawn: of ``data``, ``task`` and ``trainer``.
        set_up: Sets up the data module before the task is built, so that an error of the data comes first.
        place: Where the data is now, if it was moved.
        workers: Number of loading processes in place of the recorded one.

    Raises:
        ModelError: If a class or an object cannot be created again.
        DataError: If the data is missing.
    """
    if "data" not in config:
        raise ModelError(
            "The run was made from loaders of your own, which no file holds. Run your program again with another "
            "`run_dir`, and compare the two with `autotimm diff`."
        )
    of_data = _data_arguments(config["data"], decided, place, workers)
    of_data |= _changed("data", of_data, changes)
    with as_drawn(seeds.get("data")):
        data = recorded_data({**config["data"], "init_args": of_data})
    set_up(data)
    of_task = {**(config["model"].get("init_args") or {})}
    of_task |= _changed("model", of_task, changes)
    with as_drawn(seeds.get("task")):
        task = _task(config["model"]["class_path"], of_task)
    of_trainer = replayed_settings(config["trainer"])
    of_trainer |= _changed("trainer", of_trainer, changes)
    # Trainer arguments that were left at their defaults are not recorded: what no other part has is one of them.
    others = {name: value for name, value in changes.items() if "." not in name and name not in {*of_data, *of_task}}
    of_trainer |= {argument_of("trainer", name) or name: value for name, value in others.items()}
    with as_drawn(seeds.get("trainer")):
        trainer = AutoTrainer(**{**of_trainer, "run_dir": folder.chosen})
    return task, data, trainer


def _data_arguments(
    recorded: Mapping[str, Any], decided: Mapping[str, Any], place: str | Path | None, workers: int | None
) -> dict[str, Any]:
    """The arguments of the data module, where the data is now."""
    arguments = {**(recorded.get("init_args") or {})}
    if place is not None:
        arguments[name_of_place(arguments)] = str(place)
    if workers is not None:
        arguments["num_workers"] = workers
    if decided.get("batch_size") is not None:
        arguments["batch_size"] = decided["batch_size"]
    return arguments


def _task(class_path: str, arguments: Mapping[str, Any]) -> Task:
    require_plain(arguments, "model")
    task_class = task_class_named(class_path)
    if not takes(task_class, arguments):
        raise ModelError(
            f"The {task_class.__name__} of the run must call `self.save_hyperparameters()` in its constructor, so that "
            f"its arguments are recorded. Recorded are {', '.join(arguments) or 'none'}. Add it, and train again."
        )
    task: Task = construct(task_class, arguments)
    return task


# They change no bit, and write files where they like or ask a service.
_NOT_REPLAYED = {"default_root_dir", "enable_autolog_hparams", "logger", "model_registry", "profiler", "run_dir"}
# With the first two there would be no run; the others are objects, for which a record has placeholders.
_NEVER_RECORDED = ("barebones", "fast_dev_run", "callbacks", "plugins")


def replayed_settings(recorded: Any) -> dict[str, Any]:
    """The arguments of a recorded trainer that a replay is given.

    Raises:
        ModelError: If one was an object, or if no run has such an argument.
    """
    if not isinstance(recorded, Mapping):
        raise ModelError("The recorded trainer must have arguments by name. It has not: the record is damaged.")
    settings = {str(name): value for name, value in recorded.items() if name not in _NOT_REPLAYED}
    settings.setdefault("calibrate", None)  # left out where nothing was fitted, as by versions that could not
    require_plain(settings, "trainer")
    if wrong := [name for name in _NEVER_RECORDED if settings.get(name)]:
        raise ModelError(
            f"The `{wrong[0]}` of the recorded trainer must be left at its default, as in every run. It is not: the "
            "record is damaged."
        )
    return settings


def _changed(part: str, given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that concern one part of a run."""
    names = {name: (name, f"{part}.{name}") for name in given}
    return {name: changes[key] for name, keys in names.items() for key in keys if key in changes}


def require_plain(arguments: Mapping[str, Any], owner: str) -> None:
    """Refuse recorded arguments that were objects.

    Raises:
        ModelError: If there is one.
    """
    lists = {name: value if isinstance(value, list) else [value] for name, value in arguments.items()}
    lost = [name for name, values in lists.items() if any(map(is_object, values))]
    if lost:
        raise ModelError(
            f"The {' and '.join(f'`{name}`' for name in lost)} of the run's {owner}, given as an object, must be given "
            "again: no file holds it. Run your program again with another `run_dir`, and compare with `autotimm diff`."
        )
