"""Evaluation outside of Lightning's loops: all samples of a split, in process 0, by the task's own evaluation.

Batches have the fixed shape of evaluation, so that neither the number of processes nor that of workers changes a bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from autotimm.data.loader import KeyedLoader
from autotimm.data.module import DataModule
from autotimm.data.table import Table
from autotimm.tasks import Task
from autotimm.types import Batch, Stage, Step

__all__ = ["evaluated", "with_weights"]


def evaluated(trainer: Any, task: Task, table: Table, limit: float = 1.0) -> Iterator[tuple[Batch, Step]]:
    """The batches of a table, each with what the task makes of it.

    Training samples are seen as validation samples are: whole, and not augmented.

    Args:
        trainer: The trainer, whose device and precision are used. Its data is a data module of ours.
        task: The task, in evaluation mode.
        table: The samples.
        limit: How many batches to evaluate: a number of them, or as a fraction of all.
    """
    data: DataModule = trainer.datamodule
    running = trainer.val_dataloaders if table is data.tables.get("val") and trainer.world_size == 1 else None
    loader = running if isinstance(running, KeyedLoader) else data.eval_loader(table, whole=True)
    most = limit if isinstance(limit, int) else int(limit * len(loader))
    try:
        for index, loaded in enumerate(islice(loader, most)):
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                batch = Batch.of(trainer.strategy.batch_to_device(loaded))
                step = task.evaluate(batch, index, Stage.VAL)
            yield batch, step
    finally:
        if loader is not running:  # the processes of that one are used again
            loader.close()


@contextmanager
def with_weights(task: Task, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Give the task other weights, if there are any, and put it in evaluation mode, for the length of a block."""
    state = {name: value.clone() for name, value in task.state_dict().items()} if weights is not None else None
    modes = {part: part.training for part in task.modules()}
    if weights is not None:
        task.load_state_dict(weights)
    task.eval()
    try:
        yield
    finally:
        if state is not None:
            task.load_state_dict(state)
        for part, training in modes.items():
            part.training = training
