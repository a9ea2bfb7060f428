"""How a run begins and ends: its folder and manifest are opened, completed and given back."""

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

from autotimm.data.content_digest import content
from autotimm.data.module import DataModule
from autotimm.errors import ModelError, RunError
from autotimm.records.atomic import atomic_path
from autotimm.records.digest import config_digest
from autotimm.records.environment import volatile
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import Manifest
from autotimm.records.run_folder import RunFolder
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.callbacks.epoch_metrics import MetricsTable
from autotimm.train.progress import say
from autotimm.train.run_description import decisions, describe, inputs, levels, surroundings

__all__ = ["conclude", "declare", "ending", "level_lines", "open_run", "write_outcome"]


def open_run(
    folder: RunFolder, model: pl.LightningModule, data: DataModule | None, trainer: Any, *, resume: bool
) -> None:
    """Open the folder of a run, and list its samples before the first step.

    Raises:
        UsageError: If the folder already holds a run, unless it is resumed.
        DataError: If the data cannot be used, or is not what the run began with.
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
    """The clock, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def declare(folder: RunFolder, trainer: Any, model: pl.LightningModule, data: DataModule | None, initial: str) -> str:
    """Write the manifest of a run that begins or goes on, and return the run's id."""
    before = Manifest.load(folder.manifest) if folder.manifest.exists() else None
    found = folder.samples.content()
    splits = folder.path / "splits.csv"
    data_facts: dict[str, Any] = {"data": {"digest": found and found.digest, "samples": found and len(found)}}
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


def level_lines(folder: RunFolder) -> list[str]:
    """What a run may claim and what not, for people: a line for all levels of which the same is said."""
    manifest = Manifest.load(folder.manifest)
    groups: dict[str, list[str]] = {}
    for name, said in manifest.levels.items():
        groups.setdefault(said, []).append(name)
    rows = [(" ".join(names), said) for said, names in groups.items()]
    wide = max(len(names) for names, _ in rows)
    # A replay cannot build the caller's own loaders again; two runs can be compared.
    verb = "verify" if manifest.inputs.get("keyed", True) else "diff"
    return [
        f"reproducibility (autotimm {verb} {folder.path} checks it)",
        *(f"  {names:{wide}}  {said}" for names, said in rows),
    ]


def conclude(folder: RunFolder, status: str, steps: int) -> None:
    """Write how a run ended into its manifest."""
    if folder.manifest.exists():
        found = Manifest.load(folder.manifest)
        # From the file: in a run with spawned processes this one has not written it.
        ledger = read_ledger(folder.ledger)
        metrics = {name: value.hex() for name, value in folder.results().get("best", {}).items()}
        results = {"status": status, "steps": steps, "ledger": ledger.last, "metrics": metrics}
        replace(found, results=results, volatile=found.volatile | {"ended": timestamp()}).save(folder.manifest)


def write_outcome(folder: RunFolder, trainer: Any) -> None:
    """Write the best weights and the results of a fit that came to its end."""
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
        # A caller's own module may keep objects in its checkpoints; that is no reason to lose a finished run.
        say("model.safetensors is not written: the checkpoint holds more than tensors and plain data.")
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
    """Open a run and train in this block; its folder is concluded and given back at the end.

    A run that fails before its first step leaves nothing: a folder without one would stand in the way of another try.
    """
    folder = trainer.run_folder
    before = _stamp(folder)
    try:
        yield
        write_outcome(folder, trainer)
        _conclude(trainer, "finished")
        if folder.opened and trainer.shows_progress and trainer.listener is None:
            say(*level_lines(folder))
    except BaseException as error:
        if folder.opened and not resume and folder.unused_after(error):
            folder.close_unused()
        if _stamp(folder) != before:  # else the manifest speaks of an earlier fit, which may have come to its end
            _conclude(trainer, "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed")
        raise
    finally:
        folder.release()


def _stamp(folder: RunFolder) -> tuple[int, int] | None:
    """What tells the manifest that a fit has declared from one that was there: on the disk, for spawned processes."""
    if folder.chosen is None or not folder.manifest.exists():
        return None
    found = folder.manifest.stat()
    return found.st_ino, found.st_mtime_ns


def _conclude(trainer: Any, status: str) -> None:
    if trainer.run_folder.opened and trainer.is_global_zero:
        conclude(trainer.run_folder, status, steps=trainer.global_step)
