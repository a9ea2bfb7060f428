"""Rebuild the objects of a recorded run: task, data and trainer, with the recorded decisions in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from autotimm.config import FitConfig, decided_by_recipe, defaults, names_of_recipe, options, read_yaml
from autotimm.data.dropped import recorded_drops
from autotimm.data.inference_loaders import recorded_data
from autotimm.data.module import DataModule
from autotimm.errors import DataError, ModelError, UsageError
from autotimm.models.backbone.architectures import remember_architecture
from autotimm.models.backbone.weights import Weights, as_recorded
from autotimm.optim import Recipe
from autotimm.records.imports import RecordedNames
from autotimm.records.manifest import Manifest
from autotimm.records.readers import Fields, require_shape
from autotimm.records.run_folder import RunFolder
from autotimm.records.trust import of_record
from autotimm.repro.seed import as_drawn
from autotimm.runs.factory import build_task, build_trainer, settle_data, settle_recipe
from autotimm.runs.recorded_classes import build_classes, replayed_settings
from autotimm.runs.search import settle_search
from autotimm.runs.this_machine import (
    affordable,
    asking_for_moved_data,
    name_of_place,
    replaced_settings,
    without_cache,
)
from autotimm.tasks import Task
from autotimm.tasks.start import CHECKPOINT, WEIGHTS, Start, load_start, recorded_start
from autotimm.train import AutoTrainer
from autotimm.train.machine_limits import require_machine_for
from autotimm.train.portable import build_portably
from autotimm.train.run_lifecycle import naming_the_resume

__all__ = [
    "Rebuilt", "as_asked", "build_unrecorded", "found_values", "read_config", "read_manifest", "rebuild",
    "rebuild_data", "trainer_settings",
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
    config = config if loggers else without_cache(config)
    settings = trainer_settings(config)
    changes = {**(changes or {}), **replaced_settings(settings, devices=devices, threads=threads)}
    require_machine_for({**settings, **changes})
    manifest = _manifest_if_begun(recorded)
    decided = {} if manifest is None else manifest.decisions
    weights = Weights.from_dict(decided["weights"]) if decided.get("weights") else None
    start = None if manifest is None else recorded_start(recorded, manifest, needed=weights_needed)

    def set_up(module: DataModule) -> None:
        module.setup("fit")
        module.drop(recorded_drops(manifest), recorded=True)
        module.drop(drop)

    with ExitStack() as stack:
        stack.enter_context(RecordedNames(of_record(recorded)))
        stack.enter_context(asking_for_moved_data(config, data))
        if weights is not None:
            stack.enter_context(as_recorded(weights, file_needed=weights_needed and start is None))
            if start is not None and weights.architecture:
                remember_architecture(weights.architecture)
        if isinstance(config, FitConfig):
            place = {} if data is None else {name_of_place(config): str(data)}
            own = place | ({} if workers is None else {"num_workers": workers}) | ({} if loggers else {"loggers": None})
            rebuilt = _from_options(config, manifest, folder, {**own, **changes}, set_up)
        else:
            seeds = {} if manifest is None else manifest.inputs.get("seeds", {})
            parts = build_classes(config, decided, folder, changes, seeds, set_up, place=data, workers=workers)
            rebuilt = Rebuilt(*parts, None)
    _keep_decided(rebuilt.task, decided, changes)
    return rebuilt if start is None else _started(rebuilt, start, weights or Weights(), weights_needed)


def trainer_settings(config: FitConfig | Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a run that concern its trainer, by their names there; of one made from options all of them."""
    return config.as_dict() if isinstance(config, FitConfig) else config.get("trainer") or {}


def _manifest_if_begun(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / "manifest.json").exists() else None


def _keep_decided(task: Task, decided: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Let a task have what its recipe has decided, unless what that depends on has changed."""
    recipe = decided.get("recipe") or {}
    changed = {name.rpartition(".")[-1] for name in changes}
    if recipe.keys() == {field.name for field in fields(Recipe)} and not names_of_recipe() & changed:
        task.decided = Recipe(**recipe)


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


def found_values(config: FitConfig, decided: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a finder has decided in a run, with its values, and the finders themselves, turned off.

    Args:
        config: The options of the run.
        decided: The decisions of its manifest.
    """
    values: dict[str, Any] = {}
    for name, option in options(type(config)).items():
        if option.finds and getattr(config, name) and decided.get(option.finds) is not None:
            values |= {option.finds: decided[option.finds], name: False}
    return values


def _from_options(
    config: FitConfig, manifest: Manifest | None, folder: RunFolder, changes: Mapping[str, Any],
    set_up: Callable[[DataModule], None],
) -> Rebuilt:  # fmt: skip
    """Build the objects of a run that was made from options; ``manifest`` is ``None`` if it was interrupted before."""
    if manifest is None:
        config, data = settle_data(config.resolved(changes, "recorded"))
        set_up(data)
        return build_unrecorded(config, data, folder)
    decided = manifest.decisions
    config = as_asked(config, manifest).resolved({**found_values(config, decided), **changes}, "recorded")
    config, data = settle_data(config)
    set_up(data)
    task = build_task(config, data)
    # Arguments from environment variables (PL_TRAINER_LIMIT_TRAIN_BATCHES) are in no option.
    given = replayed_settings(manifest.inputs.get("config", {}).get("trainer", {}))
    trainer = build_trainer(config, folder, task, data, given)
    trainer.searched = decided.get("search")
    return Rebuilt(task, data, trainer, config)


def build_unrecorded(config: FitConfig, data: DataModule, folder: RunFolder, whole: Path | None = None) -> Rebuilt:
    """Build the objects of a training that has no record yet: its recipe is settled, and its search is made.

    Args:
        config: The options, with the task settled.
        data: The data module that was built of them, set up.
        folder: The run folder, which keeps the options as they are settled.
        whole: The run that this one is a fold of, which is what is resumed after an interruption.
    """
    task = build_task(config, data)
    config, said = settle_recipe(config, task, data)
    folder.write_config(config.to_yaml())
    with naming_the_resume(folder, data, whole):
        config, task, data, found = settle_search(config, task, data, folder)
    trainer = build_trainer(config, folder, task, data)
    trainer.recipe_note, trainer.searched = said, found
    return Rebuilt(task, data, trainer, config)


def rebuild_data(recorded: Path, place: str | Path | None = None) -> DataModule:
    """The data that a run was made with, without the samples that it has dropped.

    Args:
        recorded: The run's folder.
        place: Where the data is now, if it was moved.

    Raises:
        DataError: If it was made from loaders of the caller's own.
        ModelError: If the record is damaged.
    """
    config, manifest = affordable(read_config(recorded)), _manifest_if_begun(recorded)
    if isinstance(config, FitConfig):
        if place is not None:
            config = config.resolved({name_of_place(config): str(place)}, "moved data")
        data = settle_data(config)[1]
    elif "data" in config:
        given = config["data"].get("init_args") or {}
        moved = {} if place is None else {name_of_place(given): str(place)}
        with as_drawn(None if manifest is None else manifest.inputs.get("seeds", {}).get("data")):
            data = recorded_data({**config["data"], "init_args": given | moved})
    else:
        raise DataError(f"The run {recorded} was made from loaders of your own. Give a folder, or a data module.")
    data.drop(recorded_drops(manifest), recorded=True)
    return data
