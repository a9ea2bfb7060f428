"""Semantic segmentation networks: timm backbones with decoders of segmentation-models-pytorch."""

from autotimm.models.segmentation.segmenter import SEGMENTERS, build_segmenter

__all__ = ["SEGMENTERS", "build_segmenter"]
