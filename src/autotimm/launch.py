"""Training from a configuration, or from a run that was rebuilt: the folder, and what is written down at the end."""

from __future__ import annotations

import random
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from autotimm.build import build_data, build_task, build_trainer, settle
from autotimm.config import FitConfig
from autotimm.data.module import DataModule
from autotimm.rebuild import Rebuilt
from autotimm.repro.seed import default_threads
from autotimm.tasks import Task
from autotimm.train.folder import RunFolder
from autotimm.train.progress import say

__all__ = ["launch", "train"]


def launch(config: FitConfig) -> Path:
    """Train as a configuration says, in a run folder of its own."""
    if config.threads is None:
        # Fixed now and not when it is needed: the bits of a replay on another machine depend on it.
        config = config.resolved({"threads": default_threads()}, "this machine")
    if config.seed is None:
        # Drawn here and recorded: the run's own data module must find the same split again.
        config = config.resolved({"seed": random.getrandbits(32)}, "drawn")
    config = settle(config)
    data = build_data(config)
    folder = _open_folder(config, data.source_name)
    try:
        folder.write_config(config.to_yaml())
        data.setup("fit")
        task = build_task(config, data)
        trainer = build_trainer(config, folder, task, data)
    except BaseException:
        folder.discard()  # nothing was trained: leave no empty run behind
        raise
    return train(Rebuilt(task, data, trainer, config), folder)


def train(made: Rebuilt, folder: RunFolder, ckpt_path: str | None = None) -> Path:
    """Train what was built, and write down what was chosen for the values left open."""
    try:
        made.trainer.fit(made.task, datamodule=made.data, ckpt_path=ckpt_path)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, and SIGTERM
        removed = folder.discard()
        if folder.chosen is not None:
            said = f"stopped; go on with: autotimm resume {folder.path}"
            say("stopped before there was anything to keep" if removed else said)
        raise
    if made.config is not None:
        folder.write_config(_with_recipe(made.config, made.task, made.data).to_yaml())
    return Path(str(made.trainer.strategy.broadcast(folder.chosen)))


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
