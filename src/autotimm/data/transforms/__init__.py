"""Transforms between decoder and network: torchvision v2 on ``uint8``."""

from autotimm.data.transforms.image_transforms import (
    AUGMENTATIONS,
    INTERPOLATIONS,
    ImageTransform,
    SampleTransform,
    draws_from_torch_only,
    eval_transform,
    train_transform,
)

__all__ = [
    "AUGMENTATIONS",
    "INTERPOLATIONS",
    "ImageTransform",
    "SampleTransform",
    "draws_from_torch_only",
    "eval_transform",
    "train_transform",
]
