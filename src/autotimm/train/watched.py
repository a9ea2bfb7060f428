"""Whether the value that is to tell the best epoch is logged: without it, every epoch would pass for the best."""

from __future__ import annotations

from collections.abc import Iterable

import pytorch_lightning as pl

from autotimm.errors import nearest, require
from autotimm.tasks import Task
from autotimm.train.unfinished import logged_in_step

__all__ = ["Watched"]


class Watched:
    """Looks for the name of a loss among what a task logs, as soon as that can be known.

    Metrics have names that are known before; which losses there are, a step has to show.

    Args:
        name: What was asked for; nothing is looked for if it is no loss.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name if "loss" in (name or "") else None

    def after_validation(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look for a loss of validation: for the first time before training, in the sanity check.

        Raises:
            UsageError: If there is none of that name.
        """
        if self.name is not None and self.name.startswith("val/"):
            self._require(module, trainer.callback_metrics)

    def after_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look for a loss of training after the first step, unless the task may log more at the end of the epoch.

        Raises:
            UsageError: If there is none of that name.
        """
        at_the_end = type(module).on_train_epoch_end is not pl.LightningModule.on_train_epoch_end
        if self.name is not None and self.name.startswith("train/") and not at_the_end:
            self._require(module, logged_in_step(trainer))

    def after_epoch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look for what was not looked for in the first step.

        Raises:
            UsageError: If there is none.
        """
        if self.name is not None and not self.name.startswith("val/"):
            self._require(module, trainer.callback_metrics)

    def _require(self, module: pl.LightningModule, logged: Iterable[str]) -> None:
        name, self.name = str(self.name), None  # once: what was logged is not looked for again
        # A module of the caller's own may log a value in some epochs only, and says no names by which to tell.
        if isinstance(module, Task):
            found = {*logged, "train/loss"}
            twins = {one + suffix for one in found for suffix in ("_step", "_epoch")}
            names = sorted(found - twins)
            cure = nearest(name, names) or "Give one of these, or leave it out."
            require(name in found, "monitor", "a task", f"one of {', '.join(names)}", name, cure)
