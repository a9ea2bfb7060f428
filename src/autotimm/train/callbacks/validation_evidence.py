"""At the end of a training: what the best weights predict for the validation samples, and what is fitted to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from autotimm.data.module import DataModule
from autotimm.evidence import Evidence, EvidenceCollector, write_evidence
from autotimm.evidence.calibration import fit_calibration
from autotimm.records.run_folder import CALIBRATION
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.callbacks.held_out import evaluated, with_weights
from autotimm.train.callbacks.run_checkpoint import RunCheckpoint

__all__ = ["keep_evidence"]


def keep_evidence(trainer: Any, module: pl.LightningModule) -> dict[str, Any]:
    """Write the evidence of the best weights into the run folder, and what is fitted to it into ``best.ckpt``.

    Process 0 evaluates all samples, in batches of the fixed shape of evaluation, so that neither the number of
    processes nor that of workers changes a bit. The weights are then what they were.

    Returns:
        What the ledger says of it: the digest of the ``evidence``, and the ``calibration``. Empty if the trainer keeps
        no evidence, or there is none: no validation samples, no checkpoint, or a task whose predictions have a form of
        their own.

    Raises:
        RunError: If it cannot be written.
    """
    folder = trainer.run_folder
    if not trainer.evidence or not isinstance(module, Task) or not EvidenceCollector.collects(module):
        return {}
    said: dict[str, Any] = {}
    best = _best_checkpoint(trainer)
    if trainer.is_global_zero and folder.chosen is not None and best is not None:
        with with_weights(module, read_checkpoint(best)["state_dict"]):
            evidence = _evaluate(trainer, module)
        if evidence is not None:
            said["evidence"] = write_evidence(folder.path, evidence)
            said |= _calibrate(trainer, module, evidence, best)
    if trainer.world_size > 1:
        trainer.strategy.barrier("evidence")
    return said


def _best_checkpoint(trainer: Any) -> Path | None:
    callback = trainer.checkpoint_callback
    best: Path | None = getattr(callback, "best_path", None)
    if best is None and trainer.calibrate is not None and isinstance(callback, RunCheckpoint):
        # It may be kept under its second name alone. Runs of versions without `calibrate` then had no evidence.
        return Path(callback.best_model_path) if callback.best_model_path else None
    return best


def _calibrate(trainer: Any, task: Task, evidence: Evidence, best: Path) -> dict[str, Any]:
    """Fit what predictions are calibrated with, keep it with the best weights, and say it for the ledger."""
    callback = trainer.checkpoint_callback
    wanted = trainer.calibrate is not None and task.takes_calibration and isinstance(callback, RunCheckpoint)
    fitted = fit_calibration(evidence, trainer.calibrate) if wanted else None
    if fitted is None:
        return {}
    if not fitted.calibration.changes_nothing:
        callback.calibrate_best(best, fitted.calibration)
    trainer.run_folder.add_results(**{CALIBRATION: fitted.measured})
    return {"calibration": fitted.calibration.as_dict()}


def _evaluate(trainer: Any, task: Task) -> Evidence | None:
    data = trainer.datamodule
    if not isinstance(data, DataModule) or "val" not in data.tables:
        return None
    collector = EvidenceCollector(task, "val")
    with collector.watching():
        for batch, step in evaluated(trainer, task, data.tables["val"]):
            collector.add(batch, step)
    return collector.evidence()
