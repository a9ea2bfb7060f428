"""Train on from a finished run, as a new run with a schedule of its own, on the same data or on other data.

The new run begins with the weights of a checkpoint of its parent. They are kept in its folder, and its manifest names
the parent, so that it can be verified alone, and more strictly where the parent is there too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autotimm.config import NETWORK_OPTIONS, FitConfig, defaults, meant, options
from autotimm.config.value_types import Whole, stream_seeds
from autotimm.data.data_facts import content
from autotimm.data.dropped import recorded_drops
from autotimm.data.inference_loaders import recorded_data
from autotimm.data.module import DataModule
from autotimm.errors import ModelError, UsageError, join_names, sentence
from autotimm.models.backbone.architectures import remember_architecture
from autotimm.models.backbone.weights import Weights, as_recorded
from autotimm.records.digest import file_digest
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.repro.seed import as_drawn
from autotimm.repro.streams import key
from autotimm.runs.factory import build_task, build_trainer, settle_data
from autotimm.runs.fit import new_folder, refuse_unused_shares, train
from autotimm.runs.parent import depends_on_classes
from autotimm.runs.recorded_classes import build_classes
from autotimm.runs.restore import Rebuilt, as_asked, found_values, read_config, read_manifest
from autotimm.runs.this_machine import name_of_place
from autotimm.serialization import current_path, import_name
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import TaskRecord, read_checkpoint
from autotimm.tasks.start import WEIGHTS, Start, describe_parent, network_digest, network_weights
from autotimm.train.portable import build_portably
from autotimm.types import DataSpec

__all__ = ["Choose", "extend", "read_epochs"]

# Where the data comes from: other data replaces all of it.
_SOURCES = (
    "path", "format", "train_csv", "val_csv", "test_csv", "image_dir", "image_column", "label_column",
    "label_separator", "class_levels", "dataset_name", "download",
)  # fmt: skip
_SEED_BITS = 32

Choose = Callable[[bool], Path]
"""Gives the checkpoint to begin with; it is told whether the data is that of the run."""


class Parent(NamedTuple):
    """The run that another one trains on from.

    Attributes:
        path: Its folder.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest


def _name_after(parent: Parent) -> str:
    """The stem of the new run's folder: a chain of runs does not make a chain of names."""
    return re.sub(r"-extended-\d+$", "", parent.path.name) + "-extended"


def read_epochs(epochs: object, owner: str) -> int:
    """Read the number of epochs of the new run: ``10`` and ``"+10"`` mean the same, since it has its own schedule.

    Raises:
        UsageError: If it is no whole number of at least 1.

    Example:
        >>> read_epochs("+10", "extend"), read_epochs(10, "extend")
        (10, 10)
    """
    number = epochs.strip() if isinstance(epochs, str) else epochs
    try:
        if isinstance(number, str) and not re.fullmatch(r"\+?\d+", number):
            raise ValueError
        return int(Whole(1).read(number))
    except (TypeError, ValueError):
        must = "a number of epochs to train, 1 or more"
        raise UsageError(sentence("epochs", owner, must, epochs, "Give for example +10.")) from None


def extend(
    folder: Path, path: str | Path | None, *, epochs: object, choose: Choose, changes: Mapping[str, Any],
    source: str = "argument",
) -> Path:  # fmt: skip
    """Train on from a finished run, and return the folder of the new run.

    Args:
        folder: The folder of the finished run.
        path: Other data to train on; ``None`` for the run's own.
        epochs: Epochs to train.
        choose: Gives the checkpoint to begin with.
        changes: Options with other values than the run's.
        source: Who asks for them.

    Raises:
        UsageError: If an option is wrong, or would change the network.
        ModelError: If the run is not finished, or its weights do not fit.
        DataError: If the data cannot be used.
    """
    parent = Parent(folder, read_manifest(folder))
    if parent.manifest.results.get("status") != "finished":
        raise ModelError(
            f"The run {folder} must be finished before another one trains on from it. It is not. "
            f"Finish it: autotimm resume {folder}"
        )
    number, config = read_epochs(epochs, "extend"), read_config(folder)
    if isinstance(config, FitConfig):
        return _extend_options(parent, config, path, number, choose, changes, source)
    return _extend_objects(parent, config, path, number, choose, changes)


# A run that was made from options


