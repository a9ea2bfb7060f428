"""Networks as plain ``nn.Module``: timm backbones and what is built on them, preprocessing, pretrained weights."""

from autotimm.models.backbone import (
    DataConfig,
    PooledClassifier,
    build_backbone,
    build_classifier,
    data_config,
    list_backbones,
)
from autotimm.models.detection import DETECTORS, build_detector
from autotimm.models.names import Architecture, find_architecture, remember_architecture
from autotimm.models.preprocess import Normalize
from autotimm.models.segmentation import SEGMENTERS, build_segmenter
from autotimm.models.weights import Weights, resolve_weights

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
