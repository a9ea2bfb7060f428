"""Networks as plain ``nn.Module``: timm backbones, their preprocessing and their pretrained weights."""

from autotimm.models.backbone import (
    DataConfig,
    PooledClassifier,
    build_backbone,
    build_classifier,
    data_config,
    list_backbones,
)
from autotimm.models.names import Architecture, find_architecture, remember_architecture
from autotimm.models.preprocess import Normalize
from autotimm.models.weights import Weights, resolve_weights

__all__ = [
    "Architecture",
    "DataConfig",
    "Normalize",
    "PooledClassifier",
    "Weights",
    "build_backbone",
    "build_classifier",
    "data_config",
    "find_architecture",
    "list_backbones",
    "remember_architecture",
    "resolve_weights",
]
