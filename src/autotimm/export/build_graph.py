"""Choose what is exported of a task."""

from __future__ import annotations

import torch

from autotimm.errors import ModelError, UsageError, sentence
from autotimm.export.class_graph import ClassGraph
from autotimm.export.graph import Graph
from autotimm.export.object_graph import ObjectGraph
from autotimm.export.pixel_graph import PixelGraph
from autotimm.tasks import Task
from autotimm.tasks.classification import ImageClassifier
from autotimm.tasks.detection import InstanceSegmentor, ObjectDetector
from autotimm.tasks.segmentation import SemanticSegmentor
from autotimm.types import DataSpec

__all__ = ["build_graph"]


def build_graph(
    task: Task, spec: DataSpec, *, half: bool = False, dtype: torch.dtype = torch.float64, paste_masks: bool = False
) -> Graph:
    """Build what is exported of a task.

    Args:
        task: The trained task.
        spec: What it knows of its data.
        half: Whether the network computes in 16-bit floats.
        dtype: In which floats images are resized: ``float32`` for runtimes that have no others.
        paste_masks: Whether the graph pastes masks into the image.

    Raises:
        UsageError: If masks are to be pasted and there are none.
        ModelError: If the task cannot be exported; the message says why.
    """
    if paste_masks and type(task) is not InstanceSegmentor:
        must = "left out unless the model finds masks of objects"
        raise UsageError(sentence("paste_masks", "export", must, True, "Leave it out."))
    if spec.eval_transforms is not None:
        raise ModelError(
            f"The model was evaluated with transforms of your own, {spec.eval_transforms}, which no file for another "
            "program can contain. Train it with the built-in ones to export it."
        )
    if spec.in_chans != 3:
        raise ModelError(
            f"An exported file takes RGB images, and the model was trained on images of {spec.in_chans} channels. "
            "Train it on RGB to export it."
        )
    # Not subclasses: how they turn outputs into predictions is code that no other program has.
    if type(task) is ImageClassifier:
        return ClassGraph(task, spec, half, dtype)
    if type(task) is SemanticSegmentor:
        return PixelGraph(task, spec, half, dtype)
    if type(task) is ObjectDetector or type(task) is InstanceSegmentor:
        return ObjectGraph(task, spec, half, dtype, paste_masks)
    raise ModelError(
        f"The task {type(task).__name__} cannot be exported: how it turns outputs into predictions is code of its own. "
        "Export a run of autotimm's own tasks."
    )
