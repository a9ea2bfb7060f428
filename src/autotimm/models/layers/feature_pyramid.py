"""Feature pyramids: maps of equal width with doubling strides, from the feature maps of a backbone."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from timm.layers import LayerNorm2d  # type: ignore[attr-defined]  # re-exported without an `__all__`
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from autotimm.errors import ModelError, require
from autotimm.models.backbone.feature_maps import Level, simple_strides

__all__ = ["Pyramid", "SimplePyramid", "check_width"]


def check_width(width: int, owner: str) -> None:
    """Check that a width suits group normalization with 32 groups of at least two channels.

    A group of one channel would be normalized to zero where a map has a single cell, as for small images.

    Args:
        width: Number of channels.
        owner: The network that has this width, for the message.

    Raises:
        UsageError: If the width is not a positive multiple of 64.
    """
    valid = type(width) is int and width > 0 and width % 64 == 0
    require(valid, "width", owner, "a multiple of 64", width, "Give 256, or 64 for a small and fast network.")


class SimplePyramid(nn.Module):
    """Simple feature pyramid: maps of several strides from the single map of a plain ViT.

    Each map is computed independently of the others, without top-down connections: transposed convolutions for finer
    maps or max pooling for coarser ones, then a 1 x 1 and a 3 x 3 convolution.

    Args:
        channels: Number of channels of the backbone's map.
        stride: Stride of the backbone's map in pixels.
        strides: Strides of the output, see :func:`autotimm.models.backbone.feature_maps.simple_strides`.
        width: Number of channels of the output.

    Shape:
        - maps: a list whose last map is (N, channels, H / stride, W / stride).
        - output: (N, width, H / s, W / s) for each stride s.

    Source:
        Li et al., "Exploring plain vision transformer backbones for object detection", ECCV 2022, arXiv:2203.16527.
    """

    def __init__(self, channels: int, stride: int, strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(channels, stride / target, width) for target in strides)

    @staticmethod
    def _branch(channels: int, factor: float, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        doublings = round(math.log2(factor))
        for index in range(doublings):
            halved = max(width, channels // 2)
            layers.append(nn.ConvTranspose2d(channels, halved, kernel_size=2, stride=2))
            if index + 1 < doublings:
                layers += [LayerNorm2d(halved), nn.GELU()]
            channels = halved
        layers += [nn.MaxPool2d(2) for _ in range(-doublings)]
        layers += [nn.Conv2d(channels, width, kernel_size=1, bias=False), LayerNorm2d(width)]
        layers += [nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False), LayerNorm2d(width)]
        return nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute all maps, fine to coarse."""
        return [branch(maps[-1]) for branch in self.branches]


class Pyramid(nn.Module):
    """The feature pyramid of a detector: torchvision's for hierarchical backbones, a simple one for plain ViTs.

    Args:
        levels: Feature maps of the backbone, see :func:`autotimm.models.backbone.feature_maps.build_feature_backbone`.
        width: Number of channels of each map.
        finest: Smallest stride of the pyramid in pixels.
        extra: ``"pool"`` adds one coarser map by subsampling (as Faster R-CNN), ``"convolutions"`` adds two by
            convolutions with stride 2 (as RetinaNet and FCOS).
        name: Name of the backbone, for messages.

    Shape:
        - maps: one (N, C, H / stride, W / stride) per level.
        - output: one (N, width, H / s, W / s) per entry s of ``strides``, sides rounded up.

    Attributes:
        strides: Strides of the output in pixels, fine to coarse.
        multiple: Number of pixels of which the sides of the images must be multiples.

    Raises:
        ModelError: If a hierarchical backbone has fewer than two maps with a stride of at least ``finest``, or the
            patch size of a plain ViT is not a power of two.

    Source:
        Lin et al., "Feature pyramid networks for object detection", CVPR 2017; for plain ViTs :class:`SimplePyramid`.
    """

    def __init__(self, levels: Sequence[Level], width: int, finest: int, extra: str, name: str) -> None:
        super().__init__()
        self.strides: tuple[int, ...]
        self._used = len(levels)
        if len(levels) == 1:
            single = levels[0]
            self.strides = tuple(stride for stride in simple_strides(single.stride, name) if stride >= finest)
            self.body: nn.Module = SimplePyramid(single.channels, single.stride, self.strides, width)
        else:
            used = [level for level in levels if level.stride >= finest]
            self.strides, self._used = tuple(level.stride for level in used), len(used)
            if len(used) < 2:
                available = ", ".join(str(level.stride) for level in levels)
                raise ModelError(
                    f"The `backbone` {name} must have at least two feature maps of stride {finest} or more. Its "
                    f"strides are {available}. Choose another, such as 'resnet18'."
                )
            self.body = FeaturePyramidNetwork([level.channels for level in used], width)
        self.extra = LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(width, width)
        self.multiple = self.strides[-1]
        coarsest = self.strides[-1]
        self.strides += (2 * coarsest,) if extra == "pool" else (2 * coarsest, 4 * coarsest)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute all maps, fine to coarse."""
        if isinstance(self.body, SimplePyramid):
            results = self.body(maps)
        else:
            used = maps[-self._used :]
            results = list(self.body(OrderedDict((str(index), level) for index, level in enumerate(used))).values())
        extended, _ = self.extra(results, list(maps), [str(index) for index in range(len(results))])
        return list(extended)
