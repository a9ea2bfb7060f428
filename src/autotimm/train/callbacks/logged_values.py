"""The values that are logged during an epoch: their sums in checkpoints, and whether the monitored one is among them.

Lightning stores neither the means of logged values nor the states of metrics. After a resume in the middle of an epoch
they would cover its second half alone, and ``metrics.csv`` and ``best.ckpt`` would differ from those of a run that was
never interrupted. And a monitored value that is never logged would make every epoch the best.
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
    """The sums of an unfinished training epoch.

    Args:
        logged: Sum and weight of each logged value, by Lightning's name for it.
        metrics: The states of each updated metric, by the name of the module.
    """

    KEY = "unfinished"

    def __init__(self, logged: dict[str, dict[str, Any]], metrics: dict[str, dict[str, Any]]) -> None:
        self.logged, self.metrics = logged, metrics

    @classmethod
    def of(cls, trainer: pl.Trainer, module: pl.LightningModule) -> Unfinished:
        """Return the sums of the running epoch."""
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
        """Return tensors and plain data for a checkpoint."""
        return {"logged": self.logged, "metrics": self.metrics}

    def restore_metrics(self, module: pl.LightningModule) -> None:
        """Restore the states of metrics, before the first step."""
        modules = dict(module.named_modules())
        for name, saved in self.metrics.items():
            metric = modules[name]
            for state, value in move_data_to_device(saved["states"], module.device).items():
                setattr(metric, state, value)
            metric._update_count = saved["count"]

    def restore_logged(self, trainer: pl.Trainer) -> None:
        """Add the sums to those of the first step, after which Lightning has an entry for each.

        The order of two summands does not matter, so that the bits are those of an epoch that was never interrupted.
        """
        results = _results(trainer)
        for key, saved in self.logged.items():
            if (result := results.get(key)) is None:
                continue
            for name, value in move_data_to_device(saved, result.value.device).items():
                extreme = torch.min if result.meta.is_min_reduction else torch.add
                merge = torch.max if result.meta.is_max_reduction else extreme
                setattr(result, name, merge(value, getattr(result, name)))


def logged_in_step(trainer: pl.Trainer) -> set[str]:
    """Return the names of the values that training steps have logged in this epoch."""
    return {value.meta.name for value in _results(trainer).values()}


def _results(trainer: pl.Trainer) -> dict[str, Any]:
    # Private to Lightning, but these sums are nowhere else.
    return trainer.fit_loop.epoch_loop._results


class Watched:
    """Checks that a monitored loss is logged, as soon as that can be known.

    The names of metrics are known in advance; those of losses only after a step.

    Args:
        name: The monitored value; nothing is checked if it is no loss.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name if "loss" in (name or "") else None

    def after_validation(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Check a validation loss, for the first time in the sanity check before training.

        Raises:
            UsageError: If no value of that name is logged.
        """
        if self.name is not None and self.name.startswith("val/"):
            self._require(module, trainer.callback_metrics)

    def after_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Check a training loss after the first step, unless the task may log more at the end of the epoch.

        Raises:
            UsageError: If no value of that name is logged.
        """
        at_the_end = type(module).on_train_epoch_end is not pl.LightningModule.on_train_epoch_end
        if self.name is not None and self.name.startswith("train/") and not at_the_end:
            self._require(module, logged_in_step(trainer))

    def after_epoch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Check what could not be checked after the first step.

        Raises:
            UsageError: If no value of that name is logged.
        """
        if self.name is not None and not self.name.startswith("val/"):
            self._require(module, trainer.callback_metrics)

    def _require(self, module: pl.LightningModule, logged: Iterable[str]) -> None:
        name, self.name = str(self.name), None  # checked once
        # A module of the caller's own may log a value in some epochs only.
        if isinstance(module, Task):
            known = {*logged, "train/loss"}
            twins = {value + suffix for value in known for suffix in ("_step", "_epoch")}
            names = sorted(known - twins)
            cure = nearest(name, names) or "Give one of these, or leave it out."
            require(name in known, "monitor", "a task", f"one of {', '.join(names)}", name, cure)
