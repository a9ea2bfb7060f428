"""Networks with random weights to export: backbones of many families, and every ``arch`` of the other tasks.

Random weights give scores that are all nearly the same, and such scores differ by nothing. So heads are scaled until
the scores of a classifier are far from each other, and a detector finds many objects. The tests export them too.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import model_entrypoint

from autotimm import ImageClassifier, InstanceSegmentor, ObjectDetector, SemanticSegmentor, Task
from autotimm.export.agreement_check import seeded_sample
from autotimm.models.detection import DETECTORS
from autotimm.models.segmentation.segmenter import SEGMENTERS
from autotimm.types import DataSpec

__all__ = ["ARCHS", "BACKBONES", "TILED", "classifier", "dense_task", "family_of"]

BACKBONES = {
    "test_resnet": 96, "resnet18": 96, "regnetx_002": 96, "test_vit": 96, "test_convnext": 96, "test_efficientnet": 96,
    "mobilenetv3_small_050": 96, "mobilevit_xxs": 96, "pvt_v2_b0": 96,
    "levit_128s": 224, "mixer_s32_224": 224, "xcit_nano_12_p16_224": 96,
}  # fmt: skip
"""Backbones of classifiers, and the side of their images in pixels."""

ARCHS = (*SEGMENTERS, *DETECTORS)
"""Every ``arch`` of segmentation, detection and instance segmentation."""

TILED = {f"{arch} in tiles": arch for arch in ("fpn", "fcos", "faster_rcnn", "mask_rcnn")}
"""Those that are also exported as models that see tiles of an image."""


def family_of(backbone: str) -> str:
    """The family of a backbone: timm's module that defines it."""
    return model_entrypoint(backbone).__module__.rpartition(".")[2]


def classifier(backbone: str) -> tuple[Task, DataSpec]:
    """A classifier of five classes whose logits have a standard deviation of 1."""
    side = BACKBONES.get(backbone, 224)
    task = ImageClassifier(backbone, 5, image_size=side, pretrained=False).eval()
    images = [seeded_sample(index, (side, side)).image[None].float() for index in range(4)]
    squares = torch.cat([torch.nn.functional.interpolate(image, (side, side)).to(torch.uint8) for image in images])
    with torch.no_grad():
        logits = task.network(squares)
        for parameter in task.head.parameters():
            parameter.div_(logits.std())
    task.spec = DataSpec(tuple("abcde"), image_size=side)
    return task, task.spec


def dense_task(arch: str, side: int, overlap: float | None = None) -> tuple[Task, DataSpec]:
    """A segmenter or detector of two classes that finds many objects, with scores far from each other.

    Args:
        arch: Its ``arch``.
        side: Side of the network's input in pixels.
        overlap: Overlap of the tiles that it sees; ``None`` if it sees whole images.
    """
    options: dict[str, Any] = {"arch": arch, "width": 64, "image_size": side, "pretrained": False, "seed": 1}
    task: Task
    if arch in SEGMENTERS:
        task, kind = SemanticSegmentor("test_resnet", 2, **options), "pixels"
    elif arch == "mask_rcnn":
        task, kind = InstanceSegmentor("test_resnet", 2, **options, max_objects=10), "instances"
    else:
        task, kind = ObjectDetector("test_resnet", 2, **options), "boxes"
    for name, parameter in task.network.named_parameters():
        if "cls_logits" in name or "cls_score" in name:
            parameter.data.mul_(0 if name.endswith("bias") else 15)
    task.spec = DataSpec(("a", "b"), image_size=side, kind=kind, overlap=overlap, eval_batch_size=3)
    task.eval_batch_size = 3
    return task.eval(), task.spec
