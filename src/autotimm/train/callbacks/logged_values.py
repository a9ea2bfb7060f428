"""What is added up over an epoch, so that a run that was stopped in the middle of one goes on with the same sums.

Lightning stores neither the means of what is logged nor the states of metrics: after a resume in the middle of an
epoch they would speak of its second half alone, and ``metrics.csv`` and ``best.ckpt`` would differ from those of a run
that was never stopped.

Whether the value that is to tell the best epoch is logged: without it, every epoch would pass for the best.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device
from torchmetrics import Metric

from autotimm.errors import nearest, require
from autotimm.tasks import Task

__all__ = ["Unfinished", "Watched", "logged_in_step"]


class Unfinished:
    """The sums of a training epoch that is not over.

    Args:
        logged: Sum and weight of each value that was logged, by Lightning's name for it.
        metrics: The states of each metric that was updated, by the name of the module.
    """

    KEY = "unfinished"

    def __init__(self, logged: dict[str, dict[str, Any]], metrics: dict[str, dict[str, Any]]) -> None:
        self.logged, self.metrics = logged, metrics

    @classmethod
    def of(cls, trainer: pl.Trainer, module: pl.LightningModule) -> Unfinished:
        """Read the sums of the running epoch."""
        logged = {
            key: {name: getattr(value, name) for name in value._defaults}
            for key, value in _results(trainer).items()
            if value.is_tensor and value.meta.on_epoch and not value.has_reset
        }
        metrics = {
            name: {
                "count": metric._update_count,
                "states": {state: getattr(metric, state) for state in metric._defaults},
            }
            for name, metric in module.named_modules()
            if isinstance(metric, Metric) and metric._update_count
        }
        return cls(logged, metrics)

    def as_dict(self) -> dict[str, Any]:
        """Tensors and plain data for a checkpoint."""
        return {"logged": self.logged, "metrics": self.metrics}

    def restore_metrics(self, module: pl.LightningModule) -> None:
        """Put the states of metrics back; before the first step."""
        modules = dict(module.named_modules())
        for name, found in self.metrics.items():
            metric = modules[name]
            for state, value in move_data_to_device(found["states"], module.device).items():
                setattr(metric, state, value)
            metric._update_count = found["count"]

    def restore_logged(self, trainer: pl.Trainer) -> None:
        """Add the sums to those of the first step, of which Lightning has made a place for each.

        Addition of two numbers does not depend on their order, so that the bits are those of one sum from the start.
        """
        results = _results(trainer)
        for key, saved in self.logged.items():
            if (result := results.get(key)) is None:
                continue
            for name, value in move_data_to_device(saved, result.value.device).items():
                merge = (
                    torch.max
                    if result.meta.is_max_reduction
                    else torch.min
                    if result.meta.is_min_reduction
                    else torch.add
                )
                setattr(result, name, merge(value, getattr(result, name)))


def logged_in_step(trainer: pl.Trainer) -> set[str]:
    """The names of what training steps have logged in this epoch."""
    return {value.meta.name for value in _results(trainer).values()}


def _results(trainer: pl.Trainer) -> dict[str, Any]:
    # Private to Lightning, and the only place where these sums are.
    return trainer.fit_loop.epoch_loop._results


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
