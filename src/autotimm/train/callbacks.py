"""What a trainer does beside training: checkpoints, the table of metrics, keyed steps for models that are not ours."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint

from autotimm.errors import RunError
from autotimm.repro.files import atomic_path, write_text
from autotimm.repro.streams import preserve_generators, reseed
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint

__all__ = ["KeyedSteps", "MetricsTable", "RunCheckpoint"]


def epoch_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The scalar metrics of the epoch that just ended, by name; the per-step twins of Lightning left out."""
    found = trainer.callback_metrics
    left_out = {name + suffix for name in found for suffix in ("_step", "_epoch")}
    every = trainer.check_val_every_n_epoch
    if every is not None and (trainer.current_epoch + 1) % every:
        # Lightning keeps those of the last validation, which belong to an earlier epoch.
        left_out |= {name for name in found if name.startswith("val/")}
    return {name: float(value) for name, value in found.items() if name not in left_out and value.numel() == 1}


class _WhereTold(TorchCheckpointIO):
    """Writes to the path it is given. Lightning writes to the system's folder for temporary files first, and moves.

    That folder may be small, or kept in memory; a file that is replaced atomically needs no such help.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()  # torch's own writer hides the reason when a disk is full
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(buffer.getbuffer())


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt`` in a folder.

    It differs from Lightning's ``ModelCheckpoint`` in what a moved run needs: no path is stored, so that the best score
    survives a move and no user name enters a file. Files are replaced atomically: a crash or a full disk while one is
    written leaves the one before as it was.

    Args:
        monitor: The logged value that tells the best epoch; without it, or before it is logged, the last is the best.
        mode: ``"max"`` or ``"min"``; by default the smaller loss, or the larger of anything else.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None) -> None:
        self.monitor, self.mode = monitor, mode or ("min" if "loss" in (monitor or "") else "max")
        self.folder: Path | None = None
        self.best: dict[str, Any] = {}

    @property
    def best_model_path(self) -> str:
        """Where ``trainer.test(ckpt_path="best")`` looks."""
        return self._path("best.ckpt")

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Lightning says so after processes that it spawned; what they remember is in the file."""
        self.load_state_dict(read_checkpoint(path)["callbacks"][self.state_key] if path else {"best": {}})

    @property
    def last_model_path(self) -> str:
        """The newest checkpoint."""
        return self._path("last.ckpt")

    def _path(self, name: str) -> str:
        return str(self.folder / name) if self.folder is not None and (self.folder / name).exists() else ""

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far: its number, its score and its metrics."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.best = dict(state_dict["best"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell every process the folder that process 0 has chosen, and write straight to it."""
        self.folder = trainer.strategy.broadcast(self.folder)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # unless somebody has chosen another way
            trainer.strategy.checkpoint_io = _WhereTold()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch, and remember it as the best if it is."""
        if self.folder is None:
            return
        metrics = epoch_metrics(trainer)
        # A run that goes on in another folder has the score of the best epoch, but not its file.
        improved = not self.best_model_path or self._improves(metrics)
        if improved:
            self.best = {"epoch": trainer.current_epoch, "metrics": metrics}
        self._save(trainer, self.folder / "last.ckpt")
        if improved and trainer.is_global_zero:
            _link(self.folder / "last.ckpt", self.folder / "best.ckpt")

    def _improves(self, metrics: dict[str, float]) -> bool:
        if self.monitor is None or not self.best:
            return True
        old = self.best["metrics"]
        if self.monitor not in metrics:
            # Without validation each epoch is the best so far; with it only epochs that were validated compete.
            return self.monitor not in old
        return self._rank(metrics) > self._rank(old)

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        """What to compare epochs by: the monitored value, and among equals, frequent on small sets, the loss."""
        value = metrics.get(self.monitor or "", math.nan)
        value = -math.inf if math.isnan(value) else value if self.mode == "max" else -value
        return value, -metrics.get("val/loss", math.inf)

    @staticmethod
    def _save(trainer: pl.Trainer, path: Path) -> None:
        # Every process takes part in saving, process 0 alone writes.
        with atomic_path(path) if trainer.is_global_zero else nullcontext(path) as temporary:
            try:
                trainer.save_checkpoint(temporary)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise RunError(
                    f"The checkpoint {path} could not be written: {error}. The one before it is unharmed. "
                    "Free some space and continue the run, or start it again with another `--out`."
                ) from error


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, at no cost where the file system can, else by a copy."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


class MetricsTable(Callback):
    """Writes ``metrics.csv``: one line per epoch, every logged metric a column.

    Lightning's ``CSVLogger`` empties its folder when a run is resumed, and writes validation and training into lines of
    their own.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, so that a resumed run goes on where its checkpoint was."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch, and write the table anew: columns may have come, and it is small."""
        if isinstance(pl_module, Task):
            pl_module.check_losses()
        rate = trainer.optimizers[0].param_groups[-1]["lr"] if trainer.optimizers else math.nan
        self.rows.append(
            {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate, **epoch_metrics(trainer)}
        )
        if self.path is not None and trainer.is_global_zero:
            columns = list(dict.fromkeys(name for row in self.rows for name in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, text.getvalue())


class KeyedSteps(Callback):
    """Puts each step of a caller's own ``LightningModule`` on the run's streams; a :class:`Task` does it by itself."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._found: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reseed by epoch, batch and rank."""
        if not isinstance(pl_module, Task):
            where = ("step", trainer.current_epoch, batch_idx, trainer.global_rank)
            reseed(self.seed, *where, devices=[pl_module.device])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the generators before validation draws from them."""
        self._found = preserve_generators([torch.device(pl_module.device)])
        self._found.__enter__()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the generators back as they were."""
        self._found.__exit__(None, None, None)
