"""The first layer of every network: pixels as they were read become what the backbone was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autotimm.errors import UsageError, require

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """Scale RGB pixels to [0, 1] if they are ``uint8``, then subtract a mean and divide by a standard deviation.

    The network owns this layer, so that training, evaluation, prediction and an exported file cannot disagree about
    it. The result has the data type of the buffers, whatever the type of the images.

    Args:
        mean: Mean of each channel, in [0, 1] units.
        std: Standard deviation of each channel, in [0, 1] units, above 0.

    Shape:
        - images: (N, C, H, W), ``uint8`` in [0, 255] or float in [0, 1].
        - output: (N, C, H, W), float.

    Raises:
        UsageError: If there are not as many deviations as means, one of them is not above 0, or the images are integers
            other than ``uint8``.

    Example:
        >>> normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> normalize(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 1, 1))[:, 0].flatten()
        tensor([-1.,  1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        must = f"{len(mean)} numbers above 0, one for each channel of `mean`"
        fits = len(mean) == len(std) and all(value > 0 for value in std)
        require(fits, "std", "Normalize", must, std, "Give the standard deviation of each channel.")
        # Persistent, so that a checkpoint or an exported file holds its preprocessing.
        self.register_buffer("mean", torch.tensor(tuple(mean)).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize a batch of images."""
        if images.dtype == torch.uint8:
            # In place on the fresh copy: the same bits for a third of the memory that is walked through.
            return images.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)
        if not images.is_floating_point():
            raise UsageError(
                f"The images given to a network must be uint8 in [0, 255] or float in [0, 1]. Got {images.dtype} "
                "instead. Convert them with `images.to(torch.uint8)`."
            )
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the numbers in ``print(model)``."""
        return f"mean={[round(v, 4) for v in self.mean.flatten().tolist()]}, std=" + str(
            [round(v, 4) for v in self.std.flatten().tolist()]
        )
