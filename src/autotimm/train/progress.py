"""What a run shows while it runs: a header, then a bar on a terminal or a line per epoch elsewhere.

It all goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from rich.console import Console

from autotimm.data.module import DataModule
from autotimm.tasks import Task
from autotimm.train.callbacks.epoch_metrics import EpochMetrics

__all__ = ["make_progress", "say"]


def make_progress(epochs: EpochMetrics) -> ProgressBar:
    """A live bar if standard error is a terminal, else plain lines."""
    return LiveBar(epochs) if sys.stderr.isatty() else PlainLines(epochs)


def say(*lines: str) -> None:
    """Print lines for people."""
    for line in lines:
        Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def header(trainer: pl.Trainer, model: pl.LightningModule) -> list[str]:
    """The lines that say what is about to be trained, on what and how."""
    lines: list[str] = []
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, DataModule):
        sizes = ", ".join(f"{len(table)} {split}" for split, table in data.tables.items())
        lines.append(f"data: {sizes} images, {len(data.class_names)} classes, {data.image_size} px")
        lines += data.notices
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    name = getattr(model.hparams, "backbone", type(model).__name__)
    lines.append(f"model: {name}, {millions:.1f} M parameters")
    if isinstance(model, Task):
        lines += [model.weights.note, model.recipe.reason if model.recipe else ""]
    folder = trainer.run_folder  # type: ignore[attr-defined]
    if folder.enabled and folder.chosen is not None and trainer.listener is None:  # type: ignore[attr-defined]
        lines.append(f"run folder: {folder.path}")
    return [line for line in lines if line]


class _Header(ProgressBar):
    """What both ways of showing progress share."""

    _resumed = False

    def __init__(self, epochs: EpochMetrics) -> None:
        super().__init__()
        self.epochs = epochs
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._resumed = bool(trainer.ckpt_path)
        if trainer.is_global_zero:
            for line in header(trainer, pl_module):
                self.console.print(line, markup=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Say where a run goes on; only now is it known for sure."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._resumed and trainer.is_global_zero:
            where = f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}, step {trainer.global_step}"
            self.console.print(f"resumed at {where}", markup=False)
        self._resumed = False

    def epoch_line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """The metrics of an epoch in one line, without those that a task calls details."""
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        hidden = pl_module.details if isinstance(pl_module, Task) else ()
        found = self.epochs.of(trainer).items()
        metrics = "  ".join(f"{name} {value:.3g}" for name, value in found if name not in hidden)
        return f"epoch {trainer.current_epoch + 1}{of}  {metrics}"


class PlainLines(_Header):
    """One line per epoch, for files and pipes."""

    def disable(self) -> None:
        """Say nothing, on every process but the first."""
        self.console.quiet = True

    def enable(self) -> None:
        """Undo :meth:`disable`."""
        self.console.quiet = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the epoch went."""
        self.console.print(self.epoch_line(trainer, pl_module), markup=False)


class LiveBar(_Header, RichProgressBar):
    """Lightning's rich bar under our header, with the epochs so far above it."""

    def __init__(self, epochs: EpochMetrics) -> None:
        RichProgressBar.__init__(self, leave=False, console_kwargs={"stderr": True})
        self.epochs = epochs
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave a line of the epoch above the bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.progress is not None and trainer.is_global_zero:
            self.progress.console.print(self.epoch_line(trainer, pl_module), markup=False, highlight=False)

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.live.transient = True  # the lines of the epochs stay, the bar goes

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts epochs from 0 here; the lines of the epochs, like people, from 1.
        last = self.trainer.max_epochs
        description = f"epoch {current_epoch + 1}" + (f"/{last}" if last and last > 0 else "")
        return f"{description:{len(self.validation_description)}}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss beside the bar; everything else is in the line of the epoch."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name == "train/loss_step"}
