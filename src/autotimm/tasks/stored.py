"""How tasks are stored: what they add to a checkpoint, and how they come back from one, the same for all of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl

from autotimm.models.names import remember_architecture
from autotimm.models.weights import Weights
from autotimm.plain import import_name, plain_value
from autotimm.repro.seed import preserve_switches
from autotimm.repro.streams import preserve_generators
from autotimm.tasks.checkpoint import (
    TaskRecord,
    accepted,
    drop_folder,
    read_checkpoint,
    require_objects,
    task_class,
)
from autotimm.types import DataSpec

__all__ = ["Stored"]


class Stored(pl.LightningModule):
    """The half of :class:`autotimm.tasks.base.Task` that writes and reads checkpoints; not for use on its own."""

    root_seed: int
    weights: Weights
    spec: DataSpec | None
    eval_batch_size: int

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the model without its run: plain data only."""
        drop_folder(checkpoint)
        checkpoint[TaskRecord.KEY] = asdict(self.record())

    def record(self) -> TaskRecord:
        """What a checkpoint says of this task beside weights and hyper-parameters."""
        return TaskRecord(
            task=import_name(type(self)),
            root_seed=self.root_seed,
            weights=self.weights.as_dict(),
            spec=self.spec.as_dict() if self.spec else None,
            eval_batch_size=self.eval_batch_size,
        )

    def restore(self, record: TaskRecord) -> None:
        """Undo :meth:`record` on a freshly built task."""
        self.root_seed, self.eval_batch_size = record.root_seed, record.eval_batch_size
        self.weights = Weights.from_dict(record.weights)
        self.spec = DataSpec.from_dict(record.spec) if record.spec else None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # less freedom on purpose: never unpickles
        cls, checkpoint_path: Any, map_location: Any = None, **overrides: Any
    ) -> Any:
        """Build a task from a checkpoint: never unpickles, never contacts a hub, leaves seeds and switches alone.

        On :class:`Task` itself it builds whichever task the checkpoint names.

        Args:
            checkpoint_path: A file that a trainer wrote.
            map_location: Where to put the weights; by default the CPU.
            overrides: Constructor arguments that replace the recorded ones.

        Returns:
            The task, in evaluation mode.

        Raises:
            ModelError: If the file is damaged, is not a checkpoint of this task, or holds more than plain data.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        record = TaskRecord.of(checkpoint, checkpoint_path)
        chosen = task_class(record, cls, checkpoint_path)
        hparams = {**checkpoint["hyper_parameters"], **overrides}
        require_objects(hparams, chosen)
        if record.weights.get("architecture"):
            remember_architecture(record.weights["architecture"])
        # Without a seed nothing global is seeded, on no device; the weights and the root seed come from the file.
        replaced = {name: value for name, value in (("pretrained", False), ("seed", None)) if name in hparams}
        with preserve_switches(), preserve_generators():
            task = chosen(**accepted(chosen, {**hparams, **replaced}))
        task.hparams.update(plain_value(hparams))
        task.restore(record)
        task.load_state_dict(checkpoint["state_dict"])
        return task.eval()
