"""Small trainings on toy images, shared by the tests of tasks, trainers and runs."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

import autotimm
from autotimm import AutoTrainer, ImageClassifier, ImageDataModule, Run, Task
from autotimm.data.toy import toy_classes
from autotimm.records.digest import state_digest

SMALL: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "batch_size": 8,
                         "num_workers": 0, "threads": 1, "accelerator": "cpu", "progress": False, "val_split": 0.25,
                         "epochs": 1}  # fmt: skip
"""Options of ``autotimm.fit`` for a training of about a second."""
_LOADING = {"image_size": 32, "batch_size": 8, "eval_batch_size": 4, "num_workers": 0, "val_split": 0.25}


def small_fit(root: str | Path, out: str | Path, **options: Any) -> Run:
    """Fit with the options of :data:`SMALL` unless others are given; None takes one out."""
    given = {name: value for name, value in (SMALL | options).items() if value is not None}
    return autotimm.fit(root, **given, out=out)


def classifier(backbone: str = "test_resnet", num_classes: int = 3, **options: Any) -> ImageClassifier:
    return ImageClassifier(backbone, num_classes, **{"pretrained": False, "image_size": 32, **options})


def toy_data(root: Path, **options: Any) -> ImageDataModule:
    """18 images for training and 6 for validation, in batches of 8 and 4."""
    return ImageDataModule(root, **{**_LOADING, **options})


def multi_label_data(root: Path, folder: Path, **options: Any) -> ImageDataModule:
    """The same images with two labels that may both be right, or none, read from a table in a folder."""
    lines = ["image,second,third"]
    for path in sorted(root.rglob("*.png")):
        number = toy_classes(3).index(path.parent.name)
        lines.append(f"{path.relative_to(root).as_posix()},{int(number > 0)},{int(number > 1)}")
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return ImageDataModule(train_csv=table, image_dir=root, label_column=["second", "third"], **{**_LOADING, **options})


def trainer(epochs: int | None = 1, **options: Any) -> AutoTrainer:
    """A quiet trainer that leaves no folder unless told."""
    settings = {"accelerator": "cpu", "threads": 1, "run_dir": False, "enable_progress_bar": False}
    return AutoTrainer(epochs, **{**settings, **options})


def trained(root: Path, epochs: int = 1, task: dict[str, Any] | None = None, **options: Any) -> ImageClassifier:
    """A classifier of the toy images after training; ``task`` holds its options, the rest is the trainer's."""
    model = classifier(**(task or {}))
    trainer(epochs, **options).fit(model, datamodule=toy_data(root))
    return model


def digest(task: Task) -> str:
    """The digest of weights and buffers."""
    return state_digest(task.network.state_dict())


def weights(task: Task) -> Tensor:
    """All weights in one vector, as they are now."""
    return torch.cat([parameter.detach().flatten() for parameter in task.network.parameters()]).clone()


class StopAfter(Callback):
    """Stops a training after an epoch, as somebody does who goes on tomorrow."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.current_epoch == self.epoch


class Rates(Callback):
    """Notes the learning rate of every step, and the epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])
