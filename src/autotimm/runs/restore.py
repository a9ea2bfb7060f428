"""Rebuild the objects of a recorded run: task, data and trainer, with the recorded decisions in place."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.config import (
    FitConfig,
    argument_of,
    decided_by_recipe,
    defaults,
    names_of_recipe,
    options,
    read_yaml,
)
from autotimm.data.inference_loaders import recorded_data
from autotimm.data.module import DataModule
from autotimm.errors import ModelError
from autotimm.models.backbone.weights import Weights, as_recorded
from autotimm.optim import Recipe
from autotimm.records.imports import RecordedNames
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.records.trust import of_record
from autotimm.runs.factory import build_task, build_trainer, settle_data
from autotimm.serialization import construct, is_object, takes
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import task_class_named
from autotimm.train import AutoTrainer

__all__ = ["Rebuilt", "read_config", "read_manifest", "rebuild", "replayed_settings", "require_plain"]


class Rebuilt(NamedTuple):
    """The objects of a run that can be trained again.

    Attributes:
        task: The task, with its initial weights.
        data: The data module, set up.
        trainer: The trainer, writing to the folder that was asked for.
        config: Its options; ``None`` for a run that was made from objects.
    """

    task: Task
    data: DataModule
    trainer: AutoTrainer
    config: FitConfig | None


def read_config(folder: Path) -> FitConfig | dict[str, Any]:
    """The options of a run, or class paths and arguments if it was made from objects.

    Raises:
        ModelError: If the folder has none, or one that is damaged.
    """
    file = folder / "config.yaml"
    if not file.exists():
        raise ModelError(f"{folder} has no config.yaml. Give the run's folder rather than a checkpoint alone.")
    values, nested = read_yaml(str(file))
    if not nested:
        return FitConfig.layered([("file config.yaml", values)])
    for name in ("model", "data"):
        section = values.get(name, {"class_path": ""})
        if not (
            isinstance(section, dict)
            and isinstance(section.get("class_path"), str)
            and isinstance(section.get("init_args") or {}, dict)
        ):
            raise ModelError(
                f"The `{name}` of {file} must have a class_path and init_args. It has not: the record is damaged."
            )
    if "model" not in values or not isinstance(values.get("trainer"), dict):
        raise ModelError(f"{file} must have a model and a trainer. It has not: the record is damaged.")
    return values


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run.

    Raises:
        ModelError: If the folder has none that can be read.
    """
    if not (folder / "manifest.json").exists():
        raise ModelError(f"{folder} has no manifest.json. Give the folder of a run that has begun to train.")
    return Manifest.load(folder / "manifest.json")


def rebuild(
    recorded: Path,
    folder: RunFolder,
    *,
    data: str | Path | None = None,
    workers: int | None = None,
    weights_needed: bool = True,
    changes: Mapping[str, Any] | None = None,
    loggers: bool = False,
) -> Rebuilt:
    """Rebuild the objects of a recorded run.

    Args:
        recorded: The run's folder.
        folder: Where the trainer writes.
        data: Where the data is now, if it was moved.
        workers: Number of loading processes in place of the recorded one; it never changes a result.
        weights_needed: Whether pretrained weights must be available; not if a checkpoint replaces them anyway.
        changes: Other values than the recorded ones, by the names of the options; for a run made from objects also
            arguments of one part, such as ``model.lr``.
        loggers: Whether the loggers of a run made from options log again. A mere replay must not: it would write to
            the account of whoever checks the run, or fail where their packages are not installed.

    Raises:
        ModelError: If a class or an object of the run cannot be created again.
        DataError: If the data is missing.
    """
    config = read_config(recorded)
    manifest = read_manifest(recorded) if (recorded / "manifest.json").exists() else None
    decided = manifest.decisions if manifest is not None else {}
    if manifest is not None and isinstance(config, FitConfig):
        config = _as_asked(config, manifest)
    with ExitStack() as stack:
        stack.enter_context(RecordedNames(of_record(recorded)))
        if weights := decided.get("weights"):
            stack.enter_context(as_recorded(Weights.from_dict(weights), file_needed=weights_needed))
        if isinstance(config, FitConfig):
            # Arguments from environment variables (PL_TRAINER_LIMIT_TRAIN_BATCHES) are in no option.
            given = (
                replayed_settings(manifest.inputs.get("config", {}).get("trainer", {})) if manifest is not None else {}
            )
            silent = {} if loggers else {"loggers": None}
            rebuilt = _from_options(config, decided, folder, data, workers, {**silent, **(changes or {})}, given)
        else:
            rebuilt = _from_classes(config, decided, folder, data, workers, changes or {})
    recipe = decided.get("recipe") or {}
    changed = {name.rpartition(".")[-1] for name in changes or {}}
    if recipe.keys() == {field.name for field in fields(Recipe)} and not names_of_recipe() & changed:
        rebuilt.task.decided = Recipe(**recipe)
    return rebuilt


