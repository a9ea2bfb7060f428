"""Training from a configuration, or from a run that was rebuilt: the folder, and what is written down at the end."""

from __future__ import annotations

import random
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from autotimm.config import FitConfig
from autotimm.data.module import DataModule
from autotimm.data.table_checks import own_sides
from autotimm.errors import UsageError, sentence
from autotimm.records.run_folder import RunFolder
from autotimm.repro.seed import default_threads
from autotimm.runs.factory import build_task, build_trainer, settle_data
from autotimm.runs.restore import Rebuilt
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.train.progress import say

__all__ = ["launch", "train", "train_objects"]


def launch(config: FitConfig) -> Path:
    """Train as a configuration says, in a run folder of its own."""
    if config.threads is None:
        # Fixed now and not when it is needed: the bits of a replay on another machine depend on it.
        config = config.resolved({"threads": default_threads()}, "this machine")
    if config.seed is None:
        # Drawn here and recorded: the run's own data module must find the same split again.
        config = config.resolved({"seed": random.getrandbits(32)}, "drawn")
    if config.lr_find and config.lr is not None:
        # That of a record, or it would have been refused: what is written down is the one that will be found.
        config = config.resolved({"lr": None}, "default")
    _refuse_unused_path(config)
    config, data = settle_data(config)
    folder = _open_folder(config, data.source_name)
    try:
        folder.write_config(config.to_yaml())
        data.setup("fit")
        _refuse_unused_shares(config, data)
        task = build_task(config, data)
        trainer = build_trainer(config, folder, task, data)
    except BaseException:
        folder.discard()  # nothing was trained: leave no empty run behind
        raise
    return train(Rebuilt(task, data, trainer, config), folder)


def _refuse_unused_path(config: FitConfig) -> None:
    """Refuse a folder that neither images nor tables are looked for in, if it was asked for."""
    tables = [one for one in (config.train_csv, config.val_csv, config.test_csv) if one is not None]
    if not (tables and config.image_dir is not None and config.path is not None and config.given("path")):
        return
    if all(Path(one).expanduser().exists() for one in tables):
        raise UsageError(
            f"The `path` of fit has no effect with `train_csv` and `image_dir`. Got {config.path} besides. "
            "Leave it out."
        )


def _refuse_unused_shares(config: FitConfig, data: DataModule) -> None:
    """Refuse a share that was asked for of data with such a side of its own."""
    own = own_sides(data.tables)
    for name, side, images in (("val_split", "val", "validation"), ("test_split", "test", "test")):
        if side in own and getattr(config, name) and config.given(name):
            raise UsageError(
                f"The `{name}` of fit has no effect on data with {images} images of its own, as {data.source_name} is. "
                "Leave it out."
            )


def train(made: Rebuilt, folder: RunFolder, ckpt_path: str | None = None) -> Path:
    """Train what was built, and write down what was chosen for the values left open."""
    try:
        _require_folder(made.trainer)
        made.trainer.fit(made.task, datamodule=made.data, ckpt_path=ckpt_path)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, and SIGTERM
        removed = folder.discard()
        if folder.chosen is not None:
            said = f"stopped; go on with: autotimm resume {folder.path}"
            say("stopped before there was anything to keep" if removed else said)
        raise
    except BaseException as error:
        if ckpt_path is None and folder.unused_after(error):
            folder.discard()  # half a folder would stand in the way of another try under its name
        raise
    if made.config is not None:
        try:
            folder.write_config(_with_recipe(made.config, made.task, made.data).to_yaml())
        except OSError as error:  # a disk that is full by now: the run is whole without
            say(f"config.yaml could not be written again, with what the recipe has chosen: {error.strerror}")
    return Path(str(made.trainer.strategy.broadcast(folder.chosen)))


def train_objects(task: pl.LightningModule, data: pl.LightningDataModule, trainer: pl.Trainer) -> Path:
    """Train objects that are already built, and return the run's folder.

    Raises:
        UsageError: If the trainer is none that leaves a run.
    """
    made = _require_folder(trainer)
    made.fit(task, datamodule=data)
    return made.run_folder.path


def _require_folder(trainer: pl.Trainer) -> AutoTrainer:
    """Refuse a trainer that leaves nothing before it trains: `fit` would have no run to name at the end."""
    if not isinstance(trainer, AutoTrainer):
        must, cure = "an AutoTrainer or of a class below it, which leaves a run", "Leave the `class_path` out."
        raise UsageError(sentence("trainer", "fit", must, type(trainer).__name__, cure))
    if not trainer.run_folder.enabled:
        name = next((one for one in ("fast_dev_run", "barebones") if trainer.arguments.get(one)), "run_dir")
        cure = f"Leave it out of the file, and PL_TRAINER_{name.upper()} out of the environment."
        raise UsageError(sentence(name, "fit", "left as it is by default, since fit leaves a run",
                                  trainer.arguments.get(name, False), cure))  # fmt: skip
    return trainer


def _open_folder(config: FitConfig, name: str) -> RunFolder:
    """Make the run's folder; of several processes the first makes it, and tells the others when they train."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # set by Lightning when it is imported
        return RunFolder(None, Path(config.out))
    return RunFolder.create(config.out, config.name or name, exact=config.name is not None)


def _with_recipe(config: FitConfig, task: Task, data: DataModule) -> FitConfig:
    """The configuration with what was chosen for the values left open, and by whom."""
    found = {"batch_size": data.batch_size} if config.batch_size_find else {}
    recipe = task.recipe.as_dict() if task.recipe else {}
    recipe["clip"] = recipe.pop("gradient_clip", None)
    open_values = {
        name: value
        for name, value in recipe.items()
        if name != "reason" and value is not None and getattr(config, name) in (None, "auto")
    }
    resolved = config.resolved(open_values, "recipe")
    return resolved.resolved(found, "batch-size finder") if found else resolved
