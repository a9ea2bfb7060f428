"""The size of an image drawn at random, with masks that stay on their pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

__all__ = ["ScaleJitter", "resize_masks"]


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks (..., H, W) to the pixel whose center is nearest, as plain tensors.

    torchvision's ``NEAREST`` rounds down instead, and puts a mask half a pixel beside its image and its boxes.
    """
    plain = masks.as_subclass(Tensor)
    rows = plain if plain.ndim > 2 else plain.unsqueeze(0)
    resized: Tensor = F.resize(rows, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return resized if plain.ndim > 2 else resized[0]


class ScaleJitter(v2.Transform):
    """Draw the size of an image, its boxes and its masks as torchvision's ``ScaleJitter`` does, from the same numbers.

    torchvision's own resizes masks with ``NEAREST`` whatever it is told, see :func:`resize_masks`, and makes nothing
    of an image that is much longer than wide.

    Args:
        side: The side of the square that a scale of 1 fits the image into.
        low: The smallest scale.
        high: The largest.
    """

    def __init__(self, side: int, low: float, high: float) -> None:
        super().__init__()
        self.drawn = v2.ScaleJitter((side, side), scale_range=(low, high))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Height and width, at least one pixel each."""
        height, width = self.drawn.make_params(flat_inputs)["size"]
        return {"size": (max(1, height), max(1, width))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one of image, boxes and masks."""
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(resize_masks(inpt, params["size"]), like=inpt)
        return F.resize(inpt, list(params["size"]), antialias=True)
