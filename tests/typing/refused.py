"""Calls that mypy refuses, each for its misspelt argument; they are checked, and never made."""

from autotimm import (
    AutoTrainer,
    DataModule,
    DetectionDataModule,
    ImageClassifier,
    ImageDataModule,
    InstanceSegmentor,
    ObjectDetector,
    SegmentationDataModule,
    SemanticSegmentor,
)
from autotimm.data import Table


class Plain(DataModule):
    def read(self, split: str) -> Table | None:
        return None


def calls() -> None:
    ImageClassifier("resnet18", num_classes=3, sede=4)
    ImageClassifier("resnet18", num_classes=3, seed="four")
    ObjectDetector("resnet18", num_classes=3, widht=64)
    InstanceSegmentor("resnet18", num_classes=3, sede=4)
    SemanticSegmentor("resnet18", num_classes=3, sede=4)
    ImageDataModule("photos", sede=4)
    DetectionDataModule("photos", sede=4)
    SegmentationDataModule("photos", sede=4)
    Plain(sede=4)
    AutoTrainer(3, accelrator="cpu")
    AutoTrainer(3, sede=4)