def _extend_options(
    parent: Parent, config: FitConfig, path: str | Path | None, epochs: int, choose: Choose,
    changes: Mapping[str, Any], source: str,
) -> Path:  # fmt: skip
    config = _config_of(parent, config, path, epochs, _checked(changes), source)
    config, data = settle_data(config)
    name = data.source_name if path is not None else _name_after(parent)
    folder = new_folder(config.out, config.name or name, exact=config.name is not None)
    try:
        data.setup("fit")
        data.inherit_drops(recorded_drops(parent.manifest))
        refuse_unused_shares(config, data, given=changes.__contains__)
        checkpoint = _choose(parent, data, choose)
        weights = _weights_of(parent, checkpoint)
        with as_recorded(weights, file_needed=False):
            task = build_task(config, data)
        trainer = build_trainer(config, folder, task, data)
        trainer.start = _begin(task, data, parent, checkpoint, weights, portable=trainer.portable)
        folder.write_config(config.to_yaml())
    except BaseException:
        folder.discard()  # nothing was trained
        raise
    return train(Rebuilt(task, data, trainer, config), folder)


def _checked(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The options to change, each checked by itself.

    Raises:
        UsageError: If one is unknown, wrong, or would change the network.
    """
    known, default = options(), defaults()
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            hint = meant(name, known) or "See autotimm extend --help-all."
            raise UsageError(f"extend has no option `{name}`. {hint}")
        if name in NETWORK_OPTIONS or name == "path":
            do = "Give the path as the first argument." if name == "path" else "Train a new run with `fit` instead."
            raise UsageError(f"The `{name}` of extend must be that of the run, whose weights it begins with. {do}")
        if name in ("folds", "fold"):
            raise UsageError(f"The `{name}` of extend must be left out: one run trains on. Train a new run with `fit`.")
        values[name] = known[name].read(value, name, "extend", default[name], python=True)
    return values


def _config_of(
    parent: Parent, config: FitConfig, path: str | Path | None, epochs: int, changes: dict[str, Any], source: str
) -> FitConfig:
    """The options of the new run: those of its parent, but for what is asked for and what must differ."""
    config = as_asked(config, parent.manifest)
    own: dict[str, Any] = {"out": str(parent.path.parent), "name": None, "pretrained": False}
    own["search_budget"] = 0.0
    own["recipe"] = "plain"  # the head of the parent is better than one that is fitted anew
    own |= found_values(config, parent.manifest.decisions)
    if path is not None:
        own |= dict.fromkeys(("folds", "fold", "group"))
    elif config.folds is not None and config.fold is None:  # it has trained on all images, and so does this one
        own |= {"folds": None, "val_split": 0.0}
    if path is not None:
        own |= {name: defaults()[name] for name in _SOURCES} | {"path": str(path)}
    asked = {**changes, "epochs": epochs}
    return config.resolved(own | _seeds(parent, config, changes), "extend").resolved(asked, source)


def _seeds(parent: Parent, config: FitConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Seeds of single streams: another order and augmentation than in the parent's epochs, and the same split.

    With the parent's own the new run would see the images of its first epochs again, augmented alike. With another
    split it would be validated on images that the parent was trained on.
    """
    if "stream_seeds" in changes:
        return {}
    own = stream_seeds(config.stream_seeds)
    if "seed" not in changes:
        own |= dict.fromkeys(("order", "augment", "step"), _seed_after(parent))
    elif isinstance(config.seed, int):
        own.setdefault("split", config.seed)
    return {"stream_seeds": tuple(f"{name}={seed}" for name, seed in own.items()) or None}


def _seed_after(parent: Parent) -> int:
    seed: int = key(0, "extend", parent.manifest.run_id) % (1 << _SEED_BITS)
    return seed


# A run that was made from objects


def _extend_objects(
    parent: Parent, config: dict[str, Any], path: str | Path | None, epochs: int, choose: Choose,
    changes: Mapping[str, Any],
) -> Path:  # fmt: skip
    if "data" not in config:
        raise ModelError(
            f"The run {parent.path} was made from loaders of your own, which no file holds. Train on in your program: "
            "load its model with `Run.model()`, and fit that with another `run_dir`."
        )
    changes = {**changes, "max_epochs": epochs, "model.pretrained": False}
    out, name = changes.pop("out", None) or parent.path.parent, changes.pop("name", None)
    given = {**(config["data"].get("init_args") or {})}
    if path is not None:
        given[name_of_place(given)] = str(path)
    if "seed" not in changes:
        changes.setdefault("trainer.seed", _seed_after(parent))
    else:
        changes.setdefault("data.seed", given.get("seed"))  # the same split
    seeds = {"data": parent.manifest.inputs.get("seeds", {}).get("data")}  # that of the split
    with as_drawn(seeds["data"]):
        data = recorded_data({**config["data"], "init_args": given})
    arguments = config["model"].get("init_args") or {}
    if arguments.get("num_classes", data.num_classes) != data.num_classes:
        # Recorded metrics and weights of classes are those of the parent's classes.
        changes = {"num_classes": data.num_classes, "model.metrics": None, "model.class_weights": None, **changes}
    parent_name = data.source_name if path is not None else _name_after(parent)
    folder = new_folder(out, name or parent_name, exact=name is not None)
    try:
        checkpoint = _choose(parent, data, choose)
        weights = _weights_of(parent, checkpoint)
        with as_recorded(weights, file_needed=False):
            parts = build_classes(
                config, parent.manifest.decisions, folder, changes, seeds, lambda data: data.setup("fit"), place=path
            )
            rebuilt = Rebuilt(*parts, None)
        rebuilt.data.inherit_drops(recorded_drops(parent.manifest))
        portable = rebuilt.trainer.portable
        rebuilt.trainer.start = _begin(rebuilt.task, rebuilt.data, parent, checkpoint, weights, portable=portable)
    except BaseException:
        folder.discard()  # nothing was trained
        raise
    return train(rebuilt, folder)


# The weights


def _choose(parent: Parent, data: DataModule, choose: Choose) -> Path:
    """The checkpoint to begin with."""
    recorded = RunFolder(parent.path, parent.path.parent).samples.content()
    return choose(recorded is None or recorded == content([*data.tables.values()]))


def _weights_of(parent: Parent, checkpoint: Path) -> Weights:
    """The weights of a run, as those of a hub or a file are described: a recipe treats them as pretrained."""
    architecture = TaskRecord.of(read_checkpoint(checkpoint), checkpoint).weights.get("architecture")
    if architecture:
        remember_architecture(architecture)
    note = f"weights: {checkpoint.name} of the run {parent.path.name} ({parent.manifest.run_id})"
    return Weights("run", file_digest(checkpoint), None, note, architecture)


def _begin(
    task: Task, data: DataModule, parent: Parent, checkpoint: Path, weights: Weights, *, portable: bool
) -> Start:
    """Load the weights of the parent, but for what depends on its classes where the data has others.

    Raises:
        ModelError: If they do not fit.
    """
    record = TaskRecord.of(read_checkpoint(checkpoint), checkpoint)
    if current_path(record.task) != import_name(type(task)):
        raise ModelError(
            f"The run {parent.path} must have the task that trains on from it, {import_name(type(task))}. "
            f"It has {record.task}. Train a new run with `fit` instead."
        )
    spec = DataSpec.from_dict(record.spec) if record.spec else None
    if portable:  # a new head is drawn from integers, as that of a run that begins
        build_portably(task, draw=True)
    fresh = set() if spec is None or spec.class_names == data.class_names else depends_on_classes(task)
    theirs, state = network_weights(checkpoint), task.network.state_dict()
    kept = {name: value for name, value in state.items() if name not in fresh}
    if wrong := [name for name, value in kept.items() if name not in theirs or theirs[name].shape != value.shape]:
        shapes = [tuple(theirs[wrong[0]].shape) if wrong[0] in theirs else "missing", tuple(kept[wrong[0]].shape)]
        raise ModelError(
            f"The network of the new run must be that of {parent.path}, but for its classes. {wrong[0]} is {shapes[0]} "
            f"there and {shapes[1]} here. Leave out what changes it, such as `image_size`."
        )
    task.network.load_state_dict({**state, **{name: theirs[name] for name in kept}})
    task.weights = weights
    if fresh:
        others = f"the other {len(kept)} of {len(state)} tensors are those of {checkpoint.name}"
        data.notices.append(f"other classes than in {parent.path}: {join_names(sorted(fresh))} begin anew; {others}")
    described: dict[str, Any] = {"kind": WEIGHTS, "parent": describe_parent(checkpoint)}
    described |= {"new": sorted(fresh)} if fresh else {}
    return Start(described, None, parent.path, network_digest(task.network))
