"""At the end of a training: what the best weights predict for the validation samples."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from autotimm.data.module import DataModule
from autotimm.evidence import Evidence, EvidenceCollector, write_evidence
from autotimm.tasks import Task
from autotimm.tasks.checkpoint import read_checkpoint
from autotimm.train.callbacks.held_out import evaluated, with_weights

__all__ = ["keep_evidence"]


def keep_evidence(trainer: Any, module: pl.LightningModule) -> str | None:
    """Write the evidence of the best weights into the run folder, and return its digest.

    Process 0 evaluates all samples, in batches of the fixed shape of evaluation, so that neither the number of
    processes nor that of workers changes a bit. The weights are then what they were.

    Returns:
        ``None`` if the trainer keeps no evidence, or there is none: no validation samples, no checkpoint, or a task
        whose predictions have a form of their own.

    Raises:
        RunError: If it cannot be written.
    """
    folder = trainer.run_folder
    if not trainer.evidence or not isinstance(module, Task) or not EvidenceCollector.collects(module):
        return None
    digest = None
    best = getattr(trainer.checkpoint_callback, "best_path", None)
    if trainer.is_global_zero and folder.chosen is not None and best is not None:
        with with_weights(module, read_checkpoint(best)["state_dict"]):
            evidence = _evaluate(trainer, module)
        digest = None if evidence is None else write_evidence(folder.path, evidence)
    if trainer.world_size > 1:
        trainer.strategy.barrier("evidence")
    return digest


def _evaluate(trainer: Any, task: Task) -> Evidence | None:
    data = trainer.datamodule
    if not isinstance(data, DataModule) or "val" not in data.tables:
        return None
    collector = EvidenceCollector(task, "val")
    with collector.watching():
        for batch, step in evaluated(trainer, task, data.tables["val"]):
            collector.add(batch, step)
    return collector.evidence()
