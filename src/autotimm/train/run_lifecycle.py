"""How a run begins, resumes and ends: its folder and manifest are opened, completed and released.

The digests of the data are those of the files when the training begins. Files that change while it reads them are
found at its end: the run is finished, says so in its manifest, and ends with an error.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from safetensors import SafetensorError
from safetensors.torch import save

from autotimm.data.data_facts import ChangedFiles, Snapshot
from autotimm.data.dropped import recorded_drops
from autotimm.data.loading_processes import deaths_unnoticed, killed_process
from autotimm.data.module import DataModule
from autotimm.errors import (
    AutotimmError,
    ChangedDataError,
    ModelError,
    RunError,
    UnreadableSampleError,
    join_names,
)
from autotimm.records.atomic import atomic_path
from autotimm.records.commitment import commitment_of, write_commitment
from autotimm.records.compute import COMPUTE, Meter
from autotimm.records.digest import config_digest
from autotimm.records.environment import volatile
from autotimm.records.imports import names_in
from autotimm.records.ledger import read_ledger
from autotimm.records.manifest import SOURCES, Manifest
from autotimm.records.run_folder import RECIPE, RunFolder
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.tasks.start import Start, store_start
from autotimm.train.callbacks.candidates import choice_of
from autotimm.train.callbacks.epoch_metrics import MetricsTable
from autotimm.train.fit_summary import summary
from autotimm.train.progress import say, show
from autotimm.train.resume import require_same_inputs, start_of
from autotimm.train.run_description import (
    changed_while_training,
    decisions,
    describe,
    inputs,
    levels,
    surroundings,
)

__all__ = [
    "OpenRun", "conclude", "declare", "ending", "keep_start", "naming_the_resume", "open_run", "write_outcome",
]  # fmt: skip

_MOST_IDS = 100  # ids of changed files in a manifest; their number is exact


def open_run(
    folder: RunFolder, model: pl.LightningModule, data: DataModule | None, trainer: Any, *, resume: bool
) -> Snapshot | None:
    """Open the folder of a run, and list its samples before the first step.

    Returns:
        The content of the data now; ``None`` for loaders of the caller's own.

    Raises:
        UsageError: If the folder already holds a run, unless it is resumed, or if it is resumed with other arguments.
        DataError: If the data cannot be used, or has changed since the run began.
        RunError: If the folder cannot be written to.
    """
    if resume and folder.begun:
        require_same_inputs(folder, trainer, model, data)
    config = yaml.safe_dump(describe(model, data, trainer), sort_keys=False)
    folder.open(data.source_name if data is not None else "run", config, resume=resume)
    if data is None:
        return None
    data.setup("fit")
    if resume and folder.begun:
        data.drop(recorded_drops(Manifest.load(folder.manifest)), recorded=True)
    # What is compared with a record is read, not remembered.
    now = Snapshot(data.tables.values(), trainer.shows_progress, cached=not (resume or trainer.hashes_anew))
    content = now.content
    folder.samples.require_same(content)
    with folder.writing():
        folder.samples.write(data.assignments(), content)
    data.notices += [line for line in folder.samples.overlaps() if line not in data.notices]
    return now


def keep_start(folder: RunFolder, trainer: Any, model: pl.LightningModule, checkpoint: Any) -> Start | None:
    """What a run that begins starts from, kept in its folder; ``None`` for the weights of the constructor.

    Raises:
        UsageError: If it begins at a checkpoint that has as many epochs as are asked for.
        RunError: If the folder cannot be written to.
    """
    if trainer.listener is not None:  # a replay keeps no file, and may begin at a checkpoint in the middle of the run
        given: Start | None = trainer.start
        return given
    start = start_of(trainer, model, checkpoint)
    if start is None:
        return None
    with folder.writing():
        return store_start(folder.path, start, model.network if isinstance(model, Task) else None)


def timestamp() -> str:
    """The time now, in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def declare(
    folder: RunFolder, trainer: Any, model: pl.LightningModule, data: DataModule | None, start: Start | None,
    frozen: dict[str, Any] | None, initial: str, *, resumes: bool,
) -> str:  # fmt: skip
    """Write the manifest of a run that begins or is resumed, and return the run's id.

    Args:
        folder: The run's folder.
        trainer: The trainer.
        model: What is trained.
        data: The data module, or ``None`` for loaders of the caller's own.
        start: What the run starts from, if not from the constructor's weights.
        frozen: The parameters that were frozen by hand, if they were.
        initial: The digest of the weights now.
        resumes: Whether a checkpoint of this run was loaded, also one before its first step, with a fitted head.
    """
    before = Manifest.load(folder.manifest) if folder.manifest.exists() else None
    resumed = before if resumes or trainer.global_step else None
    if resumed is None:
        begun: dict[str, Any] = {} if start is None else {"start": dict(start.record)}
        begun |= {} if frozen is None else {"frozen": frozen}
    else:
        initial = resumed.inputs["initial"]
        begun = {name: resumed.inputs[name] for name in ("start", "frozen") if name in resumed.inputs}
    manifest = Manifest(
        inputs=inputs(trainer, model, data, content=_samples(folder), initial=initial) | begun,
        environment=surroundings(trainer),
        decisions=decisions(model, data, trainer.searched),
        results={"status": "running"},
        levels=levels(trainer, model, data, begun),
        volatile=_circumstances(folder, trainer, data, start, resumed),
    )
    committed = None if before is None else before.decisions.get("commitment")
    if committed is None and trainer.commits:
        committed = _commit(folder, trainer, manifest)
    if committed is not None:
        manifest = replace(manifest, decisions={**manifest.decisions, "commitment": committed})
    folder.write_manifest(manifest, names_in(describe(model, data, trainer)))
    return manifest.run_id


