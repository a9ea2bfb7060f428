"""The public contract suite on our own tasks, and on one as a user would write it."""

from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autotimm import ImageClassifier, InstanceSegmentor, MetricConfig, ObjectDetector, SemanticSegmentor, Task
from autotimm.testing import CHECKS, TaskCase
from autotimm.types import Prediction, Stage, Step
from training import multi_label_data


class Normalize(nn.Module):
    def forward(self, images):
        return images.float() / 255 if images.dtype == torch.uint8 else images


class TinyTask(Task):
    """A network of its own, with dropout and batch normalization, and two losses."""

    def __init__(self, num_classes: int = 3, **options):
        def network(seed):
            return nn.Sequential(
                Normalize(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 32), nn.ReLU(),
                nn.Dropout(0.2), nn.Linear(32, num_classes),
            )  # fmt: skip

        self.num_classes = num_classes  # before the base is made, which asks for the metrics
        super().__init__(network, **options)

    def step(self, batch, stage: Stage):
        logits = self.infer(batch.images)
        return Step({"entropy": F.cross_entropy(logits, batch.targets), "size": 1e-3 * logits.square().mean()}, logits,
                    batch.targets)  # fmt: skip

    def decode(self, output, batch):
        rows = [dict(zip(self.spec.class_names, row, strict=True)) for row in output.softmax(1).tolist()]
        return [Prediction(id, (max(row, key=row.get),), row) for id, row in zip(batch.ids, rows, strict=True)]

    def default_metrics(self):
        return [MetricConfig("accuracy", metric_class="MulticlassAccuracy", params={"num_classes": self.num_classes})]


def single(folder, backbone):
    return TaskCase.of(
        ImageClassifier, folder=folder, backbone=backbone, num_classes=3, pretrained=False, image_size=32
    )


def dense(task, folder, **options):
    return TaskCase.of(task, folder=folder, backbone="test_resnet", pretrained=False, width=64, **options)


CASES = {
    "test_resnet": lambda folder, toys: single(folder, "test_resnet"),
    "test_vit": lambda folder, toys: single(folder, "test_vit"),
    "several labels": lambda folder, toys: TaskCase.of(
        ImageClassifier, folder=folder, data=lambda **options: multi_label_data(toys, folder, **options),
        backbone="test_resnet", num_classes=2, multi_label=True, pretrained=False, image_size=32, mixup_alpha=0.2,
        ema_decay=0.5,
    ),
    "detection": lambda folder, toys: dense(ObjectDetector, folder, num_classes=3),
    "instance": lambda folder, toys: dense(InstanceSegmentor, folder, num_classes=3),
    "segmentation": lambda folder, toys: dense(SemanticSegmentor, folder, num_classes=4),
    "a user's own": lambda folder, toys: TaskCase.of(TinyTask, folder=folder, lr=0.01),
}  # fmt: skip


# A training with Mask R-CNN takes seconds, and some checks make several.
LONG = {"instance"}
SHORT = {"check_same_seed_same_weights", "check_resume_within_epoch", "check_verify", "check_predict_equals_validate"}
PAIRS = [
    pytest.param(
        name, check, id=f"{name}-{check.__name__}",
        marks=pytest.mark.slow if name in LONG and check.__name__ not in SHORT else (),
    )
    for name in CASES for check in CHECKS
]  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory, toy_folder):
    """One case per name, made when it is asked for; its first training is shared by its checks."""
    return {name: cache(partial(make, tmp_path_factory.mktemp("contract"), toy_folder)) for name, make in CASES.items()}


@pytest.mark.parametrize(("name", "check"), PAIRS)
def test_contract(name, check, cases):
    check(cases[name]())
