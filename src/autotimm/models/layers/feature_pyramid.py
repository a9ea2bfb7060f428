"""Feature pyramids: maps of one width with strides that double, from whatever maps a backbone gives."""

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
    """Refuse a width that the 32 groups of group normalization do not divide.

    Groups of one channel would be all zeros where a map has one cell, as the coarsest of small images do.

    Raises:
        UsageError: If it is no positive multiple of 64.
    """
    fits = type(width) is int and width > 0 and width % 64 == 0
    require(fits, "width", owner, "a multiple of 64", width, "Give 256, or 64 for a small and fast one.")


class SimplePyramid(nn.Module):
    """Maps of several strides from the last map of a plain ViT, each by itself, without top-down connections.

    Finer maps come from transposed convolutions, coarser ones from max pooling; then a 1 x 1 and a 3 x 3 convolution.

    Args:
        channels: Of the backbone's map.
        stride: Of the backbone's map.
        strides: Of the maps to make, see :func:`autotimm.models.backbone.feature_maps.simple_strides`.
        width: Channels of the maps to make.

    Shape:
        - maps: One of (N, channels, H / stride, W / stride).
        - output: For each of the strides s (N, width, H / s, W / s).

    Source:
        Li et al., "Exploring plain vision transformer backbones for object detection", ECCV 2022, arXiv:2203.16527.
    """

    def __init__(self, channels: int, stride: int, strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(channels, stride / one, width) for one in strides)

    @staticmethod
    def _branch(channels: int, factor: float, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        doublings = round(math.log2(factor))
        for number in range(doublings):
            halved = max(width, channels // 2)
            layers.append(nn.ConvTranspose2d(channels, halved, kernel_size=2, stride=2))
            if number + 1 < doublings:
                layers += [LayerNorm2d(halved), nn.GELU()]
            channels = halved
        layers += [nn.MaxPool2d(2) for _ in range(-doublings)]
        layers += [nn.Conv2d(channels, width, kernel_size=1, bias=False), LayerNorm2d(width)]
        layers += [nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False), LayerNorm2d(width)]
        return nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Make all maps, fine to coarse."""
        return [branch(maps[-1]) for branch in self.branches]


class Pyramid(nn.Module):
    """The pyramid under a detector: torchvision's over the maps of a hierarchy, a simple one over a plain ViT.

    Args:
        levels: What the backbone gives, see :func:`autotimm.models.backbone.feature_maps.build_maps`.
        width: Channels of every map.
        finest: The smallest stride.
        extra: ``"pool"`` adds one coarser map by taking every second cell (as Faster R-CNN), ``"convolutions"`` adds
            two by convolutions with stride 2 (as RetinaNet and FCOS).
        name: The backbone, for messages.

    Shape:
        - maps: One per level, (N, C, H / stride, W / stride).
        - output: One per entry of ``strides``, (N, width, H / s, W / s), rounded up.

    Attributes:
        strides: Pixels per cell of every map, fine to coarse.
        multiple: What the sides of images must be a multiple of.

    Raises:
        ModelError: If the backbone has no maps to build on.

    Source:
        Lin et al., "Feature pyramid networks for object detection", CVPR 2017; :class:`SimplePyramid`.
    """

    def __init__(self, levels: Sequence[Level], width: int, finest: int, extra: str, name: str) -> None:
        super().__init__()
        self.strides: tuple[int, ...]
        self._used = len(levels)
        if len(levels) == 1:
            only = levels[0]
            self.strides = tuple(one for one in simple_strides(only.stride, name) if one >= finest)
            self.body: nn.Module = SimplePyramid(only.channels, only.stride, self.strides, width)
        else:
            kept = [level for level in levels if level.stride >= finest]
            self.strides, self._used = tuple(level.stride for level in kept), len(kept)
            if len(kept) < 2:
                found = ", ".join(str(level.stride) for level in levels)
                raise ModelError(
                    f"The `backbone` {name} must have at least two feature maps of stride {finest} or more. Its "
                    f"strides are {found}. Choose another, such as 'resnet18'."
                )
            self.body = FeaturePyramidNetwork([level.channels for level in kept], width)
        self.extra = LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(width, width)
        self.multiple = self.strides[-1]
        coarsest = self.strides[-1]
        self.strides += (2 * coarsest,) if extra == "pool" else (2 * coarsest, 4 * coarsest)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Make all maps, fine to coarse."""
        if isinstance(self.body, SimplePyramid):
            results = self.body(maps)
        else:
            used = maps[-self._used :]
            results = list(self.body(OrderedDict((str(at), one) for at, one in enumerate(used))).values())
        extended, _ = self.extra(results, list(maps), [str(at) for at in range(len(results))])
        return list(extended)
