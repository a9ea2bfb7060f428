"""The metrics of each epoch, the table of them, and the sums of logged values in checkpoints.

Lightning stores neither the means of logged values nor the states of metrics. After a resume in the middle of an epoch
they would cover its second half alone, and ``metrics.csv`` and ``best.ckpt`` would differ from those of a run that was
never interrupted. And a monitored value that is never logged would make every epoch the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import Metric

from autotimm.errors import nearest, require
from autotimm.records.atomic import write_text
from autotimm.records.csv_cells import csv_text, safe_cell
from autotimm.tasks import Task
from autotimm.train.callbacks.step_hooks import without_idle_step_hooks
from autotimm.types import Stage

__all__ = ["EpochMetrics", "MetricsTable", "SharedLosses", "Unfinished", "Watched", "logged_in_step"]


class Unfinished:
    """The sums of an unfinished training epoch.

    Args:
        logged: Sum and weight of each logged value, by Lightning's name for it.
        metrics: The states of each updated metric, by the name of the module.
        others: Both of the other processes, in the order of their ranks.
    """

    KEY = "unfinished"

    def __init__(
        self,
        logged: dict[str, dict[str, Any]],
        metrics: dict[str, dict[str, Any]],
        others: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.logged, self.metrics, self.others = logged, metrics, others

    @classmethod
    def of(cls, trainer: pl.Trainer, module: pl.LightningModule) -> Unfinished:
        """Return the sums of the running epoch, in each process; every process must take part."""
        sharded = module.parts is not None if isinstance(module, Task) else False
        if isinstance(module, Task) and sharded:
            module.merge_parts()
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
        if trainer.world_size == 1 or sharded:
            return cls(logged, metrics)
        shares: list[Any] = [None] * trainer.world_size
        share = move_data_to_device({"logged": logged, "metrics": metrics}, torch.device("cpu"))
        torch.distributed.all_gather_object(shares, share)
        return cls(**shares[0], others=shares[1:])

    def as_dict(self) -> dict[str, Any]:
        """Return tensors and plain data for a checkpoint."""
        sums = {"logged": self.logged, "metrics": self.metrics}
        return sums | ({"others": list(self.others)} if self.others else {})

    def share(self, rank: int) -> Unfinished:
        """Return the sums of one process."""
        return self if rank == 0 or rank > len(self.others) else Unfinished(**self.others[rank - 1])

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


@without_idle_step_hooks
class SharedLosses(Callback):
    """Sums the logged training losses over all processes at the end of an epoch; Lightning would show those of one.

    Losses of single steps are those of the process: to share them would make every step wait. It comes before all other
    callbacks, which may look at the values.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the sums of this process by those of all."""
        if isinstance(pl_module, Task) and pl_module.parts is not None:
            pl_module.log_parts(Stage.TRAIN)  # losses of shards are those of the whole already
            return
        if trainer.world_size == 1 or not isinstance(pl_module, Task):
            return  # a module of the caller's own says by itself what is shared
        for result in _results(trainer).values():
            ours = result.is_tensor and result.meta.on_epoch and result.meta.is_mean_reduction
            if ours and result.meta.name.startswith("train/") and not (result.meta.sync.should or result.has_reset):
                for sums in (result.value, result.cumulated_batch_size):
                    torch.distributed.all_reduce(sums)


@without_idle_step_hooks
class EpochMetrics(Callback):
    """Separates the metrics of an epoch from those that Lightning still holds of an earlier one.

    Lightning keeps the values of the last validation until the next. After an epoch without validation, they would
    otherwise be taken for values of that epoch.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._names: set[str] = set()  # of what validation measures
        self._validated = -1  # the last epoch in which it did

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs that is resumed between a validation and the end of that epoch."""
        return {"names": sorted(self._names), "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self._names, self._validated = set(state_dict["names"]), state_dict["validated"]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the values before validation."""
        self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note as validation's the values that are new or were replaced."""
        if trainer.sanity_checking:
            return
        self._names |= {name for name, value in trainer.callback_metrics.items() if self._before.get(name) is not value}
        self._validated = trainer.current_epoch

    def validation(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the scalar metrics of the validation that just ended, by name."""
        return {name: value for name, value in self.of(trainer).items() if name in self._names}

    def of(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return the scalar metrics of the running epoch, without Lightning's ``_step`` and ``_epoch`` twins."""
        metrics = trainer.callback_metrics
        left_out = {name + suffix for name in metrics for suffix in ("_step", "_epoch")}
        if self._validated != trainer.current_epoch:
            left_out |= self._names
        return {name: float(value) for name, value in metrics.items() if name not in left_out and value.numel() == 1}


@without_idle_step_hooks
class MetricsTable(Callback):
    """Writes ``metrics.csv``: one row per epoch, every logged metric a column.

    Lightning's ``CSVLogger`` empties its folder when a run is resumed, and writes validation and training into separate
    rows.

    Args:
        epochs: Knows the metrics of each epoch.
    """

    def __init__(self, epochs: EpochMetrics) -> None:
        self.epochs = epochs
        self.path: Path | None = None
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, so that a resumed run continues from those of its checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cut the table of a resumed run back to its checkpoint."""
        self._write(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch, and rewrite the whole table, since there may be new columns."""
        rate = trainer.optimizers[0].param_groups[-1]["lr"] if trainer.optimizers else math.nan
        self.rows.append(
            {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate, **self.epochs.of(trainer)}
        )
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if self.path is None or not trainer.is_global_zero or not (self.rows or self.path.exists()):
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        rows = ([row.get(name, "") for name in columns] for row in self.rows)
        write_text(self.path, csv_text([[*map(safe_cell, columns)], *rows]))
