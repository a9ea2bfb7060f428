"""Train from a configuration or a rebuilt run: create the run folder, and complete its record at the end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from autotimm.config import FitConfig, decided_by_recipe, defaults, options
from autotimm.config.record import completed
from autotimm.data.module import DataModule
from autotimm.data.splits import own_sides
from autotimm.errors import AutotimmError, ChangedDataError, UnreadableSampleError, UsageError, sentence
from autotimm.records.run_folder import SEARCH, RunFolder
from autotimm.repro.seed import default_threads
from autotimm.runs.factory import settle_data
from autotimm.runs.restore import Rebuilt, build_unrecorded, read_config, rebuild
from autotimm.runs.search import has_trials
from autotimm.train import AutoTrainer
from autotimm.train.machine_limits import machine_problem
from autotimm.train.progress import say

__all__ = [
    "launch", "launch_in", "leave_report", "new_folder", "prepared", "refuse_unused_shares", "reproduce",
    "resume_run", "train", "train_objects",
]  # fmt: skip


def launch(config: FitConfig, *, commit: bool = False) -> Path:
    """Train from a configuration, in a new run folder.

    Args:
        config: The options.
        commit: Whether to write and print, before the first step, what the run is committed to.
    """
    config, data = settle_data(prepared(config))
    folder = new_folder(config.out, config.name or data.source_name, exact=config.name is not None)
    return launch_in(folder, config, data, commit=commit)


def prepared(config: FitConfig) -> FitConfig:
    """A configuration with the threads and the seed of its run, whose limits this machine can keep."""
    if config.threads is None:
        # Recorded as a number, since a replay on another machine must use as many.
        config = config.resolved({"threads": default_threads()}, "this machine")
    if config.seed is None:
        # Drawn and recorded here: Run.data() must reproduce the same split.
        config = config.resolved({"seed": random.getrandbits(32)}, "drawn")
    if config.lr_find and config.lr is not None:
        # The rate of a record, which the search replaces; a rate that was given would have been refused.
        config = config.resolved({"lr": None}, "default")
    _refuse_unused_path(config)
    if problem := machine_problem(config.threads, config.devices, config.accelerator, config.num_workers):
        raise UsageError(f"{problem} Give less.")  # before a large data set is read
    return config


def launch_in(
    folder: RunFolder, config: FitConfig, data: DataModule, whole: Path | None = None, *, commit: bool = False
) -> Path:
    """Train from a configuration whose task is settled, in a folder that is there.

    Args:
        folder: The run folder; removed again if nothing can be trained.
        config: The options.
        data: The data module that was built of them.
        whole: The run that this one is a fold of, which is what is resumed after an interruption.
        commit: As in :func:`launch`.
    """
    # Of a training after folds, whose process was killed before the first step, the folder of checkpoints is there.
    begun = folder.chosen is not None and folder.checkpoints.is_dir()
    try:
        folder.write_config(config.to_yaml())
        data.setup("fit")
        refuse_unused_shares(config, data, config.given)
        rebuilt = build_unrecorded(config, data, folder, whole)
        rebuilt.trainer.commits = commit
    except (KeyboardInterrupt, SystemExit):
        if has_trials(folder):
            say(f"interrupted; resume with: autotimm resume {whole or folder.path}")
        else:
            folder.discard()
        raise
    except BaseException as error:
        if not (isinstance(error, UnreadableSampleError) and has_trials(folder)):  # it can be resumed without the file
            folder.discard()  # nothing was trained
        raise
    return train(rebuilt, folder, "last" if begun else None, whole)


def _refuse_unused_path(config: FitConfig) -> None:
    """Refuse a given path in which neither images nor tables are searched."""
    tables = [table for table in (config.train_csv, config.val_csv, config.test_csv) if table is not None]
    if not (tables and config.image_dir is not None and config.path is not None and config.given("path")):
        return
    if all(os.path.exists(Path(table).expanduser()) for table in tables):
        raise UsageError(
            f"The `path` of fit has no effect with `train_csv` and `image_dir`. Got {config.path} besides. "
            "Leave it out."
        )


def refuse_unused_shares(config: FitConfig, data: DataModule, given: Callable[[str], bool]) -> None:
    """Refuse a given `val_split` or `test_split` if the data has such images of its own."""
    own = own_sides(data.tables)
    for name, side, images in (("val_split", "val", "validation"), ("test_split", "test", "test")):
        if side in own and getattr(config, name) and given(name):
            raise UsageError(
                f"The `{name}` of fit has no effect on data with {images} images of its own, as {data.source_name} is. "
                "Leave it out."
            )


def resume_run(
    folder: RunFolder, *, data: str | Path | None, workers: int | None, devices: int | None = None,
    threads: int | None = None, whole: Path | None = None, drop: str | Sequence[str] = (),
) -> Path:  # fmt: skip
    """Resume the run in a folder, see :meth:`autotimm.Run.resume`; ``whole`` is the run that it is a fold of."""
    starts_over = not [*folder.checkpoints.glob("*.ckpt")]
    rebuilt = rebuild(
        folder.path, folder, data=data, workers=workers, devices=devices, threads=threads,
        weights_needed=starts_over, loggers=True, drop=drop,
    )  # fmt: skip
    return train(rebuilt, folder, ckpt_path="last", whole=whole)


def reproduce(recorded: Path, out: str | Path | None, *, data: str | Path | None) -> Path:
    """Train a run again in a folder of its own, see :meth:`autotimm.Run.reproduce`."""
    place = recorded.with_name(f"{recorded.name}-again") if out is None else Path(out)
    folder = new_folder(place.parent, place.name, exact=out is not None)
    try:
        rebuilt = rebuild(recorded, folder, data=data, loggers=True)
    except AutotimmError:
        folder.discard()
        raise
    if rebuilt.config is not None:
        folder.write_config(rebuilt.config.to_yaml())
    rebuilt.trainer.hashes_anew = True
    return train(rebuilt, folder, ckpt_path=rebuilt.checkpoint)


def train(rebuilt: Rebuilt, folder: RunFolder, ckpt_path: str | Path | None = None, whole: Path | None = None) -> Path:
    """Train, then complete the record with the values that were chosen automatically.

    Args:
        rebuilt: The objects of the run.
        folder: Its folder.
        ckpt_path: The checkpoint to begin at.
        whole: The run that it is a fold of; ``None`` for any other.

    Raises:
        ChangedDataError: If files changed while the run trained, once its record is complete.
    """
    changed = None
    try:
        _require_folder(rebuilt.trainer).resumed_as = whole
        rebuilt.trainer.complete_record = partial(_complete_record, rebuilt, folder)
        rebuilt.trainer.fit(rebuilt.task, datamodule=rebuilt.data, ckpt_path=ckpt_path)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, and SIGTERM
        removed = not has_trials(folder) and folder.discard()
        if folder.chosen is not None:
            said = f"interrupted; resume with: autotimm resume {whole or folder.path}"
            say("interrupted; nothing was saved" if removed else said)
        raise
    except ChangedDataError as error:  # the run is finished all the same
        changed = error
    except BaseException as error:
        if ckpt_path != "last" and folder.unused_after(error, rebuilt.trainer.global_step):
            folder.discard()  # so that the next attempt can use the same name
        raise
    if folder.chosen is not None and rebuilt.trainer.is_global_zero:
        leave_report(folder.path, rebuilt.data)
    path = Path(str(rebuilt.trainer.strategy.broadcast(folder.chosen)))
    if changed is not None:  # only now: the other processes wait for the broadcast
        raise changed
    return path


def train_objects(
    task: pl.LightningModule, data: pl.LightningDataModule, trainer: pl.Trainer, *, commit: bool = False
) -> Path:
    """Train objects that are already built, and return the run's folder.

    Raises:
        UsageError: If the trainer leaves no run folder.
    """
    auto_trainer = _require_folder(trainer)
    auto_trainer.commits = commit
    auto_trainer.fit(task, datamodule=data)
    if auto_trainer.is_global_zero:
        leave_report(auto_trainer.run_folder.path, data)
    return auto_trainer.run_folder.path


def leave_report(folder: Path, data: pl.LightningDataModule | None) -> None:
    """Make the page of a run that has trained or was tested; why it could not be made is said, and harms nothing."""
    from autotimm.report import REPORT, write_report  # late: the first step need not wait for what makes pages

    try:
        write_report(folder, data.tables if isinstance(data, DataModule) else None)
    except (AutotimmError, OSError) as error:
        say(f"{REPORT} could not be made: {error}")


def _require_folder(trainer: pl.Trainer) -> AutoTrainer:
    """Refuse a trainer that leaves no run folder, before it trains."""
    if not isinstance(trainer, AutoTrainer):
        must, cure = "an AutoTrainer or of a class below it, which leaves a run", "Leave the `class_path` out."
        raise UsageError(sentence("trainer", "fit", must, type(trainer).__name__, cure))
    if not trainer.run_folder.enabled:
        switches = ("fast_dev_run", "barebones")
        name = next((switch for switch in switches if trainer.arguments.get(switch)), "run_dir")
        cure = f"Leave it out of the file, and PL_TRAINER_{name.upper()} out of the environment."
        raise UsageError(sentence(name, "fit", "left as it is by default, since fit leaves a run",
                                  trainer.arguments.get(name, False), cure))  # fmt: skip
    return trainer


def new_folder(root: str | Path, name: str, *, exact: bool) -> RunFolder:
    """Create a run folder; of several processes the first creates it, and tells the others when they train."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # set by Lightning when it is imported
        return RunFolder(None, Path(root))
    return RunFolder.create(root, name, exact=exact)


