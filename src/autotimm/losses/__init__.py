"""Losses of torch, timm, torchvision and segmentation-models-pytorch by name, by import path, or as objects."""

from autotimm.losses.image_losses import (
    LOSSES,
    MULTI_LABEL_LOSSES,
    FocalLoss,
    FunctionLoss,
    balanced_weights,
    build_loss,
)
from autotimm.losses.pixel_losses import build_dense_loss

__all__ = [
    "LOSSES",
    "MULTI_LABEL_LOSSES",
    "FocalLoss",
    "FunctionLoss",
    "balanced_weights",
    "build_dense_loss",
    "build_loss",
]
