"""The base class of networks built around a timm backbone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from timm.models import group_parameters
from torch import nn

__all__ = ["BackboneNetwork"]


class BackboneNetwork(nn.Module, ABC):
    """Base class of networks with a timm model as their ``backbone``.

    It numbers the layers for layer-wise learning rates; see :func:`autotimm.optim.build_optimizer`.

    Attributes:
        backbone: The timm model. All other modules count as the head.
    """

    backbone: nn.Module

    @abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """Run the network."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Number the layers for layer-wise learning rates, as timm's models do.

        Args:
            coarse: Whether to count stages instead of blocks.

        Returns:
            A function from the name of a parameter to the number of its layer, from 0; infinity for the head.
        """
        matcher = getattr(self.backbone, "group_matcher", None)  # two timm models have none and count as one layer
        layers = group_parameters(self.backbone, matcher(coarse=coarse), reverse=True) if matcher else {}
        numbers = {f"backbone.{name}": float(layers.get(name, 0)) for name, _ in self.backbone.named_parameters()}
        return lambda name: numbers.get(name, math.inf)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm excludes from weight decay, such as position embeddings, by name."""
        excluded = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in excluded()}
