"""Detection and instance segmentation as they are exported: from images to objects in their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from autotimm.errors import ModelError
from autotimm.export.graph import Agreement, Graph, Size, dense_input_rule
from autotimm.export.object_agreement import compare_objects
from autotimm.export.object_heads import Found, OneStageHead, TwoStageHead
from autotimm.export.resize import Place, letterbox_place, letterboxed
from autotimm.export.tile_graph import objects_of_tiles, tile_grid
from autotimm.models.detection.one_stage import OneStageDetector
from autotimm.models.detection.two_stage import TwoStageDetector
from autotimm.tasks.detection import ObjectTask, measurable
from autotimm.tasks.letterbox import encode, places
from autotimm.types import Batch, DataSpec

__all__ = ["ObjectGraph", "pasted"]


class ObjectGraph(Graph):
    """Detection: at most D objects for each image, the highest score first, and empty places behind them.

    Results are ``boxes`` float32 (N, D, 4) as x1, y1, x2, y2 in pixels of the image, ``scores`` float32 (N, D) and
    ``labels`` int64 (N, D), which is -1 with a score of 0 for an empty place. For instance segmentation also ``masks``
    float32 (N, D, 28, 28), probabilities within the boxes, or pasted ones, ``uint8`` (N, D, H, W) of zeros and ones.

    Args:
        task: The trained task.
        spec: What it knows of its data.
        half: Whether the network computes in 16-bit floats.
        dtype: In which floats images are resized.
        paste_masks: Whether masks are pasted into the image, which takes 5 bytes for each of its pixels and each of
            the D places: 6 GB for 100 in 12 megapixels.
    """

    def __init__(
        self, task: ObjectTask, spec: DataSpec, half: bool, dtype: torch.dtype, paste_masks: bool = False
    ) -> None:
        super().__init__(task, spec, half, dtype)
        self.paste_masks = paste_masks
        network = self.network
        self.head: OneStageHead | TwoStageHead
        if isinstance(network, OneStageDetector):
            self.head = OneStageHead(network, self.size)
        elif isinstance(network, TwoStageDetector):
            self.head = TwoStageHead(network, self.size)
        else:
            raise ModelError(f"The detector {type(network).__name__} cannot be exported. Use one of autotimm's.")
        self.outputs = ("boxes", "scores", "labels", *(("masks",) if self.head.has_masks else ()))
        self.classes = len(spec.class_names)
        self.input_rule |= dense_input_rule(spec)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict images."""
        found = self._found(images)
        results = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
        if found.masks is None:
            return results
        if not self.paste_masks:
            return {**results, "masks": found.masks}
        masks = pasted(found.masks, found.boxes, images.shape[-2], images.shape[-1])
        return {**results, "masks": torch.where(found.labels[..., None, None] >= 0, masks, 0).to(torch.uint8)}

    def _found(self, images: Tensor) -> Found:
        """The objects in pixels of the images."""
        if self.tiling is None:
            place = letterbox_place(images, self.size, self.dtype)
            found = self._detected(letterboxed(images, place, self.size))
            return found._replace(boxes=_to_original(found.boxes, place))
        grid = tile_grid(images, self.tiling)
        return objects_of_tiles(self._detected(grid.tiles()), grid, self.head.limits, self.classes)

    def _detected(self, images: Tensor) -> Found:
        network: Any = self.network
        found: Found = self.head(network.pyramid(network.maps(images)))
        return found

    def of_run(self, task: ObjectTask, batch: Batch) -> list[dict[str, Any]]:
        """The objects in pixels of each image."""
        return [measurable(objects, place) for objects, place in zip(task.output(batch), places(batch), strict=True)]

    def of_file(self, results: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size]) -> list[dict[str, Any]]:
        """The objects in pixels of each image."""
        found = []
        for result, size in zip(results, sizes, strict=True):
            filled = result["labels"] >= 0
            objects: dict[str, Any] = {name: value[filled] for name, value in result.items()}
            if "masks" in objects:
                masks, boxes = objects["masks"], objects["boxes"]
                objects["masks"] = _as_run_lengths(masks) if self.paste_masks else encode(masks, boxes, *size)
            found.append(objects)
        return found

    def compare(
        self, expected: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], tolerance: float
    ) -> Agreement:
        """Compare objects, each with the one that overlaps it most; see :mod:`autotimm.export.object_agreement`."""
        return compare_objects(expected, found, tolerance, self.head.limits)


def _as_run_lengths(masks: Tensor) -> list[tuple[tuple[int, int], bytes]]:
    """The run lengths of masks (K, H, W) of zeros and ones."""
    encoded = [coco_mask.encode(np.asfortranarray(mask.numpy())) for mask in masks]
    return [((each["size"][0], each["size"][1]), each["counts"]) for each in encoded]


def _to_original(boxes: Tensor, place: Place) -> Tensor:
    """Map boxes (N, D, 4) to pixels of the images, clipped to them, as ``autotimm.tasks.letterbox.to_original``."""
    low = torch.stack([place.left, place.top] * 2).to(boxes.dtype)
    scale = torch.stack([place.width / place.shown_width, place.height / place.shown_height] * 2).to(boxes.dtype)
    limit = torch.stack([place.width, place.height] * 2).to(boxes.dtype)
    return torch.minimum(((boxes - low) * scale).clamp(min=0), limit)


def pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Paste masks into images of any size, all at once: ``autotimm.tasks.letterbox.paste`` takes them one by one.

    A pixel belongs to an object if its center is in the box and the mask, interpolated there, is at least one half.
    Bilinear interpolation is a product of the mask with two matrices, one for rows and one for columns.

    Args:
        masks: Probabilities within the boxes, (N, D, M, M).
        boxes: x1, y1, x2, y2 in pixels of the images, (N, D, 4).
        height: Height H of the images.
        width: Their width W.

    Returns:
        ``bool`` (N, D, H, W).

    Example:
        >>> pasted(torch.ones(1, 1, 28, 28), torch.tensor([[[0.0, 0.4, 2.0, 2.0]]]), 3, 4).int().tolist()
        [[[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]]
    """
    left, top, right, bottom = boxes.unbind(-1)
    rows, in_rows = _shares(top, bottom, height, masks.shape[-2])
    columns, in_columns = _shares(left, right, width, masks.shape[-1])
    values = rows @ masks @ columns.transpose(-1, -2)
    return (values >= 0.5) & in_rows[..., :, None] & in_columns[..., None, :]


def _shares(low: Tensor, high: Tensor, size: int, cells: int) -> tuple[Tensor, Tensor]:
    """The share of each cell of a mask in each pixel, (N, D, size, cells), and whether the box has the center."""
    low, high = low[..., None], high[..., None]
    center = torch.arange(size, dtype=low.dtype) + 0.5
    at = (center - low) / (high - low).clamp(min=1e-6) * cells - 0.5  # a box without area has no pixels
    at = at.clamp(0, cells - 1)[..., None]
    shares = (1 - (at - torch.arange(cells, dtype=low.dtype)).abs()).clamp(min=0)
    return shares, (center >= low) & (center < high)
