"""How tasks are stored: what they add to a checkpoint, and how they come back from one, the same for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any, TypeVar

import pytorch_lightning as pl

from autotimm.models.names import remember_architecture
from autotimm.models.weights import Weights
from autotimm.plain import construct, constructor_arguments, import_name, plain_value
from autotimm.repro.seed import preserve_switches
from autotimm.repro.streams import preserve_generators
from autotimm.tasks.checkpoint import TaskRecord, drop_folder, read_checkpoint, require_objects, task_class
from autotimm.tasks.signature import takes_options
from autotimm.types import DataSpec

__all__ = ["Stored"]

_Made = TypeVar("_Made", bound="Stored")
_LOADING: ContextVar[bool] = ContextVar("autotimm_loading", default=False)


@contextmanager
def _loading() -> Iterator[None]:
    """Tasks that are made meanwhile get their weights from a file: see :attr:`Stored.is_loading`."""
    before = _LOADING.set(True)
    try:
        yield
    finally:
        _LOADING.reset(before)


class Stored(pl.LightningModule):
    """The half of :class:`autotimm.tasks.base.Task` that writes and reads checkpoints; not for use on its own.

    Attributes:
        is_loading: Whether the task is made for a checkpoint, so that neither seeds nor pretrained weights matter.
    """

    is_loading: bool

    root_seed: int
    weights: Weights
    spec: DataSpec | None
    eval_batch_size: int

    def __new__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """Note what the class that is made was called with: a constructor sees only what subclasses passed on to it."""
        task = super().__new__(cls)
        task.__dict__.update(_call=(args, kwargs), is_loading=_LOADING.get())
        return task

    def _record_arguments(self) -> None:
        """Keep as ``hparams`` what makes the same task again when the class is called with it, defaults included.

        Lightning would collect the arguments of every constructor on the way, also those that a subclass fixes.
        """
        args, kwargs = self.__dict__.pop("_call")
        left_open = self.__dict__.pop("_left_open")
        given = constructor_arguments(type(self), args, kwargs)
        if takes_options(type(self)):
            given = {**given, **{name: value for name, value in left_open.items() if name not in given}}
        # From a frame that nobody called Lightning finds no constructor whose arguments it would look through.
        alone: Any = (None for _ in "")
        self.save_hyperparameters(plain_value(given), frame=alone.gi_frame)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the model without its run: plain data only."""
        drop_folder(checkpoint)
        checkpoint[TaskRecord.KEY] = asdict(self.record())

    def record(self) -> TaskRecord:
        """What a checkpoint says of this task beside weights and hyper-parameters."""
        return TaskRecord(
            task=import_name(type(self)),
            root_seed=int(self.root_seed),  # plain: the seeds of single streams are the run's
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
        replaced = {"pretrained": False} if "pretrained" in hparams else {}  # a task of a user's own may ask a hub
        with _loading(), preserve_switches(), preserve_generators():
            task = construct(chosen, {**hparams, **replaced})
        task.hparams.update(plain_value(hparams))
        task.restore(record)
        task.load_state_dict(checkpoint["state_dict"])
        return task.eval()
