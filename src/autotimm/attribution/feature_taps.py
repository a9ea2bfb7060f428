"""The last feature maps of a network, as a layer that attributions can be computed for.

captum attributes to the output of a module. The last map of a timm model is often no module's output, it may have its
channels last, and that of a ViT is a list of tokens. So the map is led through a layer of its own for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autotimm.models.backbone.feature_maps import DenseNetwork
from autotimm.models.backbone.pooled import PooledClassifier
from autotimm.models.detection.detector import Detector

__all__ = ["FeatureTap", "grid_of", "tapped"]


class FeatureTap(nn.Module):
    """Passes features on, and shows them to attributions as a map (N, C, h, w).

    Args:
        height: Height of the network's input in pixels.
        width: Its width.
        channels: Channels of the features, to recognize those that are last; 0 if they never are.

    Attributes:
        layer: The module whose output is the map.
        cells: How many cells the last map had; 0 if the features had no form of a map.
    """

    def __init__(self, height: int, width: int, channels: int = 0) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.height, self.width, self.channels, self.cells = height, width, channels, 0

    def forward(self, features: Any) -> Any:
        """Pass on features: (N, C, h, w), (N, h, w, C), or tokens (N, L, C) of a grid behind those of no place."""
        if not isinstance(features, Tensor):
            return features
        if features.ndim == 4:
            last = features.shape[-1] == self.channels != features.shape[1]
            mapped = self._shown(features.permute(0, 3, 1, 2) if last else features)
            return mapped.permute(0, 2, 3, 1) if last else mapped
        if features.ndim != 3 or (grid := grid_of(features.shape[1], self.height, self.width)) is None:
            return features
        prefix, height, width = grid
        places = features[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        return torch.cat([features[:, :prefix], self._shown(places).flatten(2).transpose(1, 2)], dim=1)

    def _shown(self, features: Tensor) -> Tensor:
        self.cells = features.shape[2] * features.shape[3]
        shown: Tensor = self.layer(features)
        return shown


_MOST_PREFIX = 8  # a class token, one of distillation, and up to 4 registers; some more for models to come


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int, int] | None:
    """How many tokens have no place, and height and width of the grid of the others; ``None`` if they are no grid.

    Args:
        tokens: Number of tokens.
        height: Height of the image in pixels.
        width: Its width.

    Example:
        >>> grid_of(197, 224, 224), grid_of(261, 256, 256), grid_of(33, 64, 128), grid_of(24, 64, 64)
        ((1, 14, 14), (5, 16, 16), (1, 4, 8), None)
    """
    for prefix in range(min(_MOST_PREFIX, tokens - 3)):
        places = tokens - prefix
        rows = round((places * height / width) ** 0.5)
        # Cells are square patches: the grid has the image's aspect ratio exactly.
        if rows and rows * (places // rows) == places and rows * width == (places // rows) * height:
            return prefix, rows, places // rows
    return None


@contextmanager
def tapped(network: nn.Module, height: int, width: int, level: int = -1) -> Iterator[FeatureTap | None]:
    """Lead the last feature map of a network through a tap in this block.

    Of classifiers it is the map before the pooling, and of ViTs the input of the last block's attention, since behind
    it the class token alone is read. Of detectors it is the map of the pyramid that the score is computed from, and of
    segmenters the backbone's coarsest map.

    Args:
        network: The network.
        height: Height of its input in pixels.
        width: Its width.
        level: Of several maps, which.

    Yields:
        The tap; ``None`` for networks of another form.
    """
    if isinstance(network, PooledClassifier):
        backbone = network.backbone
        tap = FeatureTap(height, width, int(getattr(backbone, "num_features", 0)))
        blocks = getattr(backbone, "blocks", None)
        norm = getattr(blocks[-1], "norm1", None) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) else None
        with _hooked(norm, tap) if isinstance(norm, nn.Module) else _replaced(backbone, "forward_features", tap):
            yield tap
    elif isinstance(network, Detector):
        tap = FeatureTap(height, width)
        with _hooked(network.pyramid, _at(level, tap)):
            yield tap
    elif isinstance(network, DenseNetwork):
        tap = FeatureTap(height, width)
        with _replaced(network, "maps", _at(level, tap)):
            yield tap
    else:
        yield None


def _at(level: int, tap: FeatureTap) -> Callable[[Any], Any]:
    """Lead one of several maps through a tap."""

    def lead(maps: Any) -> Any:
        maps = list(maps)
        maps[level] = tap(maps[level])
        return maps

    return lead


@contextmanager
def _hooked(module: nn.Module, through: Callable[[Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda module, inputs, output: through(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced(module: nn.Module, method: str, through: Callable[[Any], Any]) -> Iterator[None]:
    """Lead the result of a method through a function; the method is that of the class again afterwards."""
    original = getattr(module, method, None)
    if original is None:
        yield
        return
    vars(module)[method] = lambda *inputs, **named: through(original(*inputs, **named))
    try:
        yield
    finally:
        del vars(module)[method]
