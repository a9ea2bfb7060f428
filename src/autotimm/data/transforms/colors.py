"""Random brightness, contrast and saturation as one linear function of the pixels.

Each of the three is linear, and so is any sequence of them: a pixel x becomes ``a * x + b * gray(x) + c``, with gray as
of ITU-R BT.601. So pixels are read, written and rounded once, and not once for each change, in a third of the time of
torchvision's ``ColorJitter``, whose ranges and meaning are kept. Products and sums are single operations of
``float32``, and means are sums of whole numbers: bits depend neither on the number of threads nor on the instructions
that a processor has.

Records hold digests of transform objects: their classes and attributes must keep their names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

__all__ = ["Colors", "Mixture", "mixed"]

_GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue, as in torchvision


class Mixture(NamedTuple):
    """What a pixel x becomes: ``own * x + gray * gray(x) + constant``.

    Attributes:
        own: How much of its own value.
        gray: How much of its gray.
        constant: What is added.
    """

    own: float = 1.0
    gray: float = 0.0
    constant: float = 0.0

    def brighter(self, factor: float) -> Mixture:
        """Then multiply by a factor."""
        return Mixture(self.own * factor, self.gray * factor, self.constant * factor)

    def contrasted(self, factor: float, mean: float) -> Mixture:
        """Then move away from the image's mean gray, or towards it.

        Args:
            factor: 0 leaves nothing but the mean, 1 changes nothing.
            mean: The mean gray of the image as it was at first.
        """
        pivot = (self.own + self.gray) * mean + self.constant
        return Mixture(self.own * factor, self.gray * factor, self.constant * factor + (1 - factor) * pivot)

    def saturated(self, factor: float) -> Mixture:
        """Then move away from each pixel's gray, or towards it; 0 leaves nothing but gray."""
        gray = self.gray * factor + (self.own + self.gray) * (1 - factor)
        return Mixture(self.own * factor, gray, self.constant)


def mixed(pixels: NDArray[np.float32], mixture: Mixture) -> NDArray[np.uint8]:
    """Apply a mixture to pixels (3, H, W) or (1, H, W) in [0, 255], which are overwritten.

    Example:
        >>> mixed(np.full((3, 1, 1), 100, np.float32), Mixture().brighter(1.5)).flatten().tolist()
        [150, 150, 150]
    """
    if len(pixels) == 1:
        pixels *= mixture.own + mixture.gray
        pixels += mixture.constant + 0.5
    else:
        shift = pixels[0] * (mixture.gray * _GRAY[0])
        for band, weight in zip(pixels[1:], _GRAY[1:], strict=True):
            shift += band * (mixture.gray * weight)
        shift += mixture.constant + 0.5  # rounds, since bytes are cut off
        pixels *= mixture.own
        pixels += shift
    # NumPy, since torch makes bytes of floats four times slower.
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def _mean_gray(pixels: NDArray[np.float32]) -> float:
    # Sums of a row are whole numbers below 2^24, and so exact in any order of addition. einsum adds them in a third of
    # the time of `sum`.
    bands = np.einsum("chw->ch", pixels).sum(axis=-1, dtype=np.float64) / (pixels.shape[-1] * pixels.shape[-2])
    return float(bands[0]) if len(bands) == 1 else sum(w * float(band) for w, band in zip(_GRAY, bands, strict=True))


class Colors(v2.Transform):
    """Random changes of brightness, contrast and saturation, in random order, of ``uint8`` images of 1 or 3 channels.

    Args:
        brightness: Images are multiplied by a factor in [1 - brightness, 1 + brightness].
        contrast: The same for the distance from the image's mean gray.
        saturation: The same for the distance from each pixel's gray.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float = 0.0) -> None:
        super().__init__()
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The factors of brightness, contrast and saturation, and the numbers that order them."""
        *order, first, second, third = torch.rand(6).tolist()
        spans = zip((self.brightness, self.contrast, self.saturation), (first, second, third), strict=True)
        return {"factors": [1 + span * (2 * number - 1) for span, number in spans], "order": order}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change the colors of an image; boxes and masks stay as they are."""
        if not isinstance(inpt, Tensor) or isinstance(inpt, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            return inpt
        pixels = inpt.as_subclass(Tensor).numpy().astype(np.float32, order="C")
        mixture = Mixture()
        for change in sorted(range(3), key=params["order"].__getitem__):
            factor = params["factors"][change]
            if change == 0:
                mixture = mixture.brighter(factor)
            elif change == 1:
                mixture = mixture.contrasted(factor, _mean_gray(pixels))
            else:
                mixture = mixture.saturated(factor)
        changed = torch.from_numpy(mixed(pixels, mixture))
        return tv_tensors.wrap(changed, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else changed
