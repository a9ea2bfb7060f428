"""When a run writes checkpoints: at the end of every epoch, at intervals, and when it is interrupted."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from autotimm.errors import UsageError, sentence
from autotimm.records.checkpoint_store import AVERAGE, CheckpointStore, check_keep
from autotimm.records.run_folder import RunFolder
from autotimm.tasks.checkpoint import TaskRecord, read_checkpoint
from autotimm.train.callbacks.epoch_metrics import EpochMetrics, Unfinished, Watched
from autotimm.train.callbacks.step_hooks import without_idle_step_hooks
from autotimm.train.checkpoint_writer import CheckpointWriter, DirectCheckpointIO, write_checkpoint
from autotimm.train.stop_request import StopRequest
from autotimm.types import Calibration

__all__ = ["RunCheckpoint", "read_interval"]


_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def read_interval(every: str | int | None) -> tuple[int | None, float | None]:
    """Read ``checkpoint_every``: a number of optimizer steps, or a time such as ``"10min"``.

    Returns:
        The steps and the seconds; one of them at most is not ``None``.

    Raises:
        UsageError: If it is neither.

    Example:
        >>> read_interval(100), read_interval("10min"), read_interval(None)
        ((100, None), (None, 600.0), (None, None))
    """
    if every is None:
        return None, None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)?", str(every))
    if found and not isinstance(every, bool) and float(found[1]) > 0:
        if found[2]:
            return None, float(found[1]) * _UNITS[found[2]]
        if float(found[1]).is_integer():
            return int(float(found[1])), None
    must = "a number of optimizer steps, or a time in s, min or h"
    raise UsageError(sentence("checkpoint_every", "AutoTrainer", must, every, "Give for example 500 or 10min."))


def _forget_validation(checkpoint: dict[str, Any]) -> None:
    """Reset the numbers of batches that this process has validated; no checkpoint is written in between."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for part in ("total", "current"):
        progress[part] = dict.fromkeys(progress[part], 0)


