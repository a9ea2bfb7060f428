"""The base class of networks with a timm model as their ``backbone``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from timm.models import group_parameters
from torch import nn

__all__ = ["AroundBackbone"]


class AroundBackbone(nn.Module, ABC):
    """A network with a model of timm as its ``backbone``.

    Attributes:
        backbone: The model of timm; what is around it counts as the head.
    """

    backbone: nn.Module

    @abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """Run the network."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Number the layers for layer-wise learning rates, as timm's models do; the head is the last.

        Args:
            coarse: Whether to count stages instead of blocks.
        """
        matcher = getattr(self.backbone, "group_matcher", None)  # two of timm's models have none: one layer
        layers = group_parameters(self.backbone, matcher(coarse=coarse), reverse=True) if matcher else {}
        numbers = {f"backbone.{name}": float(layers.get(name, 0)) for name, _ in self.backbone.named_parameters()}
        return lambda name: numbers.get(name, math.inf)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that their model's authors spare from weight decay, such as position embeddings."""
        spared = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in spared()}
