"""Keyed steps for models that are not ours."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from autotimm.repro.streams import preserve_generators, reseed
from autotimm.tasks import Task

__all__ = ["KeyedSteps"]


class KeyedSteps(Callback):
    """Puts each step of a caller's own ``LightningModule`` on the run's streams; a :class:`Task` does it by itself.

    Args:
        seed: Root seed of the ``step`` stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._found = ExitStack()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reseed by epoch, batch and rank."""
        if not isinstance(pl_module, Task):
            where = ("step", trainer.current_epoch, batch_idx, trainer.global_rank)
            reseed(self.seed, *where, devices=[pl_module.device])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the generators before validation draws from them."""
        if not isinstance(pl_module, Task):
            self._found.enter_context(preserve_generators([torch.device(pl_module.device)]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the generators back as they were."""
        self._found.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give them back also if validation failed."""
        self._found.close()
