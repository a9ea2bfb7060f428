"""Networks with random weights that several tests export."""

from typing import Any

from autotimm import InstanceSegmentor, ObjectDetector, SemanticSegmentor, Task
from autotimm.models.segmentation.segmenter import SEGMENTERS
from autotimm.types import DataSpec


def dense_task(arch: str, side: int) -> tuple[Task, DataSpec]:
    """A network with random weights that finds many objects with scores far from each other."""
    options: dict[str, Any] = {"arch": arch, "width": 64, "image_size": side, "pretrained": False, "seed": 1}
    made: Task
    if arch in SEGMENTERS:
        made, kind = SemanticSegmentor("test_resnet", 2, **options), "pixels"
    elif arch == "mask_rcnn":
        made, kind = InstanceSegmentor("test_resnet", 2, **options, max_objects=10), "instances"
    else:
        made, kind = ObjectDetector("test_resnet", 2, **options), "boxes"
    for name, parameter in made.network.named_parameters():
        if "cls_logits" in name or "cls_score" in name:
            parameter.data.mul_(0 if name.endswith("bias") else 15)
    made.spec = DataSpec(("a", "b"), image_size=side, kind=kind, eval_batch_size=3)
    made.eval_batch_size = 3
    return made.eval(), made.spec
