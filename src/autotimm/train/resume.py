"""Where a fit begins: anew, from a checkpoint of its own run, or from what another run or a program has made."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from autotimm.config import argument_option
from autotimm.data.module import DataModule
from autotimm.errors import ModelError, UsageError
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.digest import file_digest, state_digest
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import require_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.serialization import current_path
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.tasks.start import (
    CHECKPOINT,
    PROGRAM,
    WEIGHTS,
    Start,
    describe_parent,
    frozen_parameters,
    network_digest,
    network_weights,
    recorded_start,
    say_frozen,
)
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from autotimm.train.progress import say
from autotimm.train.run_description import inputs

__all__ = [
    "Beginning", "beginning_of", "checkpoint_file", "frozen_by_hand", "require_same_inputs", "start_of", "take_found",
]  # fmt: skip


class Beginning(NamedTuple):
    """Where a fit begins.

    Attributes:
        checkpoint: The checkpoint to load; ``None`` for none.
        resumes: Whether that is one of the run in the trainer's folder, which the fit continues.
    """

    checkpoint: Any
    resumes: bool


def checkpoint_file(trainer: Any, ckpt_path: Any) -> Any:
    """Return the file that ``"best"`` or ``"last"`` means in the run folder; Lightning asks its own callback alone.

    Raises:
        ModelError: If there is none: starting over, or measuring random weights, would not be what the caller wants.
    """
    callback, folder = trainer.checkpoint_callback, trainer.run_folder
    if ckpt_path not in ("best", "last") or not isinstance(callback, RunCheckpoint):
        return ckpt_path
    if folder.enabled and folder.chosen is not None:
        callback.folder = folder.checkpoints
    if path := callback.best_model_path if ckpt_path == "best" else callback.last_model_path:
        return path
    raise ModelError(
        f"The run must have a {ckpt_path}.ckpt. There is none in {folder.chosen or 'a new run folder'}. "
        "Give the `run_dir` of the run, or leave `ckpt_path` out."
    )


def beginning_of(trainer: Any, ckpt_path: Any) -> Beginning:
    """Find where a fit begins; for ``"last"`` at the newest checkpoint that is intact, with a line about damaged ones.

    A run that was interrupted before its first checkpoint starts over.

    Raises:
        ModelError: If there is no such run, if it is finished and would be trained over, if this version would continue
            it by other rules, or if all of its checkpoints are damaged or cannot be checked.
        UsageError: If the checkpoint is one of another run than that in the folder.
    """
    folder: RunFolder = trainer.run_folder
    if ckpt_path is None or not folder.enabled or folder.chosen is None:
        return Beginning(checkpoint_file(trainer, ckpt_path), resumes=False)
    recorded = Manifest.load(folder.manifest) if folder.begun else None
    if ckpt_path == "last" and folder.is_run and not [*folder.checkpoints.glob("*.ckpt")]:
        if recorded is not None and _is_finished(recorded):
            raise _finished(folder)
        if trainer.is_global_zero:
            say("the run was interrupted before its first checkpoint; it starts over")
        start = None if recorded is None else recorded_start(folder.path, recorded, needed=False)
        return Beginning(start.file if start is not None and start.kind == CHECKPOINT else None, resumes=False)
    if recorded is not None:
        require_replayable(recorded.environment, folder.path)
    file = checkpoint_file(trainer, ckpt_path)
    store = CheckpointStore(folder.checkpoints)
    if not Path(file).is_file() or (recorded is None and not store.holds(Path(file))):
        return Beginning(file, resumes=False)  # Lightning says what is wrong with a path
    if not store.holds(Path(file)):
        raise UsageError(
            f"The `ckpt_path` of AutoTrainer must be a checkpoint of the run in {folder.path}. Got {file} of another "
            "instead. Give another `run_dir`, or ckpt_path='last'."
        )
    chosen = _newest_intact(trainer, store) if ckpt_path == "last" else None
    file = chosen or file
    if recorded is not None and _is_finished(recorded) and not _same(Path(file), store.files()[-1:]):
        raise _finished(folder)
    return Beginning(file, resumes=True)


def _newest_intact(trainer: Any, store: CheckpointStore) -> Path | None:
    """The newest checkpoint that is intact, with a line about damaged ones."""
    run = store.folder.parent
    if store.files() and not store.lists_digests:
        raise ModelError(
            f"The run {run} must have digests of its checkpoints. The list checkpoints/sha256.txt is missing. "
            "Copy it too, or, if you trust the checkpoints, write it in their folder: sha256sum *.ckpt > sha256.txt."
        )
    newest, damaged = store.newest()
    if damaged and trainer.is_global_zero:
        names = ", ".join(path.name for path in damaged)
        say(f"{names}: damaged since it was written" + (f"; resuming from {newest.name}" if newest else ""))
    if damaged and newest is None:
        raise ModelError(
            f"The run {run} must have a checkpoint that is whole. All of them are damaged. "
            "Start it again in another folder."
        )
    return newest


def _is_finished(manifest: Manifest) -> bool:
    return bool(manifest.results.get("status") == "finished")


def _finished(folder: RunFolder) -> ModelError:
    return ModelError(
        f"The run {folder.path} is finished, and is never trained over. Give another `run_dir`, or train on from it as "
        f"a new run: autotimm extend {folder.path} --epochs +10"
    )


def _same(path: Path, others: list[Path]) -> bool:
    """Whether a file is one of others, or has the same content: second names may be copies."""
    return any(path.samefile(other) or file_digest(path) == file_digest(other) for other in others)


# What a run starts from


def start_of(trainer: Any, model: pl.LightningModule, checkpoint: Any) -> Start | None:
    """What a fit that begins a run starts from; ``None`` for the weights of the constructor.

    Args:
        trainer: The trainer; its ``start`` is what a run that is built again has started from.
        model: What is trained.
        checkpoint: The checkpoint of another run that is loaded first, or ``None``.

    Raises:
        UsageError: If the checkpoint has as many epochs as are asked for.
    """
    given: Start | None = trainer.start
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_file():
            return Start({"kind": PROGRAM})  # at an address that Lightning knows: no file of the run will hold it
        if given is not None and given.is_file(path):
            return given
        _require_more_epochs(trainer, path)
        return Start({"kind": CHECKPOINT, "parent": describe_parent(path)}, path, _home(path))
    if given is not None or not isinstance(model, Task):
        return given
    now = network_digest(model.network)
    if now == model.built_digest:
        return None
    loaded = model.loaded_from
    if loaded is not None and loaded.is_file() and state_digest(network_weights(loaded)) == now:
        return Start({"kind": WEIGHTS, "parent": describe_parent(loaded)}, None, _home(loaded), now)
    return Start({"kind": PROGRAM, "network": now[:16]})


def _home(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to, or that of one that stands alone."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _require_more_epochs(trainer: Any, path: Path) -> None:
    checkpoint, most = read_checkpoint(path), trainer.max_epochs
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    done = checkpoint.get("epoch", -1) + bool(progress.get("is_last_batch", True))  # the epoch that was being trained
    if most is not None and 0 <= most <= done:
        raise UsageError(
            f"The `max_epochs` of AutoTrainer must be above those that the checkpoint {path.name} has, {done}. "
            f"Got {most} instead. Give more."
        )


def frozen_by_hand(model: pl.LightningModule) -> dict[str, Any] | None:
    """The frozen parameters for a manifest, if they are not those that the constructor has frozen."""
    if not isinstance(model, Task):
        return None
    frozen = frozen_parameters(model.network)
    return None if frozen == model.built_frozen else say_frozen(frozen)


def take_found(trainer: Any, model: pl.LightningModule, data: object) -> bool:
    """Set the learning rate and the batch size that a finder has found when the run in the trainer's folder began.

    Returns:
        Whether there is such a run: it is not searched again.
    """
    folder: RunFolder = trainer.run_folder
    if not (folder.enabled and folder.begun):
        return False
    found = Manifest.load(folder.manifest).decisions
    if trainer.tuner.lr and isinstance(model, Task) and isinstance(found.get("lr"), float):
        model.set_lr(found["lr"])
    if trainer.tuner.batch_size and isinstance(data, DataModule) and isinstance(found.get("batch_size"), int):
        data.batch_size = data.arguments["batch_size"] = found["batch_size"]
    return True


# What may not change between a run and its resume


def require_same_inputs(folder: RunFolder, trainer: Any, model: pl.LightningModule, data: DataModule | None) -> None:
    """Refuse to resume a run with other arguments, seeds, transforms or code than it began with.

    What cannot change a bit is no part of the inputs, and may differ. The content of the data is compared elsewhere.

    Raises:
        UsageError: If something differs; it names the first such argument.
    """
    before = Manifest.load(folder.manifest).inputs
    now = inputs(trainer, model, data, content={}, initial="")
    if (frozen := frozen_by_hand(model)) is not None:
        now["frozen"] = frozen
    now = Manifest(inputs=now, environment={}).inputs  # in the form in which a file returns it
    owners = {"model": type(model), "data": type(data), "trainer": type(trainer)}
    changed = [*_changed_arguments(before, now, owners), *_changed_rest(before, now)]
    if not changed:
        return
    more = f" {len(changed) - 1} more differ{'s' if len(changed) == 2 else ''}." if len(changed) > 1 else ""
    raise UsageError(
        f"{changed[0]}{more} Use `autotimm extend {folder.path}` to train on from the run with other values, or give "
        "the recorded ones to resume it."
    )


_MISSING = object()


def _changed_arguments(
    before: Mapping[str, Any], now: Mapping[str, Any], owners: Mapping[str, type[Any]]
) -> Iterator[str]:
    """A sentence for each argument with another value; one that a record lacks had its default."""
    recorded, given = before.get("config", {}), now["config"]
    for part, owner in owners.items():
        defaults = {name: parameter.default for name, parameter in inspect.signature(owner).parameters.items()}
        then, today = recorded.get(part) or {}, given.get(part) or {}
        kept, called = recorded.get(f"{part}_class"), given.get(f"{part}_class")
        if kept is not None and called is not None and current_path(kept) != current_path(called):
            yield f"The class of the {part} was {kept} when the run began. Got {called} instead."
            continue
        for name in sorted(then.keys() | today.keys()):
            a, b = (values.get(name, defaults.get(name, _MISSING)) for values in (then, today))
            if name in then or name in today:
                a, b = (None if value in (_MISSING, inspect.Parameter.empty) else value for value in (a, b))
                if not _equal(a, b):
                    yield _sentence(part, name, owner, a, b)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, str) and isinstance(b, str):
        return current_path(a) == current_path(b)
    return type(a) is type(b) and bool(a == b)


def _sentence(part: str, name: str, owner: type[Any], before: Any, now: Any) -> str:
    option = argument_option(part, name)
    aside = f" (option `{option}`)" if option is not None and option != name else ""
    return f"The `{name}`{aside} of {owner.__name__} was {before!r} when the run began. Got {now!r} instead."


def _changed_rest(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each other input that differs."""
    seeds, drawn = before.get("seeds", {}), now["seeds"]
    owners = {"task": "the model", "data": "the data module", "trainer": "the trainer"}
    for name, owner in owners.items():
        if name in seeds and name in drawn and seeds[name] != drawn[name]:
            yield f"The `seed` of {owner} was {seeds[name]} when the run began. Got {drawn[name]} instead."
    if seeds.get("streams", {}) != drawn.get("streams", {}):
        then, today = seeds.get("streams", {}), drawn.get("streams", {})
        yield f"The `stream_seeds` were {then} when the run began. Got {today} instead."
    if before.get("keyed", True) != now["keyed"]:
        yield "The data was a data module when the run began, and is a loader of your own now, or the other way round."
    for name, digest in before.get("transforms", {}).items():
        if now["transforms"].get(name, digest) != digest:
            yield f"The `{name}_transforms` of the data module had other settings or other code when the run began."
    if before.get("code", now["code"]) != now["code"]:
        yield "The code of the model's class was another when the run began."
    if before.get("frozen") != now.get("frozen"):
        then, today = (_shown_frozen(values.get("frozen")) for values in (before, now))
        yield f"The frozen parameters were {then} when the run began. Got {today} instead."


def _shown_frozen(frozen: Any) -> str:
    if not isinstance(frozen, Mapping):
        return "those that the options freeze"
    names = frozen.get("names")
    return ", ".join(map(str, names)) or "none" if isinstance(names, list) else f"{frozen.get('count')} others"
