"""timm backbones: their names, weights, pooled features and feature maps."""

from autotimm.models.backbone.pooled import (
    DataConfig,
    PooledClassifier,
    build_backbone,
    build_classifier,
    data_config,
    list_backbones,
)

__all__ = [
    "DataConfig",
    "PooledClassifier",
    "build_backbone",
    "build_classifier",
    "data_config",
    "list_backbones",
]
