"""A recorded run as objects again: the same task, data and trainer, with what was decided then decided already."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.config import FitConfig, defaults, read_yaml
from autotimm.data.inference_loaders import recorded_data
from autotimm.data.module import DataModule
from autotimm.errors import ModelError
from autotimm.models.backbone.weights import Weights, as_recorded
from autotimm.optim import Recipe
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.runs.factory import build_task, build_trainer, settle_data
from autotimm.serialization import construct, is_object, takes
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import task_class_named
from autotimm.train import AutoTrainer

__all__ = ["Rebuilt", "read_config", "read_manifest", "rebuild"]

# What the command line calls the arguments of a trainer, and options that a recipe fills in.
_TRAINER_NAMES = {"epochs": "max_epochs", "accumulate": "accumulate_grad_batches"}


_RECIPE = {
    "lr": "lr", "optimizer": "optimizer", "weight_decay": "weight_decay", "layer_decay": "layer_decay",
    "backbone_scale": "backbone_scale", "schedule": "schedule", "warmup_epochs": "warmup_epochs",
    "clip": "gradient_clip",
}  # fmt: skip
# What a recipe is chosen by, or replaced in it: where one of them is changed, it is chosen again.
_OF_RECIPE = {*_RECIPE, *_RECIPE.values(), "batch_size", "accumulate", "accumulate_grad_batches", "devices", "backbone",
              "pretrained", "freeze_backbone", "arch", "task"}  # fmt: skip


class Rebuilt(NamedTuple):
    """A run that can be made again.

    Attributes:
        task: The task, with its initial weights.
        data: The data module, read.
        trainer: The trainer, writing to the folder that was asked for.
        config: The options it was made from, if it was made from options.
    """

    task: Task
    data: DataModule
    trainer: AutoTrainer
    config: FitConfig | None


def read_config(folder: Path) -> FitConfig | dict[str, Any]:
    """The options of a run, or class paths and arguments if it was made from objects.

    Raises:
        ModelError: If the folder has none.
    """
    file = folder / "config.yaml"
    if not file.exists():
        raise ModelError(f"{folder} has no config.yaml. Give the run's folder rather than a checkpoint alone.")
    values, nested = read_yaml(str(file))
    return values if nested else FitConfig.layered([("file config.yaml", values)])


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
) -> Rebuilt:
    """Make the objects of a recorded run.

    Args:
        recorded: The run's folder.
        folder: Where the trainer writes.
        data: Where the data is now, if it was moved.
        workers: Loading processes instead of the recorded number; they never change a result.
        weights_needed: Whether pretrained weights must be had: not where a checkpoint replaces them at once.
        changes: Options that are to be others than recorded, by their names on the command line; for a run of objects
            also arguments of one part, as ``model.lr``.

    Raises:
        ModelError: If a class or an object of it cannot be had again.
        DataError: If the data is not there.
    """
    config = read_config(recorded)
    manifest = read_manifest(recorded) if (recorded / "manifest.json").exists() else None
    decided = manifest.decisions if manifest is not None else {}
    if manifest is not None and isinstance(config, FitConfig):
        config = _as_asked(config, manifest)
    with ExitStack() as stack:
        if found := decided.get("weights"):
            stack.enter_context(as_recorded(Weights.from_dict(found), file_needed=weights_needed))
        if isinstance(config, FitConfig):
            # No option says what came from variables of the environment (PL_TRAINER_LIMIT_TRAIN_BATCHES).
            given = manifest.inputs.get("config", {}).get("trainer", {}) if manifest is not None else {}
            made = _from_options(config, decided, folder, data, workers, changes or {}, given)
        else:
            made = _from_classes(config, decided, folder, data, workers, changes or {})
    found = decided.get("recipe") or {}
    if found.keys() == {one.name for one in fields(Recipe)} and not _OF_RECIPE & {
        name.rpartition(".")[-1] for name in changes or {}
    }:
        made.task.decided = Recipe(**found)
    return made


def _as_asked(config: FitConfig, manifest: Manifest) -> FitConfig:
    """Leave open again what a recipe has filled in: the run is known by what was asked."""
    asked = manifest.inputs.get("config", {}).get("model", {})
    chosen = [name for name, argument in _RECIPE.items() if argument in asked and asked[argument] is None]
    found = {name: defaults()[name] for name in chosen}
    return config.resolved(found, "default")


def _from_options(
    config: FitConfig, decided: Mapping[str, Any], folder: RunFolder, data: Any, workers: Any,
    changes: Mapping[str, Any], given: Mapping[str, Any],
) -> Rebuilt:  # fmt: skip
    values: dict[str, Any] = {}
    if data is not None:
        values["image_dir" if config.train_csv else "path"] = str(data)
    if workers is not None:
        values["num_workers"] = workers
    if config.lr_find and decided.get("lr") is not None:
        values |= {"lr": decided["lr"], "lr_find": False}
    if config.batch_size_find and decided.get("batch_size") is not None:
        values |= {"batch_size": decided["batch_size"], "batch_size_find": False}
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
    _require_plain(arguments, "model")
    made = task_class_named(config["model"]["class_path"])
    if not takes(made, arguments):
        raise ModelError(
            f"The {made.__name__} of the run must call `self.save_hyperparameters()` in its constructor, so that its "
            f"arguments are recorded. Recorded are {', '.join(arguments) or 'none'}. Add it, and train again."
        )
    task = construct(made, arguments)
    settings = {**config["trainer"]}
    _require_plain(settings, "trainer")
    # Most options of a trainer are not listed where they were left alone: what nobody else knows is one.
    others = {name: value for name, value in changes.items() if "." not in name and name not in {*given, *arguments}}
    settings |= _changed("trainer", settings, changes)
    settings |= {_TRAINER_NAMES.get(name, name): value for name, value in others.items()}
    settings.pop("logger", None)
    trainer = AutoTrainer(**{**settings, "run_dir": folder.chosen})
    return Rebuilt(task, module, trainer, None)


def _changed(part: str, given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be another value in one part of a run."""
    names = {name: (name, f"{part}.{name}") for name in given}
    return {name: changes[key] for name, keys in names.items() for key in keys if key in changes}


def _require_plain(arguments: Mapping[str, Any], owner: str) -> None:
    lists = {name: value if isinstance(value, list) else [value] for name, value in arguments.items()}
    lost = [name for name, values in lists.items() if any(map(is_object, values))]
    if lost:
        raise ModelError(
            f"The {' and '.join(f'`{name}`' for name in lost)} of the run's {owner}, given as an object, must be given "
            "again: no file holds it. Run your program again with another `run_dir`, and compare with `autotimm diff`."
        )
