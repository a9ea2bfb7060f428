"""The public contract suite on our own tasks with every architecture, and on a task as a user would write it."""

from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autotimm import ImageClassifier, InstanceSegmentor, MetricConfig, ObjectDetector, SemanticSegmentor, Task
from autotimm.models import SEGMENTERS
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


class Summed(nn.Module):
    """A decoder as a user would write it: every map at the width and size of the finest, and some dropout."""

    def __init__(self, channels, strides, width):
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(one, width, 1) for one in channels)
        self.dropout = nn.Dropout2d(0.2)

    def forward(self, maps):
        size = maps[0].shape[-2:]
        return self.dropout(sum(F.interpolate(one(map), size) for one, map in zip(self.narrow, maps, strict=True)))


def single(folder, backbone):
    return TaskCase.of(
        ImageClassifier, folder=folder, backbone=backbone, num_classes=3, pretrained=False, image_size=32
    )


def dense(task, arch, **options):
    """A case on images of 64 pixels: three classes of objects, or four of pixels, one of them the background."""
    options |= {"backbone": "test_resnet", "num_classes": 4 if task is SemanticSegmentor else 3, "width": 64}
    return lambda folder, toys: TaskCase.of(task, folder=folder, arch=arch, pretrained=False, **options)


CASES = {
    "test_resnet": lambda folder, toys: single(folder, "test_resnet"),
    "test_vit": lambda folder, toys: single(folder, "test_vit"),
    "several labels": lambda folder, toys: TaskCase.of(
        ImageClassifier, folder=folder, data=lambda **options: multi_label_data(toys, folder, **options),
        backbone="test_resnet", num_classes=2, multi_label=True, pretrained=False, image_size=32, mixup_alpha=0.2,
        ema_decay=0.5,
    ),
    "a user's own": lambda folder, toys: TaskCase.of(TinyTask, folder=folder, lr=0.01),
    **{arch: dense(ObjectDetector, arch) for arch in ObjectDetector.archs},
    **{arch: dense(InstanceSegmentor, arch) for arch in InstanceSegmentor.archs},
    **{arch: dense(SemanticSegmentor, arch) for arch in SEGMENTERS},
    "a user's own decoder": dense(SemanticSegmentor, Summed),
}  # fmt: skip


# Every architecture costs up to a minute. One classifier, one segmenter and a task of a user's own are always looked at
# from all sides, those of the trainer and of loading aside; the others where they differ most.
BRIEF = ("check_same_seed_same_weights", "check_resume_within_epoch", "check_verify", "check_predict_equals_validate")
SEEN = {"check_extra_metric", "check_logger", "check_validation_frequency"}  # of the trainer, whatever it trains
LOADED = {"check_workers"}  # no task reaches a worker; for masks and boxes also in test_tiled_runs.py
EVERY = [check.__name__ for check in CHECKS]
QUICK = {
    "test_resnet": EVERY,
    "a user's own": [name for name in EVERY if name not in LOADED],
    "fpn": [name for name in EVERY if name not in SEEN | LOADED],
    "test_vit": ("check_checkpoint",),
    "several labels": BRIEF,
    "fcos": (*BRIEF, "check_learns"),
    "mask_rcnn": ("check_same_seed_same_weights", "check_predict_equals_validate"),  # replayed in test_channels.py
    "a user's own decoder": ("check_checkpoint",),
}


def always(name, check):
    return check.__name__ in QUICK.get(name, ())


PAIRS = [
    pytest.param(name, check, id=f"{name}-{check.__name__}", marks=() if always(name, check) else pytest.mark.slow)
    for name in CASES for check in CHECKS
]  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory, toy_folder):
    """One case per name, made when it is asked for; its first training is shared by its checks."""
    return {name: cache(partial(make, tmp_path_factory.mktemp("contract"), toy_folder)) for name, make in CASES.items()}


@pytest.mark.parametrize(("name", "check"), PAIRS)
def test_contract(name, check, cases):
    check(cases[name]())
