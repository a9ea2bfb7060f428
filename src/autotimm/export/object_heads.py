"""The heads of torchvision's detectors without a loop over images, so that a graph takes any number of them.

torchvision selects candidates image by image, into lists whose lengths depend on the images. Here each image has the
same number of places, those of candidates that were dropped have a score of 0, and one call of NMS serves all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, nms

from autotimm.models.detection.one_stage import OneStageDetector
from autotimm.models.detection.two_stage import TwoStageDetector
from autotimm.models.layers.deterministic import RegionPool

__all__ = ["Found", "Limits", "OneStageHead", "TwoStageHead", "best"]


class Found(NamedTuple):
    """Objects of N images in pixels of the network's input, in D places each.

    Attributes:
        boxes: (N, D, 4).
        scores: (N, D), 0 for an empty place.
        labels: ``int64`` (N, D), -1 for an empty place.
        masks: (N, D, 28, 28), or ``None``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Limits(NamedTuple):
    """Where a detector decides whether an object is kept.

    Attributes:
        score: Objects with a lower score are dropped.
        overlap: Objects that overlap a better one of their class more are dropped.
        number: The most objects of an image.
    """

    score: float
    overlap: float
    number: int


class OneStageHead(nn.Module):
    """FCOS and RetinaNet from the maps of the pyramid on.

    Args:
        network: The detector.
        size: Height and width of its input.
    """

    has_masks = False

    def __init__(self, network: OneStageDetector, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size
        model = network.model
        self.limits = Limits(model.score_thresh, model.nms_thresh, model.detections_per_img)

    def forward(self, maps: list[Tensor]) -> Found:
        """Detect objects."""
        model, outputs = self.network.model, self.network.head_outputs(maps)
        layout = self.network.anchors.layout(maps)
        counts = [len(level) for level in layout]
        logits, codes = (outputs[name].split(counts, dim=1) for name in ("cls_logits", "bbox_regression"))
        centers = outputs["bbox_ctrness"].split(counts, dim=1) if isinstance(model, FCOS) else [None] * len(counts)
        levels = [self._level(*each) for each in zip(logits, codes, centers, layout, strict=True)]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        return best(Found(boxes, scores, labels), self.limits, self.size)

    def _level(
        self, logits: Tensor, codes: Tensor, centers: Tensor | None, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates of one map: boxes (N, k, 4), scores (N, k) and labels (N, k)."""
        model, classes = self.network.model, logits.shape[-1]
        scores = logits.sigmoid() if centers is None else torch.sqrt(logits.sigmoid() * centers.sigmoid())
        scores, index = _top(scores.flatten(1), model.topk_candidates)
        cell = torch.div(index, classes, rounding_mode="floor")
        codes, anchors = _rows(codes, cell), anchors[cell]
        if centers is None:
            boxes = model.box_coder.decode_single(codes.flatten(0, 1), anchors.flatten(0, 1)).reshape(anchors.shape)
        else:
            boxes = model.box_coder.decode(codes, anchors)
        scores = torch.where(scores > model.score_thresh, scores, 0.0)
        return clip_boxes_to_image(boxes, self.size), scores, index % classes


class TwoStageHead(nn.Module):
    """Faster R-CNN and Mask R-CNN from the maps of the pyramid on.

    Args:
        network: The detector.
        size: Height and width of its input.
    """

    def __init__(self, network: TwoStageDetector, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size
        heads = network.heads
        self.has_masks = bool(heads.has_mask())
        self.limits = Limits(heads.score_thresh, heads.nms_thresh, heads.detections_per_img)

    def forward(self, maps: list[Tensor]) -> Found:
        """Detect objects."""
        heads: Any = self.network.heads
        regions = self._propose(maps)
        number, places = regions.scores.shape
        boxes = regions.boxes.reshape(-1, 4)
        pooled = _pool(heads.box_roi_pool, maps, regions.boxes)
        logits, offsets = heads.box_predictor(heads.box_head(pooled))
        scores = logits.float().softmax(-1)[:, 1:].reshape(number, -1)  # without the background
        decoded = heads.box_coder.decode(offsets.float(), [boxes])[:, 1:].reshape(number, -1, 4)
        decoded = clip_boxes_to_image(decoded, self.size)
        classes = scores.shape[1] // places
        labels = torch.arange(classes).repeat(places).expand(number, -1)
        known = (regions.scores > 0).repeat_interleave(classes, dim=1) & _large(decoded, 1e-2)
        scores = torch.where(known & (scores > heads.score_thresh), scores, 0.0)
        found = best(Found(decoded, scores, labels), self.limits, self.size)
        return found._replace(masks=self._masks(maps, found)) if self.has_masks else found

    def _propose(self, maps: list[Tensor]) -> Found:
        """The regions in which objects may be, with the numbers of their maps as labels."""
        proposals: Any = self.network.proposals
        objectness, offsets = proposals.head(maps)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
        number = maps[0].shape[0]
        anchors = torch.cat(self.network.proposals.anchor_generator.layout(maps))
        flat, codes = concat_box_prediction_layers(objectness, offsets)
        every = anchors.repeat(number, 1)
        boxes = proposals.box_coder.decode_single(codes, every).reshape(number, -1, 4)
        chosen_boxes, chosen_scores, levels = [], [], []
        parts = zip(flat.reshape(number, -1).split(counts, dim=1), boxes.split(counts, dim=1), strict=True)
        for level, (level_scores, level_boxes) in enumerate(parts):
            scores, index = _top(level_scores, proposals.pre_nms_top_n())
            chosen_boxes.append(_rows(level_boxes, index))
            chosen_scores.append(scores.sigmoid())
            levels.append(torch.full_like(index, level))
        boxes = clip_boxes_to_image(torch.cat(chosen_boxes, dim=1), self.size)
        # Any score counts, also one that is rounded to 0.
        scores = torch.where(_large(boxes, proposals.min_size), torch.cat(chosen_scores, dim=1).clamp(min=1e-30), 0.0)
        limits = Limits(0.0, proposals.nms_thresh, proposals.post_nms_top_n())
        return best(Found(boxes, scores, torch.cat(levels, dim=1)), limits, self.size)

    def _masks(self, maps: list[Tensor], found: Found) -> Tensor:
        """The masks of objects within their boxes, (N, D, 28, 28)."""
        heads: Any = self.network.heads
        logits = heads.mask_predictor(heads.mask_head(_pool(heads.mask_roi_pool, maps, found.boxes)))
        index = (found.labels.flatten() + 1)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        masks: Tensor = logits.float().sigmoid().gather(1, index)[:, 0]
        return masks.reshape(*found.scores.shape, *logits.shape[2:])


def _top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest of scores (N, K), and where they are."""
    found = scores.topk(min(most, scores.shape[1]), dim=1)
    return found.values, found.indices


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Some rows of each image: of (N, K, C) those that ``index`` (N, k) names."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _large(boxes: Tensor, least: float) -> Tensor:
    """Whether both sides of boxes have a length."""
    return (boxes[..., 2] - boxes[..., 0] >= least) & (boxes[..., 3] - boxes[..., 1] >= least)


def best(found: Found, limits: Limits, size: tuple[int, int], groups: Sequence[Sequence[int]] | None = None) -> Found:
    """Drop what overlaps a better box of its class, and keep the best of each image.

    All images go through one call of NMS: boxes of other classes are moved aside, those of other images down, so that
    they do not overlap. torchvision moves classes in both directions; a decision can differ where an overlap equals the
    limit up to rounding.

    Args:
        found: Candidates of N images, in K places each; a score of 0 for what is dropped already.
        limits: What is kept.
        size: Height and width of the network's input, or of the images, which boxes lie in.
        groups: Classes in a row that go through NMS together, where all at once would be moved too far.
    """
    number, places = found.scores.shape
    kept = [_survivors(found, limits.overlap, size, group) for group in groups or (None,)]
    mask = torch.zeros_like(found.scores).flatten().index_fill(0, torch.cat(kept), 1.0).reshape(number, places)
    scores, where = _top(found.scores * mask, limits.number)
    labels = torch.where(scores > 0, found.labels.gather(1, where), -1)
    if found.masks is None:
        return Found(_rows(found.boxes, where), scores, labels)
    index = where[..., None, None].expand(-1, -1, *found.masks.shape[2:])
    return Found(_rows(found.boxes, where), scores, labels, found.masks.gather(1, index))


def _survivors(found: Found, overlap: float, size: tuple[int, int], classes: Sequence[int] | None) -> Tensor:
    """Positions among all candidates of those that no better one suppresses, of some classes or of all."""
    scores, labels = found.scores.flatten(), found.labels.flatten()
    chosen = scores > 0
    if classes is not None:
        chosen, labels = chosen & (labels >= classes[0]) & (labels <= classes[-1]), labels - classes[0]
    index = torch.nonzero(chosen)[:, 0]
    image = torch.div(index, found.scores.shape[1], rounding_mode="floor")
    boxes = found.boxes.reshape(-1, 4)[index]
    aside = labels[index].to(boxes.dtype) * (size[1] + 1)
    down = image.to(boxes.dtype) * (size[0] + 1)
    return index[nms(boxes + torch.stack([aside, down, aside, down], dim=1), scores[index], overlap)]


def _pool(pool: RegionPool, maps: list[Tensor], boxes: Tensor) -> Tensor:
    """Resample boxes (N, P, 4) of all images at once, each from the map of its size: (N P, C, side, side)."""
    number, places = boxes.shape[:2]
    flat = boxes.reshape(-1, 4)
    image = torch.arange(number, dtype=flat.dtype)[:, None].expand(-1, places).reshape(-1, 1)
    regions = torch.cat([image, flat], dim=1)
    levels = pool.mapper([flat])
    result = torch.zeros(())
    for level, (features, stride) in enumerate(zip(maps, pool.strides, strict=False)):
        squares = torch.ops.torchvision.roi_align(
            features, regions.to(features.dtype), 1 / stride, pool.size, pool.size, 2, False
        )
        result = torch.where((levels == level)[:, None, None, None], squares, result.to(squares.dtype))
    return result
