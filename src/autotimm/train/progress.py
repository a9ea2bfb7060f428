"""What a run shows while it trains: a header, its progress, and a summary at the end.

On a terminal that is a live bar under a line per epoch, in a notebook one output that is updated, elsewhere a line per
epoch. All of it goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import os
import sys
import time
from abc import abstractmethod
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from autotimm.data.module import DataModule
from autotimm.errors import printable
from autotimm.image_size import written_size
from autotimm.tasks import Task
from autotimm.train.callbacks.epoch_metrics import EpochMetrics

__all__ = ["duration", "make_progress", "metrics_text", "say", "show", "show_notices"]

_REFRESH = 0.5  # seconds between two updates of a notebook's output


def make_progress(epochs: EpochMetrics) -> ProgressBar:
    """Return a live bar if standard error is a terminal, one output for a notebook, else plain lines."""
    if Console(stderr=True).is_jupyter:
        return NotebookOutput(epochs)
    return LiveBar(epochs) if sys.stderr.isatty() else PlainLines(epochs)


def say(*lines: str) -> None:
    """Print lines for people to standard error, control characters in names escaped; of several processes one does."""
    for line in lines if rank_zero_only.rank == 0 else ():  # type: ignore[attr-defined]  # set by Lightning
        Console(stderr=True, highlight=False, soft_wrap=True, emoji=False).print(printable(line), markup=False)


def show(trainer: pl.Trainer, *lines: str) -> None:
    """Print lines where the trainer shows its progress, which in a notebook is one output."""
    progress = trainer.progress_bar_callback
    if isinstance(progress, _Progress):
        progress.write(*lines)
    else:
        say(*lines)


def show_notices(trainer: pl.Trainer) -> None:
    """Print what is noteworthy about the data if nothing else shows it: without progress, and in no replay."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    is_quiet = not trainer.shows_progress and trainer.listener is None  # type: ignore[attr-defined]
    if is_quiet and isinstance(data, DataModule):
        say(*data.notices)


def duration(seconds: float) -> str:
    """A time in the two units that say most.

    Example:
        >>> duration(7.6), duration(192), duration(7500)
        ('8 s', '3 min 12 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def metrics_text(metrics: dict[str, float], module: pl.LightningModule) -> str:
    """Metrics in one line, without those that a task calls details."""
    hidden = module.details if isinstance(module, Task) else ()
    return "  ".join(f"{name} {value:.3g}" for name, value in metrics.items() if name not in hidden)


def header(trainer: pl.Trainer, model: pl.LightningModule) -> list[str]:
    """The lines that say what is about to be trained, on what data and how."""
    lines: list[str] = []
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, DataModule):
        sizes = ", ".join(f"{len(table)} {split}" for split, table in data.tables.items())
        lines.append(f"data: {sizes} images, {len(data.class_names)} classes, {written_size(data.image_size)} px")
        lines += data.notices
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    name = getattr(model.hparams, "backbone", type(model).__name__)
    lines.append(f"model: {name}, {millions:.1f} M parameters")
    if isinstance(model, Task):
        lines += [model.weights.note, trainer.recipe_note, model.recipe.reason if model.recipe else ""]  # type: ignore[attr-defined]
    threads, cores = trainer.threads, os.cpu_count() or 1  # type: ignore[attr-defined]
    if threads > cores:
        lines.append(f"threads: {threads} on {cores} CPU cores, which is slower than one per core")
    folder = trainer.run_folder  # type: ignore[attr-defined]
    if folder.enabled and folder.chosen is not None and trainer.listener is None:  # type: ignore[attr-defined]
        lines.append(f"run folder: {folder.path}")
    return [line for line in lines if line]


class _Progress(ProgressBar):
    """What all ways of showing progress share; people count epochs, batches and steps from 1."""

    _resumed = False

    def __init__(self, epochs: EpochMetrics) -> None:
        super().__init__()
        self.epochs = epochs

    @abstractmethod
    def write(self, *lines: str) -> None:
        """Show lines that stay."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._resumed = bool(trainer.ckpt_path)
        if trainer.is_global_zero:
            self.write(*header(trainer, pl_module))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show where a run is resumed, which is certain only now."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._resumed and trainer.is_global_zero:
            place = f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}, step {trainer.global_step}"
            self.write(f"resumed at {place}")
        self._resumed = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show a line of the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            self.write(f"{_epoch(trainer)}  {metrics_text(self.epochs.of(trainer), pl_module)}")


def _epoch(trainer: pl.Trainer) -> str:
    last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{last}"


class PlainLines(_Progress):
    """One line per epoch, for files and pipes."""

    def __init__(self, epochs: EpochMetrics) -> None:
        super().__init__(epochs)
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def write(self, *lines: str) -> None:
        """Print lines."""
        for line in lines:
            self.console.print(printable(line), markup=False)

    def disable(self) -> None:
        """Print nothing, on every process but the first."""
        self.console.quiet = True

    def enable(self) -> None:
        """Undo :meth:`disable`."""
        self.console.quiet = False


class LiveBar(_Progress, RichProgressBar):
    """Lightning's rich bar under our header, with a line per epoch above it."""

    def __init__(self, epochs: EpochMetrics) -> None:
        RichProgressBar.__init__(self, leave=False, console_kwargs={"stderr": True})
        self.epochs = epochs
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def write(self, *lines: str) -> None:
        """Print lines, above the bar while there is one."""
        console = self.console if self.progress is None else self.progress.console
        for line in lines:
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.live.transient = True  # the lines of the epochs stay, the bar goes

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts epochs from 0 here.
        return f"{_epoch(self.trainer):{len(self.validation_description)}}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The loss beside the bar; everything else is in the line of the epoch."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name == "train/loss_step"}


class NotebookOutput(_Progress):
    """One output of a notebook's cell, which is updated: printing would add an output per line."""

    def __init__(self, epochs: EpochMetrics) -> None:
        super().__init__(epochs)
        self._lines: list[str] = []
        self._output: Any = None
        self._quiet = False
        self._refreshed = 0.0

    def write(self, *lines: str) -> None:
        """Add lines to the output."""
        self._lines += map(printable, lines)
        self._refresh()

    def _refresh(self, status: str = "") -> None:
        """Show the lines, and below them one that the next refresh replaces."""
        if self._quiet:
            return
        from IPython.display import display  # there in every notebook, and nowhere else needed

        text = {"text/plain": "\n".join([*self._lines, *([status] if status else [])])}
        if self._output is None:
            self._output = display(text, raw=True, display_id=True)
        else:
            self._output.update(text, raw=True)
        self._refreshed = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a new output."""
        self._lines, self._output = [], None
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Show the place in the epoch, now and then."""
        super().on_train_batch_end(trainer, *args)
        if time.monotonic() - self._refreshed >= _REFRESH:
            done, batches = trainer.fit_loop.batch_idx + 1, trainer.num_training_batches
            of = f"/{batches}" if batches != float("inf") else ""
            self._refresh(f"{_epoch(trainer)}, batch {done}{of}")

    def disable(self) -> None:
        """Show nothing, on every process but the first."""
        self._quiet = True

    def enable(self) -> None:
        """Undo :meth:`disable`."""
        self._quiet = False
