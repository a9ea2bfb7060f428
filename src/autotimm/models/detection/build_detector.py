"""Build a detector by the name of its architecture."""

from __future__ import annotations

from autotimm.errors import is_whole, number, require, require_choice
from autotimm.image_size import ImageSize
from autotimm.models.backbone.feature_maps import build_feature_backbone
from autotimm.models.backbone.pooled import build_normalize
from autotimm.models.backbone.weights import Weights
from autotimm.models.detection.detector import Detector
from autotimm.models.detection.one_stage import OneStageDetector, build_fcos, build_retinanet
from autotimm.models.detection.two_stage import TwoStageDetector, build_proposal_network, build_roi_heads
from autotimm.models.layers.feature_pyramid import Pyramid, check_width
from autotimm.repro.streams import scope

__all__ = ["DETECTORS", "build_detector", "nms_threshold"]

DETECTORS = ("fcos", "retinanet", "faster_rcnn", "mask_rcnn")
_ONE_STAGE = {"fcos": build_fcos, "retinanet": build_retinanet}
_NMS_THRESHOLDS = {"fcos": 0.6, "retinanet": 0.5, "faster_rcnn": 0.5, "mask_rcnn": 0.5}  # torchvision's defaults


def build_detector(
    arch: str,
    backbone: str,
    num_classes: int,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: ImageSize | None = None,
    width: int = 256,
    drop_path_rate: float = 0.0,
    score_threshold: float = 0.05,
    max_objects: int = 100,
    nms_iou: float | None = None,
    in_chans: int = 3,
) -> Detector:
    """Build a detector on any timm model with feature maps.

    Backbones with several strides get torchvision's feature pyramid, plain ViTs a simple one; see
    :class:`autotimm.models.layers.feature_pyramid.Pyramid`.

    Args:
        arch: One of :data:`DETECTORS`; ``"mask_rcnn"`` also predicts masks.
        backbone: Name of the backbone.
        num_classes: Number of classes, without a background.
        weights: Initial weights of the backbone; ``None`` is random.
        seed: Root seed of the streams ``(init, backbone)``, ``(init, pyramid)`` and ``(init, head)``.
        image_size: Size of the images in pixels; ``None`` is the backbone's own size.
        width: Number of channels of the pyramid and of the heads, a multiple of 64. The R-CNNs also sample
            ``2 * width`` regions per image in training. 256 is torchvision's value; 64 is small and fast.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.
        score_threshold: Detections with a lower score are dropped, in [0, 1).
        max_objects: Maximum number of detections per image.
        nms_iou: Intersection over union in [0, 1] with a better box of its class above which a box is dropped; ``None``
            is torchvision's value, 0.6 for FCOS and 0.5 for the others.
        in_chans: Channels of the images.

    Returns:
        The detector. In training mode it takes images and targets and returns named losses; in evaluation mode it takes
        images and returns detections. See :class:`autotimm.models.detection.detector.Detector` for the shapes.

    Raises:
        ModelError: If the backbone is unknown, or its feature maps do not suit the pyramid.
        UsageError: If an argument is out of range.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> network = build_detector("fcos", "test_resnet", num_classes=2, image_size=64, width=64).eval()
        >>> sorted(network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0])
        ['boxes', 'labels', 'scores']
    """
    owner = "a detector"
    require_choice("arch", owner, arch, DETECTORS)
    must, do = "an integer of at least 1", "Give the number of your classes."
    require(is_whole(num_classes, 1), "num_classes", owner, must, num_classes, do)
    check_width(width, owner)
    do = "Give 0.05 to compute metrics, or for example 0.5 to view detections."
    require(0 <= number(score_threshold) < 1, "score_threshold", owner, "in [0, 1)", score_threshold, do)
    require(is_whole(max_objects, 1), "max_objects", owner, must, max_objects, "Give 100, as COCO's metrics do.")
    nms = nms_threshold(arch, nms_iou)
    one_stage = arch in _ONE_STAGE
    finest = 8 if one_stage else 4
    body, levels = build_feature_backbone(
        backbone, weights=weights, seed=seed, image_size=image_size, drop_path_rate=drop_path_rate, finest=finest,
        in_chans=in_chans,
    )  # fmt: skip
    normalize = build_normalize(body, in_chans)
    with scope(seed, "init", "pyramid"):
        pyramid = Pyramid(levels, width, finest, "convolutions" if one_stage else "pool", backbone)
    with scope(seed, "init", "head"):
        if one_stage:
            model, anchors = _ONE_STAGE[arch](
                num_classes, width, pyramid.strides, score_thresh=score_threshold, nms_thresh=nms,
                detections_per_img=max_objects,
            )  # fmt: skip
            return OneStageDetector(normalize, body, levels, pyramid, model, anchors)
        # The heads draw their weights before the proposal network does: the order decides the bits.
        heads = build_roi_heads(
            num_classes, width, pyramid.strides[:-1], masks=arch == "mask_rcnn", score_threshold=score_threshold,
            nms_threshold=nms, max_objects=max_objects,
        )  # fmt: skip
        proposals = build_proposal_network(width, pyramid.strides)
        return TwoStageDetector(normalize, body, levels, pyramid, proposals, heads)


def nms_threshold(arch: str, nms_iou: float | None) -> float:
    """The intersection over union above which a detector drops the box with the lower score of two of a class.

    Args:
        arch: One of :data:`DETECTORS`.
        nms_iou: The value that was given; ``None`` is torchvision's.

    Raises:
        UsageError: If it is out of range.
    """
    nms = _NMS_THRESHOLDS[arch] if nms_iou is None else nms_iou
    require(0 <= number(nms) <= 1, "nms_iou", "a detector", "in [0, 1]", nms_iou, "Give for example 0.5.")
    return nms