def _as_asked(config: FitConfig, manifest: Manifest) -> FitConfig:
    """Reset what a recipe filled in, since the id of a run depends on the options as they were given."""
    asked = manifest.inputs.get("config", {}).get("model", {})
    chosen = [name for name, argument in decided_by_recipe().items() if argument in asked and asked[argument] is None]
    return config.resolved({name: defaults()[name] for name in chosen}, "default")


def _from_options(
    config: FitConfig, decided: Mapping[str, Any], folder: RunFolder, data: Any, workers: Any,
    changes: Mapping[str, Any], given: Mapping[str, Any],
) -> Rebuilt:  # fmt: skip
    values: dict[str, Any] = {}
    if data is not None:
        values["image_dir" if config.train_csv else "path"] = str(data)
    if workers is not None:
        values["num_workers"] = workers
    for name, option in options(type(config)).items():
        if option.finds and getattr(config, name) and decided.get(option.finds) is not None:
            values |= {option.finds: decided[option.finds], name: False}
    config = config.resolved(values | dict(changes), "recorded")
    config, module = settle_data(config)
    module.setup("fit")
    task = build_task(config, module)
    return Rebuilt(task, module, build_trainer(config, folder, task, module, given), config)


def _from_classes(
    config: Mapping[str, Any], decided: Mapping[str, Any], folder: RunFolder, data: Any, workers: Any,
    changes: Mapping[str, Any],
) -> Rebuilt:  # fmt: skip
    if "data" not in config:
        raise ModelError(
            "The run was made from loaders of your own, which no file holds. Run your program again with another "
            "`run_dir`, and compare the two with `autotimm diff`."
        )
    given = {**(config["data"].get("init_args") or {})}
    if data is not None:
        given["image_dir" if given.get("train_csv") else "data_dir"] = str(data)
    given |= {} if workers is None else {"num_workers": workers}
    given |= _changed("data", given, changes)
    if decided.get("batch_size") is not None:
        given["batch_size"] = decided["batch_size"]
    module = recorded_data({**config["data"], "init_args": given})
    module.setup("fit")
    arguments = {**(config["model"].get("init_args") or {})}
    arguments |= _changed("model", arguments, changes)
    require_plain(arguments, "model")
    task_class = task_class_named(config["model"]["class_path"])
    if not takes(task_class, arguments):
        raise ModelError(
            f"The {task_class.__name__} of the run must call `self.save_hyperparameters()` in its constructor, so that "
            f"its arguments are recorded. Recorded are {', '.join(arguments) or 'none'}. Add it, and train again."
        )
    task = construct(task_class, arguments)
    settings = replayed_settings(config["trainer"])
    # Trainer arguments that were left at their defaults are not recorded: what no other part has is one of them.
    others = {name: value for name, value in changes.items() if "." not in name and name not in {*given, *arguments}}
    settings |= _changed("trainer", settings, changes)
    settings |= {argument_of("trainer", name) or name: value for name, value in others.items()}
    trainer = AutoTrainer(**{**settings, "run_dir": folder.chosen})
    return Rebuilt(task, module, trainer, None)


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
