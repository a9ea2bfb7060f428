"""Networks as plain ``nn.Module``: timm backbones, classifiers, detectors and segmenters built on them, and weights."""

from autotimm.models.backbone.architectures import Architecture, find_architecture, remember_architecture
from autotimm.models.backbone.pooled import (
    DataConfig,
    PooledClassifier,
    build_backbone,
    build_classifier,
    data_config,
    list_backbones,
)
from autotimm.models.backbone.weights import Weights, resolve_weights
from autotimm.models.detection.build_detector import DETECTORS, build_detector
from autotimm.models.layers.normalize import Normalize
from autotimm.models.segmentation.segmenter import SEGMENTERS, build_segmenter

__all__ = [
    "DETECTORS",
    "SEGMENTERS",
    "Architecture",
    "DataConfig",
    "Normalize",
    "PooledClassifier",
    "Weights",
    "build_backbone",
    "build_classifier",
    "build_detector",
    "build_segmenter",
    "data_config",
    "find_architecture",
    "list_backbones",
    "remember_architecture",
    "resolve_weights",
]
