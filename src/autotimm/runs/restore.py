"""Rebuild the objects of a recorded run: task, data and trainer, with the recorded decisions in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from autotimm.config import (
    FitConfig,
    argument_of,
    decided_by_recipe,
    defaults,
    names_of_recipe,
    options,
    read_yaml,
)
from autotimm.data.dropped import recorded_drops
from autotimm.data.inference_loaders import recorded_data
from autotimm.data.loader import default_workers
from autotimm.data.module import DataModule
from autotimm.errors import ModelError, UsageError, is_whole, require
from autotimm.models.backbone.architectures import remember_architecture
from autotimm.models.backbone.weights import Weights, as_recorded
from autotimm.optim import Recipe
from autotimm.records.imports import RecordedNames
from autotimm.records.manifest import Manifest
from autotimm.records.readers import Fields, require_shape
from autotimm.records.run_folder import RunFolder
from autotimm.records.trust import of_record
from autotimm.repro.seed import as_drawn, default_threads, most_on_cpu
from autotimm.runs.factory import build_task, build_trainer, settle_data, settle_recipe
from autotimm.runs.search import settle_search
from autotimm.serialization import construct, is_object, takes
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import task_class_named
from autotimm.tasks.start import CHECKPOINT, WEIGHTS, Start, load_start, recorded_start
from autotimm.train import AutoTrainer
from autotimm.train.machine_limits import machine_problem, require_machine_for
from autotimm.train.portable import build_portably
from autotimm.train.progress import say

__all__ = [
    "Rebuilt", "affordable", "as_asked", "from_classes", "read_config", "read_manifest", "rebuild", "replayed_settings",
    "require_plain"
]  # fmt: skip


_PART = Fields({"class_path": str, "init_args": (dict, type(None))}, ("class_path",))
_SHAPE = Fields({"model": _PART, "data": _PART, "trainer": dict}, ("model", "trainer"))


class Rebuilt(NamedTuple):
    """The objects of a run that can be trained again.

    Attributes:
        task: The task, with its initial weights.
        data: The data module, set up.
        trainer: The trainer, writing to the folder that was asked for.
        config: Its options; ``None`` for a run that was made from objects.
        checkpoint: The checkpoint of another run that it has begun at; ``None`` if it has begun at its first step.
        drawn: What the constructor has drawn for weights that begin anew where the others are those of another run.
    """

    task: Task
    data: DataModule
    trainer: AutoTrainer
    config: FitConfig | None
    checkpoint: Path | None = None
    drawn: Mapping[str, Tensor] | None = None


def read_config(folder: Path) -> FitConfig | dict[str, Any]:
    """The options of a run, or class paths and arguments if it was made from objects.

    Raises:
        ModelError: If the folder has none, or they are damaged.
    """
    file = folder / "config.yaml"
    if not file.exists():
        raise ModelError(f"{folder} has no config.yaml. Give the run's folder rather than a checkpoint alone.")
    try:
        values, nested = read_yaml(str(file))
        if not nested:
            return FitConfig.layered([("file config.yaml", values)])
    except UsageError as error:  # of somebody who wrote the file, not of who opens the run
        raise ModelError(f"The options of the run {folder} cannot be used. {error}") from None
    require_shape(values, _SHAPE, f"the options {file}")
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
    devices: int | None = None,
    threads: int | None = None,
    weights_needed: bool = True,
    changes: Mapping[str, Any] | None = None,
    loggers: bool = False,
    drop: str | Sequence[str] = (),
) -> Rebuilt:
    """Rebuild the objects of a recorded run.

    Args:
        recorded: The run's folder.
        folder: Where the trainer writes.
        data: Where the data is now, if it was moved.
        workers: Number of loading processes in place of the recorded one; it never changes a result.
        devices: Number of devices or processes in place of the recorded one, for a run with ``shards``.
        threads: Number of threads in place of the recorded one, for a run that is ``portable``.
        weights_needed: Whether pretrained weights must be available; not if a checkpoint replaces them anyway.
        changes: Other values than the recorded ones, by the names of the options; for a run made from objects also
            arguments of one part, such as ``model.lr``.
        loggers: Whether the loggers of a run made from options log again. A mere replay must not: it would write to
            the account of whoever checks the run, or fail where their packages are not installed. Nor does it use
            decoded images that were kept: what checks a record decodes for itself.
        drop: Ids of samples to drop besides those that the run has dropped, see :meth:`DataModule.drop`.

    Raises:
        UsageError: If ``devices`` are given for a run without ``shards``, ``threads`` for one that is not portable, or
            a sample cannot be dropped.
        ModelError: If a class or an object of the run cannot be created again.
        DataError: If the data is missing.
    """
    config = affordable(read_config(recorded))
    config = config if loggers else _without_cache(config)
    trainer: Mapping[str, Any] = config.as_dict() if isinstance(config, FitConfig) else config.get("trainer") or {}
    if (devices := _processes(trainer, devices)) is not None:
        changes = {**(changes or {}), "devices": devices}
    if (threads := _threads(trainer, threads)) is not None:
        changes = {**(changes or {}), "threads": threads}
    require_machine_for({**trainer, **(changes or {})})
    manifest = read_manifest(recorded) if (recorded / "manifest.json").exists() else None
    decided = manifest.decisions if manifest is not None else {}
    if manifest is not None and isinstance(config, FitConfig):
        config = as_asked(config, manifest)
    start = recorded_start(recorded, manifest, needed=weights_needed) if manifest is not None else None
    with ExitStack() as stack:
        stack.enter_context(RecordedNames(of_record(recorded)))
        if weights := decided.get("weights"):
            stack.enter_context(as_recorded(Weights.from_dict(weights), file_needed=weights_needed and start is None))
            if start is not None and weights.get("architecture"):
                remember_architecture(weights["architecture"])
        if isinstance(config, FitConfig):
            # Arguments from environment variables (PL_TRAINER_LIMIT_TRAIN_BATCHES) are in no option.
            given = (
                replayed_settings(manifest.inputs.get("config", {}).get("trainer", {})) if manifest is not None else {}
            )
            silent = {} if loggers else {"loggers": None}
            rebuilt = _from_options(
                config, decided, folder, data, workers, {**silent, **(changes or {})}, given, begun=manifest is not None
            )
        else:
            seeds = manifest.inputs.get("seeds", {}) if manifest is not None else {}
            rebuilt = from_classes(config, decided, folder, data, workers, changes or {}, seeds)
    rebuilt.data.drop(recorded_drops(manifest), recorded=True)
    rebuilt.data.drop(drop)
    recipe = decided.get("recipe") or {}
    changed = {name.rpartition(".")[-1] for name in changes or {}}
    if recipe.keys() == {field.name for field in fields(Recipe)} and not names_of_recipe() & changed:
        rebuilt.task.decided = Recipe(**recipe)
    if start is None:
        return rebuilt
    return _started(rebuilt, start, Weights.from_dict(weights) if weights else Weights(), weights_needed)


def _processes(trainer: Mapping[str, Any], devices: int | None) -> int | None:
    """The number of devices in place of the recorded one; ``None`` for that.

    Raises:
        UsageError: If one is given for a run whose bits depend on it, or that this machine cannot start.
    """
    if trainer.get("shards") is None:
        must = "left out for a run without `shards`, whose bits depend on it"
        require(devices is None, "devices", "the run", must, devices, "Leave it out.")
        return None
    recorded = trainer.get("devices")
    if devices is not None and (problem := machine_problem(None, devices, trainer.get("accelerator"))):
        raise UsageError(f"{problem} Give less.")
    if devices is not None or machine_problem(None, recorded, trainer.get("accelerator")) is None:
        return devices
    say(f"the run was made with {recorded} processes, too many for this machine; using 1")
    return 1


def _threads(trainer: Mapping[str, Any], threads: int | None) -> int | None:
    """The number of threads in place of the recorded one; ``None`` for that.

    Raises:
        UsageError: If one is given for a run whose bits depend on it, or that this machine cannot start.
    """
    if not trainer.get("portable"):
        must = "left out for a run that is not portable, whose bits depend on it"
        require(threads is None, "threads", "the run", must, threads, "Leave it out.")
        return None
    if threads is not None and (problem := machine_problem(threads, None, None)):
        raise UsageError(f"{problem} Give less.")
    recorded = trainer.get("threads")
    if threads is not None or machine_problem(recorded, None, None) is None:
        return threads
    say(f"the run was made with {recorded} threads, too many for this machine; using {default_threads()}")
    return default_threads()


def affordable(config: FitConfig | dict[str, Any]) -> FitConfig | dict[str, Any]:
    """The options of a run, with no more loading processes than this machine can start: they never change a result."""
    arguments = {} if isinstance(config, FitConfig) else (config.get("data") or {}).get("init_args") or {}
    workers = config.num_workers if isinstance(config, FitConfig) else arguments.get("num_workers")
    if not is_whole(workers, most_on_cpu() + 1):
        return config
    say(f"the run was made with {workers} loading processes, too many for this machine; using {default_workers()}")
    if isinstance(config, FitConfig):
        return config.resolved({"num_workers": None}, "this machine")
    return {**config, "data": {**config["data"], "init_args": {**arguments, "num_workers": None}}}


def _without_cache(config: FitConfig | dict[str, Any]) -> FitConfig | dict[str, Any]:
    """The options of a run, which decodes all images itself."""
    if isinstance(config, FitConfig):
        return config.resolved({name: defaults()[name] for name in ("cache", "cache_size")}, "a replay")
    data = config.get("data") or {}
    arguments = data.get("init_args") or {}
    return {**config, "data": {**data, "init_args": {**arguments, "cache": "off"}}} if "cache" in arguments else config


def _started(rebuilt: Rebuilt, start: Start, weights: Weights, weights_needed: bool) -> Rebuilt:
    """The objects of a run that has started from what another one has made."""
    rebuilt.trainer.start = start
    rebuilt.task.weights = weights
    if start.kind == WEIGHTS and weights_needed:
        new = start.record.get("new")
        if new and rebuilt.trainer.portable:
            build_portably(rebuilt.task, draw=True)
        names = [name for name in new if isinstance(name, str)] if isinstance(new, list) else []
        state = rebuilt.task.network.state_dict()
        rebuilt = rebuilt._replace(drawn={name: state[name].clone() for name in names if name in state})
        load_start(rebuilt.task.network, start)
    return rebuilt._replace(checkpoint=start.file if start.kind == CHECKPOINT else None)


def as_asked(config: FitConfig, manifest: Manifest) -> FitConfig:
    """Reset what a recipe filled in, since the id of a run depends on the options as they were given."""
    asked = manifest.inputs.get("config", {}).get("model", {})
    chosen = [name for name, argument in decided_by_recipe().items() if argument in asked and asked[argument] is None]
    return config.resolved({name: defaults()[name] for name in chosen}, "default")


def _from_options(
    config: FitConfig, decided: Mapping[str, Any], folder: RunFolder, data: Any, workers: Any,
    changes: Mapping[str, Any], given: Mapping[str, Any], *, begun: bool,
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
    task, said, found = build_task(config, module), "", decided.get("search")
    if not begun:  # it was interrupted before it had a manifest, and perhaps before its recipe was settled
        config, said = settle_recipe(config, task, module)
        folder.write_config(config.to_yaml())
        config, task, module, found = settle_search(config, task, module, folder)
    trainer = build_trainer(config, folder, task, module, given)
    trainer.recipe_note, trainer.searched = said, found
    return Rebuilt(task, module, trainer, config)


def from_classes(
    config: Mapping[str, Any], decided: Mapping[str, Any], folder: RunFolder, data: Any, workers: Any,
    changes: Mapping[str, Any], seeds: Mapping[str, Any],
) -> Rebuilt:  # fmt: skip
    """Build the objects of class paths and arguments, see :func:`rebuild` for the rest.

    Args:
        config: Class paths and arguments.
        decided: What a finder has decided.
        folder: Where the trainer writes.
        data: Where the data is now, if it was moved.
        workers: Number of loading processes in place of the recorded one.
        changes: Other arguments than the recorded ones.
        seeds: The root seeds that objects with ``seed=None`` have drawn: of ``data``, ``task`` and ``trainer``.

    Raises:
        ModelError: If a class or an object cannot be created again.
        DataError: If the data is missing.
    """
    if "data" not in config:
        raise ModelError(
            "The run was made from loaders of your own, which no file holds. Run your program again with another "
            "`run_dir`, and compare the two with `autotimm diff`."
        )
    given = {**(config["data"].get("init_args") or {})}
    if data is not None:
        given["image_dir" if given.get("train_csv") else "data_dir"] = str(data)
    given |= {} if workers is None else {"num_workers": workers}
    if decided.get("batch_size") is not None:
        given["batch_size"] = decided["batch_size"]
    given |= _changed("data", given, changes)
    with as_drawn(seeds.get("data")):
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
    with as_drawn(seeds.get("task")):
        task = construct(task_class, arguments)
    settings = replayed_settings(config["trainer"])
    # Trainer arguments that were left at their defaults are not recorded: what no other part has is one of them.
    others = {name: value for name, value in changes.items() if "." not in name and name not in {*given, *arguments}}
    settings |= _changed("trainer", settings, changes)
    settings |= {argument_of("trainer", name) or name: value for name, value in others.items()}
    with as_drawn(seeds.get("trainer")):
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
