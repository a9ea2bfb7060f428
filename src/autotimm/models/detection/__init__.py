"""torchvision's detectors on the feature maps of timm backbones."""

from autotimm.models.detection.build_detector import DETECTORS, build_detector

__all__ = ["DETECTORS", "build_detector"]
