"""How a run begins, resumes and ends: its folder and manifest are opened, completed and released."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import yaml
from safetensors import SafetensorError
from safetensors.torch import save

from autotimm.data.data_facts import content
from autotimm.data.module import DataModule
from autotimm.errors import AutotimmError, ModelError, RunError
from autotimm.records.atomic import atomic_path
from autotimm.records.checkpoint_store import CheckpointStore
from autotimm.records.digest import config_digest
from autotimm.records.environment import volatile
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import Manifest
from autotimm.records.replay_versions import require_replayable
from autotimm.records.run_folder import RunFolder
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.callbacks.epoch_metrics import MetricsTable
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint
from autotimm.train.progress import duration, metrics_text, say, show
from autotimm.train.run_description import decisions, describe, inputs, levels, surroundings

__all__ = ["checkpoint_file", "conclude", "declare", "ending", "open_run", "resume_from", "summary", "write_outcome"]


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


def resume_from(trainer: Any, ckpt_path: Any) -> Any:
    """Return the checkpoint to resume from: for ``"last"`` the newest that is whole, with a line about damaged ones.

    Returns:
        The file, or ``None`` for a run that was interrupted before its first checkpoint and starts over.

    Raises:
        ModelError: If there is no such run, if this version would continue it by other rules, or if all of its
            checkpoints are damaged or cannot be checked.
    """
    folder = trainer.run_folder
    if ckpt_path != "last" or not folder.enabled or folder.chosen is None:
        return checkpoint_file(trainer, ckpt_path)
    if folder.is_run and not [*folder.checkpoints.glob("*.ckpt")]:
        if trainer.is_global_zero:
            say("the run was interrupted before its first checkpoint; it starts over")
        return None
    if folder.begun:
        require_replayable(Manifest.load(folder.manifest).environment, folder.path)
    last = checkpoint_file(trainer, ckpt_path)
    store = CheckpointStore(folder.checkpoints)
    if store.files() and not store.lists_digests:
        raise ModelError(
            f"The run {folder.path} must have digests of its checkpoints. The list checkpoints/sha256.txt is missing. "
            "Copy it too, or, if you trust the checkpoints, write it in their folder: sha256sum *.ckpt > sha256.txt."
        )
    newest, damaged = store.newest()
    if damaged and trainer.is_global_zero:
        names = ", ".join(path.name for path in damaged)
        say(f"{names}: damaged since it was written" + (f"; resuming from {newest.name}" if newest else ""))
    if damaged and newest is None:
        raise ModelError(
            f"The run {folder.path} must have a checkpoint that is whole. All of them are damaged. "
            "Start it again in another folder."
        )
    return newest or last


def open_run(
    folder: RunFolder, model: pl.LightningModule, data: DataModule | None, trainer: Any, *, resume: bool
) -> None:
    """Open the folder of a run, and list its samples before the first step.

    Raises:
        UsageError: If the folder already holds a run, unless it is resumed.
        DataError: If the data cannot be used, or has changed since the run began.
        RunError: If the folder cannot be written to.
    """
    config = yaml.safe_dump(describe(model, data, trainer), sort_keys=False)
    folder.open(data.source_name if data is not None else "run", config, resume=resume)
    if data is None:
        return
    data.setup("fit")
    now = content([*data.tables.values()], trainer.shows_progress)
    folder.samples.require_same(now)
    with folder.writing():
        folder.samples.write(data.assignments(), now)
    data.notices += [line for line in folder.samples.overlaps() if line not in data.notices]


def timestamp() -> str:
    """The time now, in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def declare(folder: RunFolder, trainer: Any, model: pl.LightningModule, data: DataModule | None, initial: str) -> str:
    """Write the manifest of a run that begins or is resumed, and return the run's id."""
    before = Manifest.load(folder.manifest) if folder.manifest.exists() else None
    samples = folder.samples.content()
    splits = folder.path / "splits.csv"
    data_facts: dict[str, Any] = {"data": {"digest": samples and samples.digest, "samples": samples and len(samples)}}
    data_facts["splits"] = config_digest(splits.read_text()) if splits.exists() else None
    if before is not None and trainer.global_step:
        initial = before.inputs["initial"]
    clock = {"started": timestamp(), "folder": str(folder.path.resolve()), **volatile()}
    if before is not None and trainer.global_step:
        clock = before.volatile | {"resumes": [*before.volatile.get("resumes", []), timestamp()]}
    manifest = Manifest(
        inputs=inputs(trainer, model, data, content=data_facts, initial=initial),
        environment=surroundings(trainer),
        decisions=decisions(model, data),
        results={"status": "running"},
        levels=levels(trainer, model, data),
        volatile=clock,
    )
    manifest.save(folder.manifest)
    return manifest.run_id


def summary(folder: RunFolder, trainer: Any, seconds: float, *, resumed: bool = False) -> list[str]:
    """The lines at the end of a fit: its best epoch, its test if there was one, its time and what to do next."""
    module, results = trainer.lightning_module, folder.results()
    since = " since it was resumed" if resumed else ""
    done = trainer.current_epoch  # 0 in a process that has spawned others to train
    epochs = f"{done} epoch{'' if done == 1 else 's'}, " if done else ""
    lines = [f"finished: {epochs}{duration(seconds)}{since}"]
    best: dict[str, Any] = getattr(trainer.checkpoint_callback, "best", None) or {}
    if best:
        validated = {name: value for name, value in best["metrics"].items() if name.startswith("val/")}
        lines.append(f"best epoch: {best['epoch'] + 1}  {metrics_text(validated or best['metrics'], module)}")
    if "test" in results:
        lines.append(f"test: {metrics_text(results['test'], module)}")
    return [*lines, _claims(folder), f"run folder: {folder.path}", f"next: {_next_command(folder, trainer)}"]


