"""The public contract suite on our own tasks, and on one as a user would write it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autotimm import ImageClassifier, MetricConfig, Task
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


CASES = {
    "test_resnet": lambda folder, toys: single(folder, "test_resnet"),
    "test_vit": lambda folder, toys: single(folder, "test_vit"),
    "several labels": lambda folder, toys: TaskCase.of(
        ImageClassifier, folder=folder, data=lambda **options: multi_label_data(toys, folder, **options),
        backbone="test_resnet", num_classes=2, multi_label=True, pretrained=False, image_size=32, mixup_alpha=0.2,
        ema_decay=0.5,
    ),
    "a user's own": lambda folder, toys: TaskCase.of(TinyTask, folder=folder, lr=0.01),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, toy_folder):
    return CASES[request.param](tmp_path_factory.mktemp("contract"), toy_folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, case):
    check(case)
