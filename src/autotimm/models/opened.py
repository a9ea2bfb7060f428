"""Where a training from scratch starts: residual branches that say something from the first step on."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["open_residuals"]


@torch.no_grad()
def open_residuals(network: nn.Module) -> int:
    """Set the factors of normalizations that start at 0 to 1, in place.

    timm closes the residual branches of ResNets and their kin at first: the last factor of each is 0, so that a block
    begins as the identity (Goyal et al., "Accurate, large minibatch SGD", 2017). That helps SGD at high rates over
    90 epochs of ImageNet. A step of Adam moves a factor by at most the learning rate, so that it takes 1,000 steps at
    1e-3 to open a branch: most trainings from scratch on a few hundred photographs would be over before, having
    trained little more than the stem and the shortcuts.

    Pretrained weights have been through that; they are not to be touched.

    Args:
        network: A network with random weights.

    Returns:
        How many normalizations were closed.

    Example:
        >>> import timm
        >>> open_residuals(timm.create_model("resnet18")), open_residuals(timm.create_model("test_vit"))
        (8, 0)
    """
    opened = 0
    for module in network.modules():
        factors = module._parameters.get("weight")
        # Weights of one dimension are those of normalizations. Layers that begin at 0 otherwise are meant to.
        if factors is not None and factors.dim() == 1 and not factors.is_meta and not factors.any():
            factors.fill_(1)
            opened += 1
    return opened