@without_idle_step_hooks
class RunCheckpoint(Checkpoint):
    """Writes the checkpoints of a run (see :mod:`autotimm.records.checkpoint_store`) directly after an optimizer step.

    It differs from Lightning's ``ModelCheckpoint`` where an exact resume and a moved run need it: it stores the sums of
    the running epoch, but no path, and replaces files atomically, so that a crash or a full disk leaves the previous
    one unharmed.

    Args:
        epochs: Knows the metrics of each epoch.
        monitor: The logged value that selects the best epoch; without it, or before it is logged, the last is the best.
        mode: ``"max"`` or ``"min"``; by default ``"min"`` for losses and ``"max"`` for everything else.
        every: Write checkpoints within epochs too: after a number of optimizer steps (``500``), or a time
            (``"10min"``).
        keep: Which to keep, see :class:`autotimm.records.checkpoint_store.CheckpointStore`.
        stop: Set by a signal; the run then writes a checkpoint and ends at the next opportunity.
    """

    def __init__(
        self,
        epochs: EpochMetrics,
        monitor: str | None = None,
        mode: str | None = None,
        *,
        every: str | int | None = None,
        keep: str | int = "auto",
        stop: StopRequest | None = None,
    ) -> None:
        self.epochs, self.stop = epochs, stop or StopRequest()
        self.asked = monitor
        self.monitor, self.mode = monitor, mode or ("min" if "loss" in (monitor or "") else "max")
        self.watched = Watched(monitor)
        self.steps, self.seconds = read_interval(every)
        self.keep = check_keep(keep)
        self.folder: Path | None = None
        self.best: dict[str, Any] = {}
        self.writer = CheckpointWriter()
        self._calibrated = False  # whether the best checkpoint has what was fitted to its weights
        self.pinned: Callable[[], set[int]] = set  # the numbers of epochs whose checkpoints are kept until the end
        self.best_is_elsewhere = False  # whether the file of the best epoch so far may stay where it is: in a replay
        self._unfinished = False  # whether the checkpoint that is being written is one within an epoch
        self._loaded: Unfinished | None = None
        self._began = False
        self._saved_step, self._saved_time = 0, 0.0

    @property
    def store(self) -> CheckpointStore:
        """The files, none of them in the making."""
        assert self.folder is not None, "the run has not been opened"
        self.writer.wait()
        run = RunFolder(self.folder.parent, self.folder.parent.parent)
        return CheckpointStore(self.folder, self.keep, run.remember)

    @property
    def best_model_path(self) -> str:
        """Where ``trainer.test(ckpt_path="best")`` looks."""
        return self._path("best.ckpt")

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Called by Lightning after processes that it spawned; their state is in the file."""
        self.load_state_dict(read_checkpoint(path)["callbacks"][self.state_key] if path else {"best": {}})

    @property
    def last_model_path(self) -> str:
        """The newest checkpoint."""
        last = self.store.last if self.folder is not None and self.folder.is_dir() else None
        return str(last or "")

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint under its own name: a killed process may not have given it the second."""
        if self.folder is None or not self.best:
            return None
        return self.store.average if "averaged" in self.best else self.store.epochs().get(self.best["epoch"] + 1)

    def calibrate_best(self, path: Path, calibration: Calibration) -> None:
        """Make ``best.ckpt`` a file of its own: the checkpoint of the best epoch, and what was fitted to its weights.

        Checkpoints of epochs stay as they are: what is fitted at the end of a run is no part of them.

        Args:
            path: The checkpoint of the best epoch.
            calibration: What was fitted.
        """
        checkpoint = read_checkpoint(path)
        checkpoint[TaskRecord.KEY] = {**checkpoint[TaskRecord.KEY], "calibration": calibration.as_dict()}
        self.writer.write(self.store, "best.ckpt", partial(write_checkpoint, checkpoint))
        self._calibrated = True

    def _path(self, name: str) -> str:
        self.writer.wait()
        return str(self.folder / name) if self.folder is not None and (self.folder / name).is_file() else ""

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far: its number and its metrics."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.best = dict(state_dict["best"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell every process the folder that process 0 has chosen, and write straight to it."""
        self.folder = trainer.strategy.broadcast(self.folder)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the caller has given no other
            # With shards, a run that is resumed on other processes leaves the bytes of one that was not interrupted.
            # Lightning's trainer has neither.
            canonical = getattr(trainer, "shards", None) is not None or getattr(trainer, "portable", False)
            trainer.strategy.checkpoint_io = DirectCheckpointIO(canonical)
        if stage == "fit" and self.folder is not None and trainer.is_global_zero:
            self.store.sweep()  # the lock of the folder is held

    # The sums of an unfinished epoch

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the sums of the running epoch, and leave out what depends on the number of processes."""
        if getattr(trainer, "shards", None) is not None:  # Lightning's trainer has none
            _forget_validation(checkpoint)
        if self._unfinished:
            checkpoint[Unfinished.KEY] = Unfinished.of(trainer, pl_module).as_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the sums until they can be restored."""
        self._began = False
        sums = checkpoint.get(Unfinished.KEY)
        self._loaded = Unfinished(**sums).share(trainer.global_rank) if sums else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the states of metrics and the name of the best checkpoint."""
        self._began = True
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        self._name_best(trainer)
        if self._loaded is not None:
            self._loaded.restore_metrics(pl_module)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        reasons = [callback.stopping_reason for callback in callbacks if isinstance(callback, EarlyStopping)]
        if trainer.ckpt_path and any(reason is not EarlyStoppingReason.NOT_STOPPED for reason in reasons):
            # Lightning restores the reason, but does not stop: the run would train one epoch too many.
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the last checkpoint, and name best and last of a run that was killed after its last epoch."""
        self.writer.close()
        trainer.strategy.barrier()  # the others read what process 0 has written
        if not self._began:
            self._name_best(trainer)
            last = self.store.epochs().get(trainer.current_epoch) if self.folder is not None else None
            if last is not None and trainer.is_global_zero:
                self.store.link_once(last, "last.ckpt")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Finish the checkpoint that is in the making: the folder is released next."""
        self.writer.close()

    def _name_best(self, trainer: pl.Trainer) -> None:
        if self._calibrated:
            return  # it is a file of its own by now
        if trainer.is_global_zero and (path := self.best_path) is not None:
            self.store.link_once(path, "best.ckpt")

    # When to save

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a request to stop is looked at after each step."""
        self.stop.armed = self.folder is not None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once when asked to: validation can be long, and stopping in it loses nothing."""
        self.stop.armed = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at requests to stop again, and check the monitored value."""
        self.stop.armed = self.folder is not None and not trainer.sanity_checking
        self.watched.after_validation(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due, and end the run here if it was asked to stop."""
        self.writer.check()
        self.watched.after_batch(trainer, pl_module)
        if self._loaded is not None:
            self._loaded.restore_logged(trainer)
            self._loaded = None
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        every = trainer.val_check_batch or math.inf
        # Lightning takes a checkpoint written between a batch and its validation for one written after both.
        validates = trainer.enable_validation and (batch_idx + 1) % every == 0
        if not stepped or last or validates:
            return  # the end of an epoch has its own hook
        stopping = self.stop.agreed(trainer)
        if self.folder is not None and (stopping or self._due(trainer)):
            self._unfinished = True
            try:
                self._save(trainer, CheckpointStore.name(trainer.global_step))
            finally:
                self._unfinished = False
        if stopping:
            self.writer.wait()
            self.stop.obey(stopping)

    def _due(self, trainer: pl.Trainer) -> bool:
        if self.steps is not None:
            return trainer.global_step - self._saved_step >= self.steps
        waited = self.seconds is not None and time.monotonic() - self._saved_time >= self.seconds
        return self.seconds is not None and self._all(trainer, waited)

    @staticmethod
    def _all(trainer: pl.Trainer, here: bool) -> bool:
        """Return the answer of process 0, since all must save together."""
        return here if trainer.world_size == 1 else bool(trainer.strategy.broadcast(here))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch, and remember it if it is the best."""
        self.watched.after_epoch(trainer, pl_module)
        if self.folder is None:
            return
        metrics = self.epochs.of(trainer)
        # A run that is resumed in another folder knows the score of the best epoch, but lacks its file. Where epochs
        # are candidates, the best of those that are there is chosen at the end.
        lacks_best = not (self.best_model_path or self.pinned() or self.best_is_elsewhere)
        improved = self._improves(metrics) or lacks_best
        if improved:
            self.best = {"epoch": trainer.current_epoch, "metrics": metrics}
        name = CheckpointStore.name(trainer.global_step, epochs=trainer.current_epoch + 1)
        self._save(trainer, name, best=improved)
        self.stop.armed = False
        if stopping := self.stop.agreed(trainer):
            self.writer.wait()
            self.stop.obey(stopping)

    def _improves(self, metrics: dict[str, float]) -> bool:
        if self.monitor is None or not self.best:
            return True
        old = self.best["metrics"]
        if self.monitor not in metrics:
            # Without validation each epoch is the best so far; with it only validated epochs compete.
            return self.monitor not in old
        return self.rank(metrics) > self.rank(old)

    def rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """What epochs are compared by: the monitored value, and for ties, frequent on small sets, the loss."""
        value = metrics.get(self.monitor or "", math.nan)
        value = -math.inf if math.isnan(value) else value if self.mode == "max" else -value
        return value, -metrics.get("val/loss", math.inf)

    def save_head(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Save the network before its first step, as epoch 0, and as the best so far."""
        if self.folder is not None:
            self.best = {"epoch": -1, "metrics": metrics}
            self._save(trainer, CheckpointStore.name(0, epochs=0), best=True)

    def keep_best(self, epochs: int, metrics: dict[str, float]) -> None:
        """Keep the end of an epoch as the best."""
        self.best = {"epoch": epochs - 1, "metrics": metrics}
        self.store.link_once(self.store.epochs()[epochs], "best.ckpt")

    def save_average(self, like: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Save averaged weights as the best, beside what another checkpoint holds."""
        checkpoint = {**read_checkpoint(like), "state_dict": dict(weights)}
        store = self.store
        self.writer.write(store, AVERAGE, partial(write_checkpoint, checkpoint))
        store.link(AVERAGE, "best.ckpt")

    def _save(self, trainer: pl.Trainer, name: str, best: bool = False) -> None:
        """Take the state of all processes; process 0 writes it."""
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        if not trainer.is_global_zero:
            assert self.folder is not None
            trainer.save_checkpoint(self.folder / name)
            return
        store, pinned = self.store, self.pinned()

        def name_it() -> None:
            if best:
                store.link(name, "best.ckpt")
            store.link(name, "last.ckpt")
            store.thin(pinned)

        self.writer.write_later(store, name, partial(_state, trainer), name_it)


def _state(trainer: pl.Trainer, path: Path) -> list[dict[str, Any]]:
    """The state of a training; nothing if the strategy, or a plugin of the caller's own, has written it to the path."""
    if type(io := trainer.strategy.checkpoint_io) is not DirectCheckpointIO:
        trainer.save_checkpoint(path)
        return []
    with io.keeping() as kept:
        trainer.save_checkpoint(path)
    return kept
