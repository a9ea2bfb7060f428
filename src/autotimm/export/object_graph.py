"""Detection and instance segmentation as they are exported: from images to objects in their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autotimm.errors import ModelError
from autotimm.export.graph import Agreement, Graph, Size
from autotimm.export.object_agreement import compare_objects
from autotimm.export.object_heads import Found, OneStageHead, TwoStageHead
from autotimm.export.resize import Place, letterbox_place, letterboxed
from autotimm.models.detection.one_stage import OneStageDetector
from autotimm.models.detection.two_stage import TwoStageDetector
from autotimm.tasks.detection import ObjectTask, measurable
from autotimm.tasks.letterbox import encode, places
from autotimm.types import Batch, DataSpec

__all__ = ["ObjectGraph"]


class ObjectGraph(Graph):
    """Detection: at most D objects for each image, the highest score first, and empty places behind them.

    Results are ``boxes`` float32 (N, D, 4) as x1, y1, x2, y2 in pixels of the image, ``scores`` float32 (N, D) and
    ``labels`` int64 (N, D), which is -1 with a score of 0 for an empty place. For instance segmentation also ``masks``
    float32 (N, D, 28, 28), probabilities within the boxes: pasted ones would take 5 GB for an image of 12 megapixels.
    """

    def __init__(self, task: ObjectTask, spec: DataSpec, half: bool, dtype: torch.dtype) -> None:
        super().__init__(task, spec, half, dtype)
        network = self.network
        self.head: OneStageHead | TwoStageHead
        if isinstance(network, OneStageDetector):
            self.head = OneStageHead(network, self.size)
        elif isinstance(network, TwoStageDetector):
            self.head = TwoStageHead(network, self.size)
        else:
            raise ModelError(f"The detector {type(network).__name__} cannot be exported. Use one of autotimm's.")
        self.outputs = ("boxes", "scores", "labels", *(("masks",) if self.head.has_masks else ()))
        self.input_rule |= {"resize": "letterbox", "interpolation": "bilinear"}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict images."""
        place = letterbox_place(images, self.size, self.dtype)
        network: Any = self.network
        maps = network.pyramid(network.maps(letterboxed(images, place, self.size)))
        found: Found = self.head(maps)
        results = {"boxes": _to_original(found.boxes, place), "scores": found.scores, "labels": found.labels}
        return results if found.masks is None else {**results, "masks": found.masks}

    def of_run(self, task: ObjectTask, output: Sequence[dict[str, Tensor]], batch: Batch) -> list[dict[str, Any]]:
        """The objects in pixels of each image."""
        return [measurable(objects, place) for objects, place in zip(output, places(batch), strict=True)]

    def of_file(self, results: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size]) -> list[dict[str, Any]]:
        """The objects in pixels of each image."""
        found = []
        for result, size in zip(results, sizes, strict=True):
            filled = result["labels"] >= 0
            objects: dict[str, Any] = {name: value[filled] for name, value in result.items()}
            if "masks" in objects:
                objects["masks"] = encode(objects["masks"], objects["boxes"], *size)
            found.append(objects)
        return found

    def compare(
        self, expected: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], tolerance: float
    ) -> Agreement:
        """Compare objects, each with the one that overlaps it most; see :mod:`autotimm.export.object_agreement`."""
        return compare_objects(expected, found, tolerance, self.head.limits)


def _to_original(boxes: Tensor, place: Place) -> Tensor:
    """Map boxes (N, D, 4) to pixels of the images, clipped to them, as ``autotimm.tasks.letterbox.to_original``."""
    low = torch.stack([place.left, place.top] * 2).to(boxes.dtype)
    scale = torch.stack([place.width / place.shown_width, place.height / place.shown_height] * 2).to(boxes.dtype)
    limit = torch.stack([place.width, place.height] * 2).to(boxes.dtype)
    return torch.minimum(((boxes - low) * scale).clamp(min=0), limit)
