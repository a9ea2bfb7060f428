"""Where a training from scratch starts: residual branches that say something from the first step on."""

from __future__ import annotations

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

__all__ = ["open_residuals"]

# Factors of LayerScale begin at 1e-6 to 1e-4, depending on the architecture. Those of BEiT, 0.1, are left alone.
_CLOSED = 1e-3


@torch.no_grad()
def open_residuals(network: nn.Module) -> int:
    """Set the factors that close residual branches to 1, in place.

    timm closes the residual branches of many random networks at first, so that a block begins as the identity. In
    ResNets and their kin the last normalization of a branch has factors of 0 (Goyal et al., "Accurate, large minibatch
    SGD", 2017); in ConvNeXt, CaiT and others a LayerScale has factors of about 1e-6 (Touvron et al., "Going deeper with
    image transformers", ICCV 2021). That helps hundreds of epochs of ImageNet. A step of Adam moves a factor by at most
    the learning rate, so that it takes 1,000 steps at 1e-3 to open a branch: most trainings from scratch on a few
    hundred photographs would be over before, having trained little more than the stem and the shortcuts.

    Pretrained weights have been through that; they are not to be touched.

    Args:
        network: A network with random weights.

    Returns:
        How many parameters were closed.

    Example:
        >>> import timm
        >>> [open_residuals(timm.create_model(name)) for name in ("resnet18", "test_convnext", "test_vit")]
        [8, 9, 0]
    """
    closed = [
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not parameter.is_meta and (_is_last_norm(module, name, parameter) or _is_layer_scale(name, parameter))
    ]
    for parameter in closed:
        parameter.fill_(1)
    return len(closed)


def _is_last_norm(module: nn.Module, name: str, factors: Tensor) -> bool:
    # Weights of one dimension are those of normalizations; that of ConvNeXt V2 is a branch of its own, open at 0.
    return name == "weight" and factors.dim() == 1 and not factors.any() and not isinstance(module, GlobalResponseNorm)


def _is_layer_scale(name: str, factors: Tensor) -> bool:
    # A factor per channel, all alike: `gamma`, `gamma_1`, `ls1` or `scale`, of shape (C,) or (C, 1, 1).
    if name.endswith("bias") or factors.dim() == 0 or factors.numel() != max(factors.shape):
        return False
    first = factors.flatten()[0]
    return bool(0 < first <= _CLOSED and (factors == first).all())
