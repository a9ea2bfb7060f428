"""Two-stage detectors: torchvision's Faster R-CNN and Mask R-CNN on the pyramid of a timm backbone."""

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
from autotimm.models.detection.detector import (
    Detections,
    Detector,
    ObjectScore,
    Size,
    StridedAnchors,
    Targets,
    nearest_candidate,
)  # fmt: skip
from autotimm.models.layers.deterministic import RegionPool
from autotimm.models.layers.feature_pyramid import Pyramid
from autotimm.models.layers.normalize import Normalize

__all__ = ["TwoStageDetector", "build_proposal_network", "build_roi_heads"]

_BOX_SIDE, _MASK_SIDE = 7, 14  # sides of the squares that regions are resampled to
_MASK_OUTPUT_SIDE = 28


class _ProposalHead(nn.Module):
    """torchvision's head with outputs in full precision: half precision is too coarse for coordinates in pixels."""

    def __init__(self, width: int, anchors: int) -> None:
        super().__init__()
        self.body = RPNHead(width, anchors)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = self.body(maps)
        return [values.float() for values in objectness], [values.float() for values in offsets]


def build_proposal_network(width: int, strides: Sequence[int]) -> RegionProposalNetwork:
    """Build torchvision's region proposal network, with numbers of samples and proposals proportional to the width.

    Args:
        width: Number of channels of the pyramid. At 256, the numbers are torchvision's own.
        strides: Strides of the pyramid in pixels.
    """
    anchors = StridedAnchors([[8 * stride] for stride in strides], (0.5, 1.0, 2.0), strides)
    head = _ProposalHead(width, anchors.num_anchors_per_location()[0])
    top_n = {"training": 2000 * width // 256, "testing": 1000 * width // 256}
    return RegionProposalNetwork(
        anchors, head, fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=width, positive_fraction=0.5,
        pre_nms_top_n=top_n, post_nms_top_n=top_n, nms_thresh=0.7,
    )  # fmt: skip


def build_roi_heads(
    num_classes: int,
    width: int,
    strides: Sequence[int],
    *,
    masks: bool,
    score_threshold: float,
    nms_threshold: float,
    max_objects: int,
) -> RoIHeads:
    """Build torchvision's heads on regions, with sizes proportional to the width.

    Args:
        num_classes: Number of classes, without a background.
        width: Number of channels of the pyramid. At 256, the numbers are torchvision's own.
        strides: Strides in pixels of the maps that regions are resampled from.
        masks: Whether to predict masks.
        score_threshold: Boxes with a lower score are dropped.
        nms_threshold: Boxes whose IoU with a better box of the same class is larger are dropped.
        max_objects: Maximum number of boxes per image.
    """
    classes = num_classes + 1  # torchvision's class 0 is the background
    branch: dict[str, nn.Module] = {}
    if masks:
        layers = MaskRCNNHeads(width, (width,) * 4, dilation=1)
        predictor = MaskRCNNPredictor(width, width, classes)
        branch = {"mask_roi_pool": RegionPool(strides, _MASK_SIDE), "mask_head": layers, "mask_predictor": predictor}
    return RoIHeads(
        RegionPool(strides, _BOX_SIDE), TwoMLPHead(width * _BOX_SIDE**2, 4 * width),
        FastRCNNPredictor(4 * width, classes), fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=2 * width,
        positive_fraction=0.25, bbox_reg_weights=None, score_thresh=score_threshold, nms_thresh=nms_threshold,
        detections_per_img=max_objects, **branch,
    )  # fmt: skip


class TwoStageDetector(Detector):
    """A detector that proposes regions, then classifies and refines each of them.

    In evaluation the heads run image by image. In one batch, the number of regions in one image would determine the
    shape of a matrix product and could change the last bits of the other images.

    Args:
        normalize: The first layer.
        backbone: A timm model.
        levels: The feature maps to compute.
        pyramid: Converts them to maps of equal width.
        proposals: See :func:`build_proposal_network`.
        heads: See :func:`build_roi_heads`. Their parts and settings are used, their ``forward`` is not.
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

    def _propose(
        self, maps: list[Tensor], size: Size, targets: list[Targets] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        # The proposal network reads only the number and the sizes of the images.
        images = ImageList(maps[0], [size] * len(maps[0]))
        named = OrderedDict((str(index), level) for index, level in enumerate(maps))
        proposals: tuple[list[Tensor], dict[str, Tensor]] = self.proposals(images, named, targets)
        return proposals

    def losses(self, maps: list[Tensor], size: Size, targets: list[Targets]) -> dict[str, Tensor]:
        """Compute ``objectness`` and ``region`` of the proposals, and ``classification``, ``box`` and ``mask``."""
        # torchvision's class 0 is the background.
        targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        regions, proposal_losses = self._propose(maps, size, targets)
        regions, matches, labels, offsets = self.heads.select_training_samples(regions, targets)
        logits, boxes = self._predict_boxes(maps, regions)
        classification, box = fastrcnn_loss(logits, boxes, labels, offsets)
        losses = {
            "objectness": proposal_losses["loss_objectness"],
            "region": proposal_losses["loss_rpn_box_reg"],
            "classification": classification,
            "box": box,
        }
        if self.heads.has_mask():
            losses["mask"] = self._mask_loss(maps, regions, matches, labels, targets)
        return losses

    def _predict_boxes(self, maps: list[Tensor], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, offsets = self.heads.box_predictor(self.heads.box_head(self.heads.box_roi_pool(maps, regions)))
        return logits.float(), offsets.float()

    def _predict_masks(self, maps: list[Tensor], regions: list[Tensor]) -> Tensor:
        logits: Tensor = self.heads.mask_predictor(self.heads.mask_head(self.heads.mask_roi_pool(maps, regions)))
        return logits.float()

    def _mask_loss(
        self,
        maps: list[Tensor],
        regions: list[Tensor],
        matches: list[Tensor],
        labels: list[Tensor],
        targets: list[Targets],
    ) -> Tensor:
        """Compute the binary cross-entropy of the masks of the true class, in regions that contain an object."""
        positive = [torch.where(image_labels > 0)[0] for image_labels in labels]
        regions = [image_regions[index] for image_regions, index in zip(regions, positive, strict=True)]
        logits = self._predict_masks(maps, regions)
        classes = torch.cat([image_labels[index] for image_labels, index in zip(labels, positive, strict=True)])
        true_masks = torch.cat(
            [
                _crop_masks(target["masks"], boxes, match[index])
                for target, boxes, match, index in zip(targets, regions, matches, positive, strict=True)
            ]
        )
        if not len(classes):
            return logits.sum() * 0  # the mean over no masks would be NaN
        class_logits = logits[torch.arange(len(classes), device=classes.device), classes]
        return F.binary_cross_entropy_with_logits(class_logits, true_masks)

    def detect(self, maps: list[Tensor], size: Size) -> list[Detections]:
        """Return the boxes, scores and labels of each image, and masks within the boxes."""
        regions, _ = self._propose(maps, size)
        return [
            self._detect_image([level[index : index + 1] for level in maps], image_regions, size)
            for index, image_regions in enumerate(regions)
        ]

    def _detect_image(self, maps: list[Tensor], regions: Tensor, size: Size) -> Detections:
        logits, offsets = self._predict_boxes(maps, [regions])
        boxes, scores, labels = self.heads.postprocess_detections(logits, offsets, [regions], [size])
        detections = {"boxes": boxes[0], "scores": scores[0], "labels": labels[0] - 1}
        if self.heads.has_mask():
            masks = maskrcnn_inference(self._predict_masks(maps, boxes), labels) if len(boxes[0]) else [None]
            empty = boxes[0].new_zeros(0, _MASK_OUTPUT_SIDE, _MASK_OUTPUT_SIDE)
            detections["masks"] = empty if masks[0] is None else masks[0][:, 0]
        return detections

    def object_score(self, images: Tensor, found: Detections) -> ObjectScore:
        """The score of the proposed region that became a detection; of a Mask R-CNN too that of the box."""
        index = int(found["labels"]) + 1  # torchvision's class 0 is the background
        height, width = images.shape[-2:]
        with torch.no_grad():
            maps = self.pyramid(self.maps(images))
            (regions,), _ = self._propose(maps, (height, width))
            logits, offsets = self._predict_boxes(maps, [regions])
            boxes = self.heads.box_coder.decode(offsets, [regions])[:, index]
            at = nearest_candidate(boxes, logits.softmax(dim=1)[:, index], found, (height, width))
            region = regions[at : at + 1]
            level = int(self.heads.box_roi_pool.mapper([region]))

        def logits_of(images: Tensor) -> Tensor:
            maps = self.pyramid(self.maps(images))
            return self._predict_boxes(maps, [region] * len(images))[0]

        return ObjectScore(
            lambda images: logits_of(images)[:, index], lambda images: logits_of(images).softmax(dim=1)[:, index], level
        )


@torch.no_grad()
def _crop_masks(masks: Tensor, boxes: Tensor, matches: Tensor) -> Tensor:
    """Crop masks (K, H, W) to boxes (R, 4) and resample to (R, 28, 28); ``matches`` (R,) is the mask of each box."""
    regions = torch.cat([matches[:, None].to(boxes.dtype), boxes], dim=1)
    cropped: Tensor = torch.ops.torchvision.roi_align(
        masks[:, None].to(boxes.dtype), regions, 1.0, _MASK_OUTPUT_SIDE, _MASK_OUTPUT_SIDE, 0, False
    )
    return cropped[:, 0]
