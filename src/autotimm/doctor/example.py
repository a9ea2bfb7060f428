"""Batches to trace a step with, where there is no data."""

from __future__ import annotations

import torch
from torch import Tensor

from autotimm.data.toy import draw_objects
from autotimm.tasks import Task
from autotimm.types import Batch

__all__ = ["example_batch"]


def example_batch(task: Task, image_size: int, batch_size: int) -> Batch:
    """A batch for a task of ours: RGB ``uint8`` (N, 3, S, S), and targets of its kind.

    Images are black, and their targets all of the first class. Where objects are to be found there are two drawn scenes
    at most, one with objects and one without: a detector branches on how many there are, so that its steps are
    calculated, and the number of images changes none of their operators.

    Args:
        task: Any task.
        image_size: Side S of the images in pixels.
        batch_size: Images N in the batch.
    """
    if task.kinds[0] in ("boxes", "instances"):
        return _scenes(image_size, min(batch_size, 2), masks=task.kinds[0] == "instances")
    images = torch.zeros(batch_size, 3, image_size, image_size, dtype=torch.uint8)
    if task.kinds[0] == "pixels":
        return Batch(images, torch.zeros(batch_size, image_size, image_size, dtype=torch.int64))
    if task.hparams.get("multi_label"):
        return Batch(images, torch.zeros(batch_size, int(task.hparams["num_classes"])))
    return Batch(images, torch.zeros(batch_size, dtype=torch.int64))


def _scenes(image_size: int, number: int, masks: bool) -> Batch:
    scenes = [draw_objects(f"doctor/{at}", image_size, num_classes=1) for at in range(number)]
    targets: list[dict[str, Tensor]] = []
    for at, scene in enumerate(scenes):
        count = 0 if at else len(scene.labels)
        target = {"boxes": torch.tensor(scene.boxes)[:count].float(), "labels": torch.zeros(count, dtype=torch.int64)}
        targets.append(target | ({"masks": scene.masks[:count].to(torch.uint8)} if masks else {}))
    return Batch(torch.stack([scene.image for scene in scenes]), targets)