def _complete_record(rebuilt: Rebuilt, folder: RunFolder) -> None:
    """Write into ``config.yaml`` what was chosen for the values left open, and where the data is if it was moved.

    All other lines stay as they are, so that a resumed run has the record of one that was never interrupted.
    """
    config, task, data = rebuilt.config, rebuilt.task, rebuilt.data
    (folder.path / SEARCH).unlink(missing_ok=True)  # the manifest has it
    asked = read_config(folder.path)
    if config is None or not isinstance(asked, FitConfig):
        return
    recipe = task.recipe.as_dict() if task.recipe else {}
    chosen = {
        name: recipe[argument]
        for name, argument in decided_by_recipe().items()
        if recipe.get(argument) is not None and getattr(asked, name) == defaults()[name]
    }
    found = {"batch_size": data.batch_size} if asked.batch_size_find else {}
    moved = {
        name: getattr(config, name)
        for name, option in options().items()
        if option.recorded == "data" and getattr(config, name) != getattr(asked, name)
    }
    before = text = (folder.path / "config.yaml").read_text(encoding="utf-8")
    for values, source in ((chosen, "recipe"), (found, "batch-size finder"), (moved, "moved data")):
        text = completed(text, values, source)
    try:
        folder.write_config(text)
        folder.bind_sources(before, text)
    except OSError as error:  # for example a full disk; the run is complete without
        say(f"config.yaml could not be written again, with what the recipe has chosen: {error.strerror}")
