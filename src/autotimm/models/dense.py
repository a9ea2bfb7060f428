"""The base of networks that look at feature maps: detectors and segmenters."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

from torch import Tensor, nn

from autotimm.errors import ModelError, UsageError
from autotimm.models.features import Level, feature_maps
from autotimm.models.layered import AroundBackbone
from autotimm.models.preprocess import Normalize
from autotimm.models.resizing import steady_resizing

__all__ = ["DenseNetwork"]


class DenseNetwork(AroundBackbone, ABC):
    """Normalization and a backbone that gives feature maps.

    Args:
        normalize: The network's first layer.
        backbone: A model of timm, see :func:`autotimm.models.features.build_maps`.
        levels: The maps that it gives.

    Attributes:
        multiple: What the sides of images must be a multiple of.
    """

    def __init__(self, normalize: Normalize, backbone: nn.Module, levels: Sequence[Level], multiple: int) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone
        self.levels = tuple(levels)
        self.multiple = max(multiple, *(level.stride for level in levels))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps of (N, 3, H, W) images, fine to coarse, one per level.

        Raises:
            UsageError: If the sides of the images are not a multiple of what the maps ask for.
            ModelError: If a map has not the size that its stride says: everything after it would be in wrong places.
        """
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            below = max(1, min(height, width) // self.multiple) * self.multiple
            raise UsageError(
                f"The images must have sides that are multiples of {self.multiple}. They are {height} x {width}. "
                f"Give the data image_size={below} or {below + self.multiple}."
            )
        with steady_resizing(self.backbone, images):
            found = feature_maps(self.backbone, [level.number for level in self.levels], self.normalize(images))
        for level, one in zip(self.levels, found, strict=True):
            expected = (len(images), level.channels, height // level.stride, width // level.stride)
            if tuple(one.shape) != expected:
                raise ModelError(
                    f"The feature map of stride {level.stride} must have the shape {expected}. Got "
                    f"{tuple(one.shape)} instead. Choose another `backbone`, or its own `image_size`."
                )
        return found
