"""The subject of the contract checks: a task, its data, and a short training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback

from autotimm.data import DataModule, ImageDataModule
from autotimm.data.dense import DetectionDataModule, InstanceSegmentationDataModule, SegmentationDataModule
from autotimm.data.toy import write_toy_folder, write_toy_objects, write_toy_segmentation
from autotimm.records.digest import state_digest
from autotimm.repro.streams import preserve_generators
from autotimm.tasks import Task
from autotimm.train import AutoTrainer
from autotimm.train.callbacks.rng_noise import pollute_generators

__all__ = ["QUIET", "TaskCase", "Trained"]

_SPLIT = {"train": 16}
_TOYS: dict[str, Callable[[Path], Any]] = {
    "classes": partial(write_toy_folder, n=24, num_classes=3, image_size=32, seed=7),
    "boxes": partial(write_toy_objects, splits=_SPLIT, image_size=64, seed=7),
    "instances": partial(write_toy_objects, splits=_SPLIT, image_size=64, seed=7),
    "pixels": partial(write_toy_segmentation, splits=_SPLIT, image_size=64, seed=7),
}
_DATA: dict[str, Callable[..., DataModule]] = {
    "classes": ImageDataModule,
    "boxes": DetectionDataModule,
    "instances": InstanceSegmentationDataModule,
    "pixels": SegmentationDataModule,
}

QUIET: dict[str, Any] = {"threads": 1, "accelerator": "cpu", "run_dir": False, "enable_progress_bar": False}


@dataclass(frozen=True)
class Trained:
    """A trained task with its data, trainer and training losses per epoch."""

    task: Task
    data: DataModule
    trainer: AutoTrainer
    losses: tuple[float, ...]

    @property
    def digest(self) -> str:
        """The digest of weights and buffers."""
        return state_digest(self.task.network.state_dict())


class _Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss_epoch"]))


@dataclass
class TaskCase:
    """A task, its data, and a short training of it.

    Attributes:
        task: Builds the task from options.
        data: Builds the data module from options.
        folder: Where trainings may write.
        trainer_options: Further options of the trainer.
    """

    task: Callable[..., Task]
    data: Callable[..., DataModule]
    folder: Path
    trainer_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, task: type[Task], *, folder: str | Path, data: Callable[..., DataModule] | None = None, **arguments: Any
    ) -> TaskCase:
        """Make a case from a task class and the arguments of its constructor.

        Args:
            task: The class.
            folder: Where toy images and trainings may be written.
            data: Builds a data module from options; by default toy images of three classes, with targets of the first
                of the task's ``kinds`` (for pixels four classes, one of them the background).
            arguments: Arguments of the constructor.
        """
        folder = Path(folder)

        kind = task.kinds[0]
        side = 32 if kind == "classes" else 64

        def toy(**options: Any) -> DataModule:
            root = folder / "toy"
            if not root.exists():
                _TOYS[kind](root)
            defaults = {"image_size": side, "batch_size": 8, "eval_batch_size": 4, "num_workers": 0, "val_split": 0.25}
            return _DATA[kind](root, **{**defaults, **options})

        return cls(lambda **options: task(**{**arguments, **options}), data or toy, folder)

    def train(
        self,
        *,
        task: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        epochs: int = 2,
        pollute: bool = False,
        watched: bool = True,
        ckpt_path: str | Path | None = None,
        **trainer: Any,
    ) -> Trained:
        """Train for a few epochs on one thread, or resume from a checkpoint.

        Args:
            task: Options of the task.
            data: Options of the data module.
            epochs: Number of epochs.
            pollute: Whether to change the state of the global generators before and after building the objects.
            watched: Whether to add callbacks, which a run record cannot restore.
            ckpt_path: Checkpoint to resume from.
            trainer: Options of the trainer.
        """
        if pollute:
            pollute_generators()
        module, model = self.data(**(data or {})), self.task(**(task or {}))
        if pollute:
            pollute_generators()
        losses = _Losses()
        callbacks = [losses, *trainer.pop("callbacks", [])] if watched else None
        auto_trainer = AutoTrainer(epochs, callbacks=callbacks, **{**self.trainer_options, **QUIET, **trainer})
        with preserve_generators():
            auto_trainer.fit(model, datamodule=module, ckpt_path=ckpt_path)
        return Trained(model, module, auto_trainer, tuple(losses.losses))

    @cached_property
    def reference(self) -> Trained:
        """The training that the others are compared with."""
        return self.train()
