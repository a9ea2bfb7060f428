"""Calls that mypy accepts; they are checked, and never made."""

from typing import Any

from torch import nn
from typing_extensions import Unpack

from autotimm import (
    AutoTrainer,
    Batch,
    DataModule,
    DetectionDataModule,
    ImageClassifier,
    ImageDataModule,
    InstanceSegmentor,
    MetricConfig,
    ObjectDetector,
    SegmentationDataModule,
    SemanticSegmentor,
    Stage,
    Step,
    Task,
)
from autotimm.data import DataOptions, Table
from autotimm.tasks import TaskOptions


class Own(Task):
    def __init__(self, width: int, **options: Unpack[TaskOptions]) -> None:
        super().__init__(lambda seed: nn.Linear(width, 1), **options)

    def step(self, batch: Batch, stage: Stage) -> Step:
        raise NotImplementedError

    def decode(self, output: Any, batch: Batch) -> list[Any]:
        return []

    def default_metrics(self) -> list[MetricConfig]:
        return []


class Loose(ImageClassifier):
    def __init__(self, width: int, **options: Any) -> None:
        super().__init__("resnet18", width, **options)


class OwnData(DataModule):
    def __init__(self, path: str, **options: Unpack[DataOptions]) -> None:
        super().__init__(**options)

    def read(self, split: str) -> Table | None:
        return None


class OwnTrainer(AutoTrainer):
    pass


def calls() -> None:
    ImageClassifier("resnet18", num_classes=3, seed=4, optimizer="sgd", metrics=None)
    ObjectDetector("resnet18", num_classes=3, arch="retinanet", width=64, ema_decay=0.99)
    InstanceSegmentor("resnet18", 3, threshold=0.4, freeze_backbone=True)
    SemanticSegmentor("resnet18", 3, loss="dice", lr=1e-3)
    ImageDataModule("photos", batch_size=8, num_workers=0)
    DetectionDataModule("photos", format="coco", image_size=256, seed=None)
    SegmentationDataModule("photos", colors={"road": 0}, format="masks", strict=True)
    AutoTrainer(3, keep="last", accelerator="cpu", limit_train_batches=2)
    Own(3, seed=1)
    Loose(3, label_smoothing=0.1, seed=1)
    OwnData("photos", image_size=64)
    OwnTrainer(max_epochs=1, run_dir=False, precision="bf16-mixed")
