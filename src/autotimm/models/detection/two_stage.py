"""Detectors that look twice: Faster R-CNN and Mask R-CNN from torchvision's parts over our pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from autotimm.models.backbone.feature_maps import Level
from autotimm.models.detection.detector import Detector, Found, Objects, Size, StridedAnchors
from autotimm.models.layers.deterministic import RegionPool
from autotimm.models.layers.feature_pyramid import Pyramid
from autotimm.models.layers.normalize import Normalize

__all__ = ["TwoStageDetector", "proposals", "region_heads"]

_BOX, _MASK = 7, 14  # sides of the squares that boxes are resampled to
_MASK_OUT = 28


class _ProposalHead(nn.Module):
    """torchvision's head, with results in full precision: half is too coarse for coordinates in pixels."""

    def __init__(self, width: int, anchors: int) -> None:
        super().__init__()
        self.body = RPNHead(width, anchors)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = self.body(maps)
        return [one.float() for one in objectness], [one.float() for one in offsets]


def proposals(width: int, strides: Sequence[int]) -> RegionProposalNetwork:
    """A region proposal network as torchvision's, in numbers that follow the width."""
    anchors = StridedAnchors([[8 * stride] for stride in strides], (0.5, 1.0, 2.0), strides)
    head = _ProposalHead(width, anchors.num_anchors_per_location()[0])
    kept = {"training": 2000 * width // 256, "testing": 1000 * width // 256}
    return RegionProposalNetwork(
        anchors, head, fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=width, positive_fraction=0.5,
        pre_nms_top_n=kept, post_nms_top_n=kept, nms_thresh=0.7,
    )  # fmt: skip


def region_heads(
    num_classes: int, width: int, strides: Sequence[int], *, masks: bool, score: float, overlap: float, most: int
) -> RoIHeads:
    """The heads that look at regions, as torchvision's. At a width of 256 the numbers are torchvision's own.

    Args:
        num_classes: Number of classes, without a background.
        width: Channels of the pyramid.
        strides: Of the maps to cut from.
        masks: Whether to find masks too.
        score: Boxes must score more.
        overlap: Boxes of a class that overlap more with a better one are dropped.
        most: Boxes per image.
    """
    classes = num_classes + 1  # torchvision's class 0 is the background
    branch: dict[str, nn.Module] = {}
    if masks:
        layers = MaskRCNNHeads(width, (width,) * 4, dilation=1)
        predictor = MaskRCNNPredictor(width, width, classes)
        branch = {"mask_roi_pool": RegionPool(strides, _MASK), "mask_head": layers, "mask_predictor": predictor}
    return RoIHeads(
        RegionPool(strides, _BOX), TwoMLPHead(width * _BOX**2, 4 * width), FastRCNNPredictor(4 * width, classes),
        fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=2 * width, positive_fraction=0.25,
        bbox_reg_weights=None, score_thresh=score, nms_thresh=overlap, detections_per_img=most, **branch,
    )  # fmt: skip


class TwoStageDetector(Detector):
    """Regions that may hold an object, then a closer look at each.

    In evaluation the regions of one image after the other are looked at: otherwise the number of those in one image
    would set the shape of a matrix product, and might so change the last bits in all others.

    Args:
        normalize: The network's first layer.
        backbone: A model of timm.
        levels: The maps that it gives.
        pyramid: Makes of them maps of one width.
        proposals: See :func:`proposals`.
        heads: See :func:`region_heads`. Their parts and rules are used, their ``forward`` is not.
    """

    def __init__(
        self,
        normalize: Normalize,
        backbone: nn.Module,
        levels: Sequence[Level],
        pyramid: Pyramid,
        proposals: RegionProposalNetwork,
        heads: RoIHeads,
    ) -> None:
        super().__init__(normalize, backbone, levels, pyramid)
        self.proposals = proposals
        self.heads = heads

    def _proposed(
        self, maps: list[Tensor], size: Size, targets: list[Objects] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        # Of the images only the number and the sizes are looked at.
        images = ImageList(maps[0], [size] * len(maps[0]))
        named = OrderedDict((str(level), one) for level, one in enumerate(maps))
        found: tuple[list[Tensor], dict[str, Tensor]] = self.proposals(images, named, targets)
        return found

    def losses(self, maps: list[Tensor], size: Size, targets: list[Objects]) -> dict[str, Tensor]:
        """``objectness`` and ``region`` of the proposals, ``classification`` and ``box`` of the heads, and ``mask``."""
        targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        regions, first = self._proposed(maps, size, targets)
        regions, matches, labels, wanted = self.heads.select_training_samples(regions, targets)
        logits, boxes = self._boxes(maps, regions)
        classification, box = fastrcnn_loss(logits, boxes, labels, wanted)
        losses = {
            "objectness": first["loss_objectness"],
            "region": first["loss_rpn_box_reg"],
            "classification": classification,
            "box": box,
        }
        if self.heads.has_mask():
            losses["mask"] = self._mask_loss(maps, regions, matches, labels, targets)
        return losses

    def _boxes(self, maps: list[Tensor], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, offsets = self.heads.box_predictor(self.heads.box_head(self.heads.box_roi_pool(maps, regions)))
        return logits.float(), offsets.float()

    def _masks(self, maps: list[Tensor], regions: list[Tensor]) -> Tensor:
        logits: Tensor = self.heads.mask_predictor(self.heads.mask_head(self.heads.mask_roi_pool(maps, regions)))
        return logits.float()

    def _mask_loss(
        self,
        maps: list[Tensor],
        regions: list[Tensor],
        matches: list[Tensor],
        labels: list[Tensor],
        targets: list[Objects],
    ) -> Tensor:
        """Binary cross-entropy of the masks of the right class, in regions that show an object."""
        shown = [torch.where(one > 0)[0] for one in labels]
        some = [one[at] for one, at in zip(regions, shown, strict=True)]
        logits = self._masks(maps, some)
        classes = torch.cat([one[at] for one, at in zip(labels, shown, strict=True)])
        wanted = torch.cat(
            [
                _cut_masks(target["masks"], boxes, match[at])
                for target, boxes, match, at in zip(targets, some, matches, shown, strict=True)
            ]
        )
        if not len(classes):
            return logits.sum() * 0  # the mean over no mask is not a number
        chosen = logits[torch.arange(len(classes), device=classes.device), classes]
        return F.binary_cross_entropy_with_logits(chosen, wanted)

    def detect(self, maps: list[Tensor], size: Size) -> list[Found]:
        """Boxes, scores and labels, and masks within the boxes, of every image."""
        regions, _ = self._proposed(maps, size)
        return [self._look([one[at : at + 1] for one in maps], some, size) for at, some in enumerate(regions)]

    def _look(self, maps: list[Tensor], regions: Tensor, size: Size) -> Found:
        logits, offsets = self._boxes(maps, [regions])
        boxes, scores, labels = self.heads.postprocess_detections(logits, offsets, [regions], [size])
        found = {"boxes": boxes[0], "scores": scores[0], "labels": labels[0] - 1}
        if self.heads.has_mask():
            masks = maskrcnn_inference(self._masks(maps, boxes), labels) if len(boxes[0]) else [None]
            empty = boxes[0].new_zeros(0, _MASK_OUT, _MASK_OUT)
            found["masks"] = empty if masks[0] is None else masks[0][:, 0]
        return found


@torch.no_grad()
def _cut_masks(masks: Tensor, boxes: Tensor, matches: Tensor) -> Tensor:
    """What masks (K, H, W) show within boxes (R, 4) that belong to them, resampled to (R, 28, 28)."""
    regions = torch.cat([matches[:, None].to(boxes.dtype), boxes], dim=1)
    cut: Tensor = torch.ops.torchvision.roi_align(
        masks[:, None].to(boxes.dtype), regions, 1.0, _MASK_OUT, _MASK_OUT, 0, False
    )
    return cut[:, 0]