def _samples(folder: RunFolder) -> dict[str, Any]:
    """The digests of the samples and of their splits, as the folder lists them."""
    samples, splits = folder.samples.content(), folder.path / "splits.csv"
    return {
        "data": {"digest": samples and samples.digest, "samples": samples and len(samples)},
        "splits": config_digest(splits.read_text()) if splits.exists() else None,
    }


def _circumstances(
    folder: RunFolder, trainer: Any, data: DataModule | None, start: Start | None, resumed: Manifest | None
) -> dict[str, Any]:
    """When, where and with how many processes a run trains: what no bit depends on."""
    processes = {} if trainer.shards is None else {"processes": trainer.world_size}
    if resumed is not None:
        resumes = [*resumed.volatile.get("resumes", []), timestamp()]
        known = resumed.volatile | processes | {"resumes": resumes}
    else:
        place = {"started": timestamp(), "folder": str(folder.path.resolve())}
        known = {**place, **volatile(), **processes}
        if start is not None and start.parent is not None:
            known["parent"] = str(start.parent.resolve())
    if data is not None and data.notices:  # they hold paths, which another place has not
        known["notices"] = list(data.notices)
    return known


def _commit(folder: RunFolder, trainer: Any, manifest: Manifest) -> str:
    """Write and print what a run is committed to, and return its digest."""
    commitment = commitment_of(manifest)
    write_commitment(folder.path, commitment)
    show(trainer, f"commitment: {commitment.digest}", f"plan: {commitment.plan}")
    return commitment.digest


def conclude(
    folder: RunFolder, status: str, steps: int, changed: ChangedFiles | None = None, meter: Meter | None = None
) -> None:
    """Write how a run ended into its manifest.

    Args:
        folder: The run's folder.
        status: ``finished``, ``interrupted`` or ``failed``.
        steps: The number of optimizer steps.
        changed: The files that changed while it trained.
        meter: What has measured its cost.
    """
    if folder.manifest.exists():
        manifest = Manifest.load(folder.manifest)
        # From the file, since in a run with spawned processes another one has written it.
        ledger = read_ledger(folder.ledger)
        metrics = {name: float(value).hex() for name, value in folder.results().get("best", {}).items()}
        results = {"status": status, "steps": steps, "ledger": ledger.last, "metrics": metrics}
        claims = dict(manifest.levels)
        # A finished run that is resumed trains nothing: what was found at its end still holds.
        found: dict[str, Any] | None = manifest.results.get("changed_files")
        if changed is not None and changed.files:
            found = {"count": len(changed.files), "ids": changed.ids[:_MOST_IDS]}
            claims["R1"] = changed_while_training(len(changed.files))
        results |= {} if found is None else {"changed_files": found}
        results |= {SOURCES: manifest.results[SOURCES]} if SOURCES in manifest.results else {}
        ended = manifest.volatile | {"ended": timestamp()}
        if meter is not None:
            ended[COMPUTE] = [*ended.get(COMPUTE, []), meter.read()]
        folder.write_manifest(replace(manifest, results=results, levels=claims, volatile=ended))


def write_outcome(folder: RunFolder, trainer: Any) -> None:
    """Write the best weights and the results of a fit that has finished."""
    callback = trainer.checkpoint_callback
    best = getattr(callback, "best_model_path", "")
    if not folder.enabled or not trainer.is_global_zero or not best:
        return
    # From the file, since in a run with spawned processes another one has written it.
    chosen = choice_of(read_ledger(folder.ledger).lines)
    best_metrics = getattr(callback, "best", {}).get("metrics", {})
    folder.add_results(best=best_metrics, last=_last_metrics(trainer), **({RECIPE: chosen} if chosen else {}))
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