def _claims(folder: RunFolder) -> str:
    """What the run may claim of its reproducibility, in one line."""
    levels: dict[str, list[str]] = {}
    for level, claim in Manifest.load(folder.manifest).levels.items():
        levels.setdefault(claim.partition(" ")[0].rstrip(","), []).append(level)
    no = levels.pop("no", [])
    claims = [f"{' '.join(names)} {claim}" for claim, names in levels.items()]
    claims += [f"not {' '.join(no)}"] if no else []
    return f"reproducibility: {', '.join(claims)} (autotimm levels {folder.path})"


def _next_command(folder: RunFolder, trainer: Any) -> str:
    data = trainer.datamodule
    if not isinstance(data, DataModule):
        return f"autotimm diff {folder.path} ANOTHER_RUN"  # no command can build the caller's own loaders again
    if not isinstance(trainer.lightning_module, Task):
        return f"autotimm verify {folder.path}"
    if "test" in data.tables and "test" not in folder.results():
        return f"autotimm test {folder.path}"
    return f"autotimm predict {folder.path} IMAGES"


def conclude(folder: RunFolder, status: str, steps: int) -> None:
    """Write how a run ended into its manifest."""
    if folder.manifest.exists():
        manifest = Manifest.load(folder.manifest)
        # From the file, since in a run with spawned processes another one has written it.
        ledger = read_ledger(folder.ledger)
        metrics = {name: float(value).hex() for name, value in folder.results().get("best", {}).items()}
        results = {"status": status, "steps": steps, "ledger": ledger.last, "metrics": metrics}
        replace(manifest, results=results, volatile=manifest.volatile | {"ended": timestamp()}).save(folder.manifest)


def write_outcome(folder: RunFolder, trainer: Any) -> None:
    """Write the best weights and the results of a fit that has finished."""
    callback = trainer.checkpoint_callback
    best = getattr(callback, "best_model_path", "")
    if not folder.enabled or not trainer.is_global_zero or not best:
        return
    folder.add_results(best=getattr(callback, "best", {}).get("metrics", {}), last=_last_metrics(trainer))
    try:
        state = read_checkpoint(best)["state_dict"]
    except ModelError:
        if isinstance(trainer.lightning_module, Task):
            raise
        # A caller's own module may keep objects in its checkpoints; the run is finished all the same.
        say("model.safetensors was not written: the checkpoint holds more than tensors and plain data")
        return
    with atomic_path(folder.path / "model.safetensors") as temporary:
        # No metadata: safetensors writes it in random order, and equal runs must give equal bytes.
        # Copies: it refuses tensors that share memory, as tied weights do.
        try:
            tensors = {name: tensor.clone().contiguous() for name, tensor in state.items()}
            temporary.write_bytes(save(tensors))  # its own writer would leave a file that only its owner may read
        except SafetensorError as error:
            raise RunError(f"The file {folder.path}/model.safetensors could not be written: {error}. "
                           "The checkpoints are unharmed. Free some space.") from error  # fmt: skip


def _last_metrics(trainer: Any) -> dict[str, float]:
    rows = next((callback.rows for callback in trainer.callbacks if isinstance(callback, MetricsTable)), [])
    return {name: value for name, value in rows[-1].items() if name not in ("epoch", "step", "lr")} if rows else {}


@contextmanager
def ending(trainer: Any, *, resume: bool) -> Iterator[None]:
    """Open a run and train in this block; its folder is concluded and released at the end.

    A run that fails before its first step has trained leaves nothing: an empty folder would block a second attempt. Of
    one that fails later, the folder is kept and its manifest says so, as does the error.
    """
    folder = trainer.run_folder
    before, began = _stamp(folder), time.monotonic()
    try:
        yield
        write_outcome(folder, trainer)
        _conclude(trainer, "finished")
        if folder.opened and trainer.shows_progress and trainer.listener is None:
            show(trainer, *summary(folder, trainer, time.monotonic() - began, resumed=resume))
    except BaseException as error:
        failure = _failure(folder, error)
        if folder.opened and not resume and folder.unused_after(failure, trainer.global_step):
            folder.close_unused()
        if _stamp(folder) not in (before, None):  # else the manifest is that of an earlier fit, which may have finished
            interrupted = isinstance(failure, (KeyboardInterrupt, SystemExit))
            _conclude(trainer, "interrupted" if interrupted else "failed")
            if isinstance(failure, RunError) and folder.opened:
                failure.args = (f"{failure} The run folder {folder.path} is kept, and marked as failed.",)
        if failure is not error:
            raise failure from error
        raise
    finally:
        folder.release()


def _failure(folder: RunFolder, error: BaseException) -> BaseException:
    """The error itself, or one of ours for a run folder in which nothing can be written any more."""
    if folder.gone and isinstance(error, (AutotimmError, OSError)):
        return RunError(
            f"The run folder {folder.path} was removed or renamed while the run was training. Train again, and leave "
            "the folder where it is until the run has finished."
        )
    if folder.opened and isinstance(error, OSError) and folder.holds(error.filename):
        place = error.filename2 or error.filename
        return RunError(f"{place} must be writable. It is not ({error.strerror}). Remove what is in the way.")
    return error


def _stamp(folder: RunFolder) -> tuple[int, int] | None:
    """Tells whether a fit has written the manifest; from the disk, since a spawned process may have written it."""
    if folder.chosen is None or not folder.manifest.exists():
        return None
    stat = folder.manifest.stat()
    return stat.st_ino, stat.st_mtime_ns


def _conclude(trainer: Any, status: str) -> None:
    if trainer.run_folder.opened and trainer.is_global_zero:
        conclude(trainer.run_folder, status, steps=trainer.global_step)
