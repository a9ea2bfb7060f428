"""The metrics of each epoch, and the table of them."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from autotimm.records.atomic import write_text

__all__ = ["EpochMetrics", "MetricsTable"]


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
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