@dataclass
class OpenRun:
    """A run that trains.

    Attributes:
        snapshot: The content of its data when it began or was resumed; ``None`` if nothing is to be followed.
    """

    snapshot: Snapshot | None = None


@contextmanager
def ending(trainer: Any, *, resume: bool) -> Iterator[OpenRun]:
    """Open a run and train in this block; its folder is concluded and released at the end.

    A run that fails before its first step has trained leaves nothing: an empty folder would block a second attempt. Of
    one that fails later, the folder is kept and its manifest says so, as does the error.

    Raises:
        ChangedDataError: If files changed since the snapshot of the run; its folder is complete by then.
    """
    folder, run = trainer.run_folder, OpenRun()
    before, meter = _stamp(folder), Meter()
    try:
        yield run
        write_outcome(folder, trainer)
        if folder.opened and trainer.is_global_zero and trainer.complete_record is not None:
            trainer.complete_record()  # before it says that it is finished: then nobody completes it
        changed = None if run.snapshot is None else run.snapshot.changed()
        _conclude(trainer, "finished", changed, meter)
        if folder.opened and trainer.shows_progress and trainer.listener is None:
            show(trainer, *summary(folder, trainer, meter.read()["wall_s"], resumed=resume))
    except BaseException as error:
        with deaths_unnoticed():
            failure = _failure(folder, error)
            if folder.opened and not resume and folder.unused_after(failure, trainer.global_step):
                folder.close_unused()
            if _stamp(folder) not in (before, None):  # else that of an earlier fit, which may have finished
                interrupted = isinstance(failure, (KeyboardInterrupt, SystemExit))
                _conclude(trainer, "interrupted" if interrupted else "failed", meter=meter)
                if isinstance(failure, RunError) and folder.opened:
                    failure.args = (f"{failure} The run folder {folder.path} is kept, and marked as failed.",)
        if failure is not error:
            raise failure from error
        raise
    finally:
        folder.release()
    if changed is not None and changed.files:
        raise _changed(folder, changed)


@contextmanager
def naming_the_resume(folder: RunFolder, data: object, whole: Path | None = None) -> Iterator[None]:
    """Say in the error of a sample that cannot be read how the run is resumed without it.

    Args:
        folder: The run's folder; where none is written, there is nothing to resume.
        data: What it trains on.
        whole: The run that it is a fold of, which is what is resumed.
    """
    try:
        yield
    except UnreadableSampleError as error:
        if folder.chosen is None or not isinstance(data, DataModule):
            raise
        run = str(whole or folder.chosen)
        split = next((split for split, table in data.tables.items() if error.id in table.ids), "training")
        recorded = recorded_drops(Manifest.load(folder.manifest)) if folder.begun else ()
        # What this process was told to drop is in no record before its first step.
        ids = [*(id for dropped in data.dropped.values() for id in dropped if id not in recorded), error.id]
        text = ",".join(ids)
        option = shlex.quote(f"--drop={text}") if text.startswith("-") else f"--drop {shlex.quote(text)}"
        error.args = (
            f"{str(error).partition('. Replace it')[0]}. It is the {split} sample {error.id}. Resume the run without "
            f"it: autotimm resume {shlex.quote(run)} {option}, or Run({run!r}).resume(drop={ids}). "
            "`autotimm inspect` names all such files.",
        )
        raise


def _changed(folder: RunFolder, changed: ChangedFiles) -> ChangedDataError:
    count, names = len(changed.files), join_names([*map(str, changed.files)])
    return ChangedDataError(
        f"{count} file{'' if count == 1 else 's'} changed while the run trained: {names}. The run {folder.path} is "
        "finished, but its digests of the data do not hold for them. Train again, and leave the files as they are "
        "until the end."
    )


def _failure(folder: RunFolder, error: BaseException) -> BaseException:
    """The error itself, or one of ours for a run folder in which nothing can be written any more."""
    if folder.gone and isinstance(error, (AutotimmError, OSError)):
        return RunError(
            f"The run folder {folder.path} was removed or renamed while the run was training. Train again, and leave "
            "the folder where it is until the run has finished."
        )
    if (killed := killed_process(error)) is not None:  # torch raises in a signal, also while another error is handled
        return killed
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


def _conclude(trainer: Any, status: str, changed: ChangedFiles | None = None, meter: Meter | None = None) -> None:
    if trainer.run_folder.opened and trainer.is_global_zero:
        conclude(trainer.run_folder, status, trainer.global_step, changed, meter)
