"""What a run is made of, as plain data for its manifest, and what it may claim of its reproducibility."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from autotimm.config import silent_arguments
from autotimm.data.dropped import DROPPED
from autotimm.data.module import DataModule
from autotimm.records.code_digest import code_digest
from autotimm.records.environment import code_state, environment, package_digest
from autotimm.repro.streams import own_streams
from autotimm.serialization import first_path, import_name, plain_value
from autotimm.tasks import Task
from autotimm.tasks.start import PROGRAM

__all__ = [
    "FOREIGN_WEIGHTS", "FROZEN_BY_HAND", "UNKEYED_WEIGHTS", "changed_while_training", "decisions", "describe",
    "inputs", "levels", "surroundings",
]  # fmt: skip

UNKEYED_WEIGHTS = "no, because the weights of a module of your own are drawn where no stream is set"

FOREIGN_WEIGHTS = "no, because the weights at the start are not those of the constructor, and no file holds them"
FROZEN_BY_HAND = "no, because which parameters are trained was set by hand, and by no option"


def changed_while_training(count: int) -> str:
    """The claim of a run for R1 if files that it trained on have changed meanwhile."""
    return f"no, because {count} file{'' if count == 1 else 's'} changed while it trained"


def describe(model: pl.LightningModule, data: DataModule | None, trainer: Any) -> dict[str, Any]:
    """Model, data and trainer as class path and arguments, the form that ``autotimm fit --config`` reads."""
    parts: dict[str, Any] = {
        "model": {"class_path": import_name(type(model)), "init_args": plain_value(dict(model.hparams))}
    }
    if data is not None:
        parts["data"] = {"class_path": import_name(type(data)), "init_args": plain_value(data.arguments)}
    return parts | {"trainer": plain_value(trainer.arguments)}


def inputs(
    trainer: Any, model: pl.LightningModule, data: DataModule | None, *, content: dict[str, Any], initial: str
) -> dict[str, Any]:
    """Everything that decides the numbers of a run.

    Args:
        trainer: The :class:`autotimm.AutoTrainer`.
        model: What is trained.
        data: The data module, or ``None`` for loaders of the caller's own.
        content: Digests of data and split.
        initial: The digest of the initial weights.
    """
    parts = describe(model, data, trainer)
    config = {name: _without(part.get("init_args", part), silent_arguments(name)) for name, part in parts.items()}
    if trainer.shards is not None:  # then the number of processes decides nothing
        config["trainer"] = _without(config["trainer"], {"devices", "num_nodes"})
    if trainer.portable:  # nor does that of threads
        config["trainer"] = _without(config["trainer"], {"threads"})
    config |= {f"{name}_class": part["class_path"] for name, part in parts.items() if "class_path" in part}
    config = _first_paths(config)  # equal inputs have equal ids, also where a class has moved in between
    roots = {"data": data.data_seed} if data is not None else {}
    roots |= {"task": model.root_seed} if isinstance(model, Task) else {}
    roots |= {"trainer": trainer.root_seed}
    seeds: dict[str, Any] = {name: int(root) for name, root in roots.items()}
    if streams := own_streams(**roots):
        seeds["streams"] = streams
    return {
        "config": config,
        "seeds": seeds,
        "initial": initial,
        "keyed": data is not None,
        **content,
        "transforms": {name: code_digest(by.transform) for name, by in data.transforms.items()} if data else {},
        "code": code_digest(type(model)),
    }


def _without(arguments: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


def _first_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _first_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_first_paths(item) for item in value]
    return first_path(value) if isinstance(value, str) and value.startswith("autotimm.") else value


def surroundings(trainer: Any) -> dict[str, Any]:
    """Versions, hardware, switches, variables and the state of the code around a run."""
    device = str(trainer.strategy.root_device)
    world: dict[str, Any] = {
        # Of a run with shards their number decides; who has shared them is told elsewhere.
        "processes": trainer.shards or trainer.world_size,
        "precision": str(trainer.precision),
        "device": device.split(":")[0],
    }
    # Not among the inputs, since most callbacks change nothing. One that does is named when runs differ.
    world["callbacks"] = dict(trainer.callback_digests)
    world |= {"package": package_digest()[:16], "git": code_state(Path.cwd())}
    return environment(trainer.threads, [device]) | world


def decisions(
    model: pl.LightningModule, data: DataModule | None, searched: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was decided by looking or measuring; a replay reads it rather than decide again.

    Args:
        model: What is trained.
        data: The data module, or ``None`` for loaders of the caller's own.
        searched: What a search before the training has tried and chosen.
    """
    decided: dict[str, Any] = {}
    if isinstance(model, Task):
        decided = {"recipe": plain_value(model.recipe.as_dict()) if model.recipe else None}
        decided["weights"] = plain_value(model.weights.as_dict())
        decided["lr"] = model.hparams.get("lr")
    if data is not None:
        decided["batch_size"] = data.batch_size
        if data.dropped:
            decided[DROPPED] = sorted(id for ids in data.dropped.values() for id in ids)
    return decided if searched is None else decided | {"search": plain_value(dict(searched))}


def levels(
    trainer: Any, model: pl.LightningModule, data: DataModule | None, begun: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The claim of a run for each of :data:`autotimm.records.checked_levels.LEVELS`, before it has been verified.

    Args:
        trainer: The trainer.
        model: What is trained.
        data: The data module, or ``None`` for loaders of the caller's own.
        begun: What the inputs say of the start and of frozen parameters.
    """
    begun = begun or {}
    foreign = "no, because order and augmentation are those of your own loader"
    deterministic = trainer.deterministic is True
    slack = "no, because deterministic kernels are switched off"
    expected = "expected" if deterministic else slack
    keyed = expected if data is not None else foreign
    gpu = trainer.strategy.root_device.type == "cuda"
    groups = "no, because sums over processes, and the statistics of batch normalization, are taken in other groups"
    orders = "no, because the last bits of sums depend on threads and instruction set; replay with those recorded"
    repeated = expected if isinstance(model, Task) or not deterministic else UNKEYED_WEIGHTS
    if begun.get("start", {}).get("kind") == PROGRAM:
        repeated = FOREIGN_WEIGHTS
    elif "frozen" in begun:
        repeated = FROZEN_BY_HAND
    return {
        "R0": "checked" if trainer.seed is not None else "checked, with seeds that were drawn and recorded",
        "R1": repeated,
        "R2": keyed,
        "R3": keyed,
        "R4": groups if trainer.shards is None else keyed,
        "R5": orders if not trainer.portable else keyed if repeated == "expected" else repeated,
        "R6": expected if gpu else "no, because it was trained on a CPU",
        "R7": "no, because it is not promised: other hardware and other versions of torch add up in another order",
    }
