"""The first layer of every network, which scales and normalizes the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autotimm.errors import UsageError, require

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """Scale ``uint8`` pixels to [0, 1], then subtract a mean and divide by a standard deviation.

    The layer is part of the network, so that training, evaluation, prediction and an exported file use the same
    normalization. The output has the data type of the buffers, whatever the type of the images.

    Args:
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1]; above 0.

    Shape:
        - images: (N, C, H, W), ``uint8`` in [0, 255] or float in [0, 1].
        - output: (N, C, H, W), float.

    Raises:
        UsageError: If ``mean`` and ``std`` differ in length, if a standard deviation is not above 0, or if the images
            have an integer type other than ``uint8``.

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
        valid = len(mean) == len(std) and all(value > 0 for value in std)
        require(valid, "std", "Normalize", must, std, "Give the standard deviation of each channel.")
        # Persistent buffers, so that checkpoints and exported files contain their preprocessing.
        self.register_buffer("mean", torch.tensor(tuple(mean)).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize a batch of images."""
        if images.dtype == torch.uint8:
            # In place on the new copy: the same bits with a third of the memory traffic.
            return images.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)
        if not images.is_floating_point():
            raise UsageError(
                f"The images given to a network must be uint8 in [0, 255] or float in [0, 1]. Got {images.dtype} "
                "instead. Convert them with `images.to(torch.uint8)`."
            )
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the mean and the standard deviation in ``print(model)``."""
        return f"mean={[round(v, 4) for v in self.mean.flatten().tolist()]}, std=" + str(
            [round(v, 4) for v in self.std.flatten().tolist()]
        )
