"""Finding a learning rate or a batch size, only when asked for, on a copy of the task.

Finding trains. On the task itself that would change weights, streams and the caller's generators; on a copy, with a
trainer of its own, it changes nothing but the number that was looked for.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.tuner.tuning import Tuner

from autotimm.data.module import DataModule
from autotimm.errors import RunError, UsageError, is_whole, number, require, require_flags
from autotimm.repro.streams import preserve_generators
from autotimm.tasks import Task
from autotimm.train.lightning_compat import seeded_devices

__all__ = ["TunerConfig"]


@dataclass(frozen=True)
class TunerConfig:
    """What to find before training.

    Attributes:
        lr: Find a learning rate by the range test (Smith, "Cyclical learning rates", WACV 2017).
        batch_size: Find the largest power of two that fits the device; seldom useful on a CPU.
        steps: Steps of the range test.
        min_lr: First learning rate of the range test.
        max_lr: Last learning rate of the range test.
        max_batch_size: Upper limit of the search for a batch size.

    Raises:
        UsageError: If a value is out of range.
    """

    lr: bool = False
    batch_size: bool = False
    steps: int = 100
    min_lr: float = 1e-7
    max_lr: float = 1.0
    max_batch_size: int = 1024

    def __post_init__(self) -> None:
        """Check the values."""
        owner = "TunerConfig"
        require_flags(owner, lr=self.lr, batch_size=self.batch_size)
        for name, least, usual in (("steps", 2, 100), ("max_batch_size", 1, 1024)):
            value = getattr(self, name)
            must = f"an integer of at least {least}"
            require(is_whole(value, least), name, owner, must, value, f"Give for example {usual}.")
        require(number(self.min_lr) > 0, "min_lr", owner, "a number above 0", self.min_lr, "Give for example 1e-7.")
        above = number(self.max_lr) > self.min_lr
        require(above, "max_lr", owner, f"a number above min_lr, {self.min_lr:g}", self.max_lr, "Give for example 1.")


def tune(trainer: pl.Trainer, model: pl.LightningModule, data: object, config: TunerConfig) -> None:
    """Find what the configuration asks for and set it on the task and the data module.

    Raises:
        UsageError: If the model is no :class:`Task`, or the data no :class:`DataModule`.
        RunError: If the range test finds no usable rate.
    """
    if not isinstance(model, Task) or not isinstance(data, DataModule):
        raise UsageError("The `tuner` of AutoTrainer needs a Task and a DataModule of autotimm. Give `datamodule=`.")
    if config.batch_size:
        data.batch_size = data.arguments["batch_size"] = _find_batch_size(trainer, model, data, config)
    if config.lr:
        model.set_lr(_find_lr(trainer, model, data, config))


@contextmanager
def _probe(trainer: pl.Trainer, epochs: int) -> Iterator[pl.Trainer]:
    """Give a plain trainer that writes no file, and restore the generators afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        probe = pl.Trainer(
            accelerator=trainer.accelerator, devices=1, precision=trainer.precision, max_epochs=epochs,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder,
        )  # fmt: skip
        with preserve_generators(seeded_devices(probe)):
            yield probe


def _copies(model: Task, data: DataModule) -> tuple[Any, Any]:
    task, module = copy.deepcopy(model), copy.deepcopy(data)
    task.run_seed, module.run_seed = model.run_seed, data.run_seed
    return task, module


def _find_lr(trainer: pl.Trainer, model: Task, data: DataModule, config: TunerConfig) -> float:
    task, module = _copies(model, data)
    task.set_lr(config.min_lr)
    # As many epochs as steps, so that the number of steps ends the range test on a small data set too.
    with _probe(trainer, epochs=config.steps) as probe:
        finder = Tuner(probe).lr_find(
            task, datamodule=module, min_lr=config.min_lr, max_lr=config.max_lr, num_training=config.steps,
            update_attr=False, attr_name="lr",
        )  # fmt: skip
    rate = finder.suggestion() if finder is not None else None
    if rate is None:
        raise RunError(
            "The range test found no learning rate: the loss never fell, or there were too few steps. "
            "Give `lr` yourself, or more `steps`."
        )
    return float(rate)


def _find_batch_size(trainer: pl.Trainer, model: Task, data: DataModule, config: TunerConfig) -> int:
    task, module = _copies(model, data)
    with _probe(trainer, epochs=1) as probe:
        largest = Tuner(probe).scale_batch_size(
            task, datamodule=module, mode="power", steps_per_trial=1, init_val=min(8, config.max_batch_size),
            max_trials=max(1, (config.max_batch_size // 8).bit_length()), batch_arg_name="batch_size",
        )  # fmt: skip
    return min(int(largest or data.batch_size), config.max_batch_size)
