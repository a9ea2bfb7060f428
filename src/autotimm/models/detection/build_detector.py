"""Detectors by the name of their architecture."""

from __future__ import annotations

from autotimm.errors import is_whole, number, require, require_choice
from autotimm.models.backbone.feature_maps import build_maps
from autotimm.models.backbone.pooled import data_config
from autotimm.models.backbone.weights import Weights
from autotimm.models.detection.detector import Detector
from autotimm.models.detection.one_stage import OneStageDetector, fcos, retinanet
from autotimm.models.detection.two_stage import TwoStageDetector, proposals, region_heads
from autotimm.models.layers.feature_pyramid import Pyramid, check_width
from autotimm.models.layers.normalize import Normalize
from autotimm.repro.streams import scope

__all__ = ["DETECTORS", "build_detector"]

DETECTORS = ("fcos", "retinanet", "faster_rcnn", "mask_rcnn")
_ONE_STAGE = {"fcos": fcos, "retinanet": retinanet}
# As torchvision's own.
_OVERLAP = {"fcos": 0.6, "retinanet": 0.5, "faster_rcnn": 0.5, "mask_rcnn": 0.5}


def build_detector(
    arch: str,
    backbone: str,
    num_classes: int,
    *,
    weights: Weights | None = None,
    seed: int = 42,
    image_size: int | None = None,
    width: int = 256,
    drop_path_rate: float = 0.0,
    score_threshold: float = 0.05,
    max_objects: int = 100,
) -> Detector:
    """Build a detector around any timm model with feature maps.

    Backbones with several strides get torchvision's feature pyramid, plain ViTs a simple one; see
    :class:`autotimm.models.layers.feature_pyramid.Pyramid`.

    Args:
        arch: One of :data:`DETECTORS`; ``"mask_rcnn"`` finds masks too.
        backbone: Name of the backbone.
        num_classes: Number of classes; there is none for the background.
        weights: Where the backbone's weights come from; default random.
        seed: Root seed of the streams ``(init, backbone)``, ``(init, pyramid)`` and ``(init, head)``.
        image_size: Side of the square images in pixels; ``None`` is the backbone's own.
        width: Channels of the pyramid and of the heads, a multiple of 64. The R-CNNs also look at ``2 * width`` regions
            per image in training. 256 is torchvision's; 64 is small and fast.
        drop_path_rate: Probability in [0, 1) of skipping a residual block.
        score_threshold: What scores less is not reported, in [0, 1).
        max_objects: At most so many objects are found in an image.

    Raises:
        ModelError: If the backbone is unknown or has no feature maps to build on.
        UsageError: If an argument is wrong.
        WeightsError: If the weights do not fit.

    Example:
        >>> import torch
        >>> network = build_detector("fcos", "test_resnet", num_classes=2, image_size=64, width=64).eval()
        >>> sorted(network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0])
        ['boxes', 'labels', 'scores']
    """
    owner = "a detector"
    require_choice("arch", owner, arch, DETECTORS)
    whole, do = "an integer of at least 1", "Give the number of your classes."
    require(is_whole(num_classes, 1), "num_classes", owner, whole, num_classes, do)
    check_width(width, owner)
    do = "Give 0.05 to measure, or for example 0.5 to look at."
    require(0 <= number(score_threshold) < 1, "score_threshold", owner, "in [0, 1)", score_threshold, do)
    require(is_whole(max_objects, 1), "max_objects", owner, whole, max_objects, "COCO measures 100.")
    one_stage = arch in _ONE_STAGE
    finest = 8 if one_stage else 4
    body, levels = build_maps(
        backbone, weights=weights, seed=seed, image_size=image_size, drop_path_rate=drop_path_rate, finest=finest
    )
    config = data_config(body)
    normalize = Normalize(config.mean, config.std)
    with scope(seed, "init", "pyramid"):
        pyramid = Pyramid(levels, width, finest, "convolutions" if one_stage else "pool", backbone)
    with scope(seed, "init", "head"):
        if one_stage:
            model, anchors = _ONE_STAGE[arch](
                num_classes, width, pyramid.strides, score_thresh=score_threshold, nms_thresh=_OVERLAP[arch],
                detections_per_img=max_objects,
            )  # fmt: skip
            return OneStageDetector(normalize, body, levels, pyramid, model, anchors)
        heads = region_heads(
            num_classes, width, pyramid.strides[:-1], masks=arch == "mask_rcnn", score=score_threshold,
            overlap=_OVERLAP[arch], most=max_objects,
        )  # fmt: skip
        return TwoStageDetector(normalize, body, levels, pyramid, proposals(width, pyramid.strides), heads)
